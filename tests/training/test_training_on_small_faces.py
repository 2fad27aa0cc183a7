"""A run trains on degraded images, whatever interrupts it, and is measured at several resolutions."""

import json

import hydra
import numpy as np
import pytest
from hydra.errors import InstantiationException
from killing import compose
from omegaconf import OmegaConf
from safetensors import safe_open

from facelab.benchmark.scores import load_scores
from facelab.door import configuration_folder
from facelab.training import fit
from facelab.training.evaluation import evaluate
from facelab.training.preemption import Interrupted

SHORT = ("trainer.max_steps=5", "trainer.validate_every=9", "trainer.precision=fp32", "data.loader.threads=1")
CAMERA = ("data/degrade=surveillance", "data.degrade.sizes=[6,12,24]")
LOW = ("data/degrade=lowres", "data.degrade.sizes=[6,12]")
MEASURED = ("benchmark=pairs_lowres", "benchmark.resolutions=[1x,4x]")


def run(where, *overrides):
    config, plain = compose(*SHORT, *overrides)
    return fit.train(config, plain, where, one_process=False)


def weights(where):
    with safe_open(where / "checkpoints" / "last.ckpt", "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def equal(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def low(tmp_path_factory):
    where = tmp_path_factory.mktemp("runs") / "low"
    return where, run(where, *LOW, *MEASURED)


def test_an_interrupted_run_sees_the_same_degraded_images(tmp_path, monkeypatch):
    run(tmp_path / "one", *CAMERA)
    one = weights(tmp_path / "one")
    step, steps = fit.FaceModule.training_step, []

    def stop_in_the_middle(self, batch, batch_idx):
        if len(steps) == 3:
            raise Interrupted("here")
        steps.append(batch_idx)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(fit.FaceModule, "training_step", stop_in_the_middle)
    again = (*CAMERA, "data.loader.threads=2", "trainer.save_every_steps=1")
    with pytest.raises(Interrupted):
        run(tmp_path / "again", *again)
    monkeypatch.undo()
    run(tmp_path / "again", *again)
    assert equal(one, weights(tmp_path / "again"))


def test_it_is_measured_at_each_resolution_and_chosen_as_always(low):
    where, metrics = low
    assert {"heldout/accuracy", "heldout_12px/accuracy", "heldout_12px/eer", "val/accuracy"} <= metrics.keys()
    assert json.loads((where / "metrics.json").read_text()) == metrics
    stamps = {path.stem: load_scores(path).stamp for path in (where / "scores").glob("*.npz")}
    assert set(stamps) == {"heldout", "heldout_12px"}
    assert "degraded_size" not in stamps["heldout"]
    assert stamps["heldout_12px"]["degraded_size"] == 12
    assert (where / "report.png").is_file()


def test_held_out_images_are_degraded_where_that_is_asked_for(low, tmp_path):
    where, metrics = low
    degraded = run(tmp_path / "run", *LOW, *MEASURED, "data.degrade.validation=true")
    assert equal(weights(where), weights(tmp_path / "run"))
    assert degraded["val/auc"] != metrics["val/auc"]
    for key in ("heldout/auc", "heldout_12px/auc"):
        assert degraded[key] == pytest.approx(metrics[key]) or degraded["best_step"] != metrics["best_step"]


def test_an_evaluation_says_the_same_and_other_resolutions_too(low, tmp_path):
    where, metrics = low
    OmegaConf.register_new_resolver("facelab.job", lambda: "small", replace=True)

    def evaluated(name, *typed):
        words = [f"checkpoint={where}/checkpoints/best.ckpt", "benchmark=pairs_lowres", *typed]
        with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
            config = hydra.compose("evaluate", ["logger=csv", "progress=false", *words])
        return evaluate(config, {word.split("=")[0] for word in words}, tmp_path / name)

    again = evaluated("again")  # with the resolutions of its run
    assert {key: again[key] for key in again if "heldout" in key} == {
        key: metrics[key] for key in metrics if "heldout" in key
    }
    other = evaluated("other", "benchmark.resolutions=[2x,12]", "benchmark.sides=[one]")
    assert {key.split("/")[0] for key in other if key.endswith("/accuracy")} == {"heldout_24px_one", "heldout_12px_one"}


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("data.degrade.sizes=[12,56]", "sizes has 56, but images have 48 pixels"),
        ("data.degrade.sizes=[]", "sizes is empty: name at least one size"),
        ("data.degrade.sizes=[a]", r"sizes is \['a'\]: give a value of type int or list of int"),
        ("data.degrade.kernel=cubic", "kernel is 'cubic': give one of bicubic"),
        ("benchmark.resolutions=[56]", "resolutions has 56, but images have 48 pixels"),
    ],
)
def test_what_cannot_be_is_refused_before_there_is_a_run(tmp_path, word, line):
    with pytest.raises((ValueError, InstantiationException), match=line):  # of the latter, the door shows the former
        run(tmp_path, "data/degrade=lowres", "data.degrade.sizes=[12]", "benchmark=pairs_lowres", word)
    assert not (tmp_path / "config.yaml").exists()
