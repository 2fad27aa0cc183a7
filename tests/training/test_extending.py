"""`resume=`: a run goes on with its own choices, for longer where that is asked for, and as no other experiment."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch
import yaml
from killing import compose
from safetensors import safe_open

from facelab import train
from facelab.training import extending, fit, resuming
from facelab.training.histograms import Histograms
from facelab.training.record import RunDirectory
from facelab.training.resuming import checked, configuration_of, folder_of, in_quotes
from facelab.training.sameness import is_longer

FEW = ("trainer.accumulate=1", "trainer.validate_every=1", "backbone.dropout=0", "trainer.save_every_steps=null")
STEPS = ("optimizer/schedule=multistep", "optimizer.schedule.milestones=[1,3]")


def run(where, epochs, *more, resume=None):
    config, plain = compose(*FEW, f"trainer.epochs={epochs}", *more)
    return fit.train(config, {**plain, "resume": resume}, where, one_process=False)


def weights(folder):
    with safe_open(folder / "checkpoints" / "last.ckpt", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of two epochs with each schedule, and one of three."""
    folder = tmp_path_factory.mktemp("extended")
    for name, more in (("steps", STEPS), ("poly", ())):
        run(folder / name, 2, *more)
    run(folder / "three", 3, *STEPS)
    return folder


def test_a_finished_run_is_trained_for_longer(runs, tmp_path, capsys):
    where = tmp_path / "run"
    shutil.copytree(runs / "steps", where)
    before = (where / "metrics.json").read_bytes()
    with pytest.raises(ValueError, match=r"trainer\.epochs: 2 → 3\).*to train it for longer: resume="):
        run(where, 3, *STEPS)
    assert run(where, 2, *STEPS, resume=str(where))["steps"] == 10
    assert "nothing was trained" in capsys.readouterr().out
    metrics = run(where, 3, *STEPS, resume=str(where))
    said = "extended at step 10 from 10 to 15 steps; the rates until now were those of a run with so many steps"
    assert said in capsys.readouterr().out
    assert metrics["steps"] == 15
    assert (where / "metrics-10.json").read_bytes() == before
    expected = weights(runs / "three")
    assert all(torch.equal(value, expected[key]) for key, value in weights(where).items())
    assert yaml.safe_load((where / "config.yaml").read_text())["trainer"]["epochs"] == 3
    starts = json.loads((where / "environment.json").read_text())["starts"]
    assert starts[-1]["extended"] == {"step": 10, "steps": [10, 15], "trainer.epochs": [2, 3]}
    with np.load(where / "histograms.npz") as file:
        assert file["angle"].sum() == file["images"][-1] == metrics["images"] == 15 * 16
        assert (file["angle"].sum(axis=1) == np.diff(file["images"])).all()
    assert run(where, 3, *STEPS)["steps"] == 15  # now it is a run of three epochs


def test_a_rate_that_knows_the_end_is_told(runs, tmp_path, capsys, monkeypatch):
    where = tmp_path / "run"
    shutil.copytree(runs / "poly", where)
    seen = {}

    def dying(self, facts):
        seen.update(facts)
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "extend", dying)
        with pytest.raises(OSError, match="no room"):
            run(where, 3, resume=str(where))
    assert "the rate follows the new number from here on, so this is not the run" in capsys.readouterr().out
    assert (where / "metrics.json").is_file()  # nothing is lost
    assert yaml.safe_load((where / "config.yaml").read_text())["trainer"]["epochs"] == 2
    metrics = run(where, 3, resume=str(where))
    assert metrics["steps"] == 15
    rates = [line.split(",")[3] for line in (where / "metrics.csv").read_text().splitlines()[1:]]
    assert float([rate for rate in rates if rate][-1]) == pytest.approx(0.1 * 1 / (15 - 2))  # warm for half an epoch


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("trainer.epochs=1",), r"trainer\.epochs: 2 → 1 would make it another experiment, or a shorter one: leave"),
        (("trainer.epochs=3", "optimizer.lr=0.2"), r"optimizer\.lr: 0\.1 → 0\.2; trainer\.epochs: 2 → 3"),
        (("trainer.max_steps=20",), r"trainer\.max_steps: None → 20"),
    ],
)
def test_another_experiment_is_refused_by_its_keys(runs, more, message):
    with pytest.raises(ValueError, match=message):
        run(runs / "poly", 2, *more, resume=str(runs / "poly"))
    assert (runs / "poly" / "metrics.json").is_file()


def test_what_ends_a_run_earlier_has_to_be_raised_too(tmp_path):
    where = tmp_path / "run"
    run(where, 2, "trainer.max_steps=3")
    with pytest.raises(ValueError, match=r"with trainer\.epochs=3 the run still has 3 steps"):
        run(where, 3, "trainer.max_steps=3", resume=str(where))
    assert run(where, 2, "trainer.max_steps=null", resume=str(where))["steps"] == 10


def test_longer():
    assert is_longer(5, 6)
    assert is_longer(5, None)
    assert not any((is_longer(5, 5), is_longer(6, 5), is_longer(None, 9), is_longer("absent", 5), is_longer(5, 6.5)))


def test_stretches_of_a_run_that_was_extended_twice():
    packed = Histograms(100, {}).pack()
    assert Histograms(100, packed).bounds == Histograms(100, {}).bounds
    counted = Histograms(300, packed, [[50, 100], [130, 200]])
    bounds = counted.bounds
    assert bounds[0] == 0
    assert bounds == sorted(set(bounds))
    assert {50, 130, 300} <= set(bounds)
    for step in range(300):
        place = counted._stretch(step)
        assert bounds[place] <= step < bounds[place + 1]
    assert Histograms(30, {}, [[10, 10]]).bounds[:12] == [*range(11), 11]


def test_sampled_steps():
    assert extending._sample(0) == []
    assert extending._sample(5) == [0, 1, 2, 3, 4]
    assert max(extending._sample(100_000)) < 100_000


# The command line


@pytest.fixture
def folder(tmp_path):
    where = tmp_path / "loss=cosface,seed=2"
    where.mkdir()
    _, plain = compose()
    for name in ("save_in_background",):
        del plain["trainer"][name]  # of an older run
    (where / "config.yaml").write_text(yaml.safe_dump({**plain, "hydra": {"callbacks": {"a": {"_target_": "os.x"}}}}))
    (where / "checkpoints").mkdir()
    for name in ("last.ckpt", "previous.ckpt", "best.ckpt"):
        (where / "checkpoints" / name).touch()
    return where


def shown(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["train.py", *words, "--cfg", "job"])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    train.main()
    return yaml.safe_load(capsys.readouterr().out)


def test_the_configuration_is_the_runs_own(folder, monkeypatch, capsys):
    words = (f"resume={folder}/checkpoints/last.ckpt", "trainer.epochs=9", "logger=tensorboard")
    config = shown(monkeypatch, capsys, *words)
    assert config["backbone"]["widths"] == [16, 16, 16, 32]
    assert (config["trainer"]["epochs"], config["trainer"]["save_in_background"]) == (9, True)
    assert config["logger"]["_target_"].endswith("TensorBoardRun")
    assert config["job"] == "small"
    assert "callbacks" not in config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m"], "-m begins several"),
        (["loss=cosface"], "loss=cosface would make it another experiment"),
        (["data/augment=none"], "data/augment=none would make it another experiment"),
        (["job=other"], "leave out job=other"),
    ],
)
def test_what_does_not_go_with_it(folder, words, message):
    with pytest.raises(ValueError, match=message):
        configuration_of(in_quotes([f"resume={folder}", *words]))


def test_no_run(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no run is there"):
        configuration_of([f"resume={tmp_path}/none"])
    with pytest.raises(ValueError, match=r"give its folder, resume=.*seed=2"):
        folder_of(str(folder / "checkpoints" / "best.ckpt"))
    assert configuration_of(["loss=cosface"]) is configuration_of(["resume=null"]) is None
    (folder / "config.yaml").write_text("checkpoint: a\n")
    with pytest.raises(ValueError, match="is not the configuration of a training"):
        checked(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("_target_", "os.system", r"asks for os\.system \(loss\._target_\)"),
        ("parts", [{"_target_": "torch.hub.load"}], r"asks for torch\.hub\.load \(loss\.parts\.0\._target_\)"),
        ("parts", {"_args_": ["ls"]}, r"has loss\.parts\._args_"),
        ("scale", "${oc.env:HOME}", r"loss\.scale is '\$\{oc\.env:HOME\}'"),
    ],
)
def test_a_strangers_configuration_is_checked(folder, key, value, message):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["loss"][key] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=message):
        configuration_of(in_quotes([f"resume={folder}"]))
    assert resuming.NAME not in os.listdir(folder)
