"""Who has started the processes, and how many."""

import os
from types import SimpleNamespace

import hydra
import pytest
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment

from facelab.door import configuration_folder
from facelab.training import launching

BATCH = {"SLURM_JOB_ID": "12", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "facelab"}  # a script's, without srun
STEP = {**BATCH, "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
HERE = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_JOB_ID": "123456"}


@pytest.fixture
def environment(monkeypatch):
    """Sets these names alone, and none after the test."""

    def set_to(names):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SUBMITIT"))}
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
            kept.pop(name, None)
        monkeypatch.setattr(os, "environ", {**kept, **names})

    return set_to


def options(devices, num_nodes=1):
    return SimpleNamespace(devices=devices, num_nodes=num_nodes, world=devices * num_nodes)


@pytest.mark.parametrize("names", [STEP, {**HERE, "SUBMITIT_LOCAL_GLOBALID": "1"}])
def test_as_many_processes_as_train(environment, names):
    environment(names)
    launching.meet(options(2))
    for wrong in (options(1), options(2, 2)):
        with pytest.raises(ValueError, match=rf"num_nodes is {wrong.world}, but 2 processes were started .* launches"):
            launching.meet(wrong)


@pytest.mark.parametrize(
    "names",
    [
        {},
        BATCH,
        {**STEP, "SLURM_JOB_NAME": "bash"},  # somebody's shell
        {**STEP, "TORCHELASTIC_RUN_ID": "x"},  # srun has started torchrun
        {"SUBMITIT_EXECUTOR": "slurm"},
    ],
)
def test_elsewhere_lightning_starts_them_or_torchrun(environment, names):
    environment(names)
    launching.meet(options(8))
    assert "RANK" not in os.environ


def test_who_tells_the_processes_of_each_other(environment):
    environment(STEP)
    launching.meet(options(2))
    (plugin,) = launching.plugins()
    assert isinstance(plugin, SLURMEnvironment)
    assert not plugin.auto_requeue
    assert os.environ["SLURM_NTASKS_PER_NODE"] == "2"
    environment(BATCH)
    assert [type(plugin) for plugin in launching.plugins()] == [LightningEnvironment]
    for names in ({}, {**STEP, "TORCHELASTIC_RUN_ID": "x"}):
        environment(names)
        assert launching.plugins() == []


def test_submitit_on_this_machine(environment):
    told = []
    for rank in ("0", "1"):
        environment({**HERE, "SUBMITIT_LOCAL_GLOBALID": rank})
        launching.meet(options(2))
        assert (os.environ["RANK"], os.environ["LOCAL_RANK"], os.environ["WORLD_SIZE"]) == (rank, rank, "2")
        assert LightningEnvironment().creates_processes_externally
        told.append((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
    assert told[0] == told[1]
    assert 1024 < told[0][1] < 65_536


@pytest.mark.parametrize("launcher", ["slurm", "local"])
def test_a_launcher_starts_as_many_processes_as_the_trainer_has(launcher):
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        words = [f"hydra/launcher={launcher}", "trainer.devices=4", "trainer.num_nodes=2", "name=mine", "job=x"]
        given = hydra.compose("config", words, return_hydra_config=True).hydra.launcher
        assert (given.tasks_per_node, given.nodes, given.gpus_per_node) == (4, 2, 4)
        assert given.submitit_folder == "runs/mine/.submitit/%j"
