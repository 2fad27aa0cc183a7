"""Runs that begin with weights: some stages stay as they are, others learn at a rate of their own; and less memory."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from killing import compose
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from facelab.training import fit
from facelab.training.module import FaceModule

RUN = ("trainer.precision=fp32", "trainer.accelerator=cpu", "trainer.validate_every=100", "trainer.accumulate=1")
ONE_STEP = (*RUN, "trainer.max_steps=1", "optimizer.momentum=0", "optimizer.nesterov=false", "optimizer.clip_norm=null")
FROZEN = ("conv1", "bn1", "prelu", "layer1", "layer2")


class Stopped(Exception):
    """Power failure."""


def run(where: Path, *overrides: str, stop: int | None = None):
    """One start, up to a step, or up to its report."""
    config, plain = compose(*overrides)
    with pytest.MonkeyPatch.context() as patch:
        step = FaceModule.training_step

        def stopping(self, batch, number):
            if self.progress.step == stop:
                raise Stopped
            step(self, batch, number)

        def reporting(self, batch, number):
            raise Stopped

        patch.setattr(FaceModule, "training_step", stopping)
        patch.setattr(FaceModule, "test_step", reporting)
        with pytest.raises(Stopped):
            fit.train(config, plain, where, one_process=False)


def backbone(where: Path, name: str = "last.ckpt", prefix: str = "model.backbone."):
    with safe_open(where / "checkpoints" / name, "np") as file:
        names = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
        return {key.removeprefix(prefix): file.get_tensor(key) for key in names}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A run of one step, whose checkpoint others begin with."""
    where = tmp_path_factory.mktemp("start") / "run"
    run(where, *ONE_STEP)
    return where


def weights(start: Path) -> str:
    return f"backbone.weights={start / 'checkpoints' / 'last.ckpt'}"


def test_frozen_stages_stay_through_a_stop_and_in_the_average(start, tmp_path):
    given = (*RUN, weights(start), "backbone.freeze=3", "trainer.ema=0.9", "trainer.max_steps=4")
    run(tmp_path / "alone", *given)
    before = backbone(start)
    for kind in ("model.backbone.", "model.average.backbone."):
        for key, value in backbone(tmp_path / "alone", prefix=kind).items():
            same = np.array_equal(value, before[key])
            fixed = key.split(".")[0] in FROZEN or key == "features.weight"
            assert same == fixed, (kind, key)

    run(tmp_path / "resumed", *given, stop=2)
    run(tmp_path / "resumed", *given)
    one, other = (load_file(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("alone", "resumed"))
    assert one.keys() == other.keys()
    assert all(value.equal(other[key]) for key, value in one.items())
    assert not any(key.startswith("optimizer.backbone.layer1") for key in one)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("7", r"backbone\.freeze is 7: give 0 \(none\) to 6 of this IResNet's stages"),
        ("-1", r"backbone\.freeze is -1: give 0"),
        ("1.5", r"backbone\.freeze is 1\.5: give a value of type int"),
        ("true", r"backbone\.freeze is True: give a value of type int"),
    ],
)
def test_numbers_that_are_none_of_stages(start, tmp_path, value, line):
    with pytest.raises(ValueError, match=line):
        run(tmp_path / "run", weights(start), f"backbone.freeze={value}")
    assert not (tmp_path / "run").exists()


def test_random_stages_are_not_frozen(tmp_path):
    with pytest.raises(ValueError, match=r"^backbone\.freeze=2 keeps the first stages as they are, and these would be"):
        run(tmp_path / "run", "backbone.freeze=2")
    assert not (tmp_path / "run").exists()


def test_class_centres_alone_can_be_learned(start, tmp_path):
    given = (*ONE_STEP, weights(start), "backbone.freeze=6")
    run(tmp_path / "run", *given)
    before = backbone(start)
    assert all(np.array_equal(value, before[key]) for key, value in backbone(tmp_path / "run").items())
    with pytest.raises(ValueError, match="nothing is left to train, neither of the backbone nor of the loss"):
        run(tmp_path / "none", *given, "loss=triplet")
    with pytest.raises(ValueError, match="nothing that processes train together"):
        run(tmp_path / "none", *given, "trainer.devices=2")
    assert not (tmp_path / "none").exists()


def moved(start: Path, where: Path, *overrides: str):
    """What one step of plain SGD moves, without weight decay."""
    before = load_file(start / "checkpoints" / "last.ckpt")
    run(where, *ONE_STEP, weights(start), "backbone.dropout=0", "optimizer.weight_decay=0", *overrides)
    after = load_file(where / "checkpoints" / "last.ckpt")
    return {key: (after[key] - before[key]).double() for key in before if key.endswith(("weight", "bias"))}


def test_each_stage_moves_at_its_own_rate(start, tmp_path):
    full = moved(start, tmp_path / "full")
    slow = moved(start, tmp_path / "slow", "optimizer.stage_decay=0.5", "optimizer.backbone_factor=0.25")
    # Centres begin anew in both runs: they are compared by how far they are from each other.
    factors = {"conv1": 1 / 128, "layer1": 1 / 64, "layer2": 1 / 32, "layer3": 1 / 16, "layer4": 1 / 8, "fc": 1 / 4}
    for key, change in full.items():
        part = key.removeprefix("model.backbone.").split(".")[0]
        if part in factors and change.abs().max() > 1e-4:
            ratio = float(slow[key].norm() / change.norm())
            assert ratio == pytest.approx(factors[part], rel=0.02), key
    centres = "model.loss.classifier.weight"
    assert full[centres].equal(slow[centres])


def test_recomputing_trains_alike(start, tmp_path):
    plain = moved(start, tmp_path / "plain")
    frugal = moved(start, tmp_path / "frugal", "trainer.checkpointing=true", "trainer.accumulate=2")
    assert plain.keys() == frugal.keys()
    again = moved(start, tmp_path / "again", "trainer.checkpointing=false", "trainer.accumulate=2")
    assert all(value.equal(again[key]) for key, value in frugal.items())
    one, other = backbone(tmp_path / "frugal"), backbone(tmp_path / "again")
    assert all(np.array_equal(value, other[key]) for key, value in one.items())  # running statistics too


def test_an_older_checkpoint_does_not_mention_freezing(start, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(start, folder)
    path = folder / "checkpoints" / "last.ckpt"
    with safe_open(path, "pt") as file:
        meta = json.loads(file.metadata()["facelab"])
    del meta["config"]["backbone"]["freeze"]
    save_file(load_file(path), path, metadata={"facelab": json.dumps(meta)})
    run(tmp_path / "run", *ONE_STEP, weights(folder), "backbone.freeze=1")
