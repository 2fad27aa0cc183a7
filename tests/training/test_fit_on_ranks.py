"""Whole runs through Lightning: stopped on two ranks they go on with one and with three, to the same next steps."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from killing import compose
from ranks import on_ranks
from safetensors import safe_open
from torch import nn

from facelab.training import fit
from facelab.training.module import FaceModule
from facelab.training.stored import files_of

STOP, STEPS, CLIP = 2, 4, 0.5
RUNS = {
    "margins": ("loss=adam_softmax", "loss.scale=16", "loss.classifier.sample_rate=0.5"),
    "buffer": ("loss=curricularface", "loss.scale=16", "loss.t_alpha=0.3"),
    # Attention maps, of this rank's images; and logits, of all images and this rank's classes.
    "taught": ("loss.scale=16", "backbone.attention=cbam", "distill=sum", "distill.teacher.checkpoint=TEACHER"),
}
COMMON = (
    "trainer.batch_size=12",  # which one, two and three ranks can share
    "trainer.accumulate=1",
    "trainer.precision=fp32",
    "trainer.accelerator=cpu",
    "trainer.validate_every=100",
    f"trainer.max_steps={STEPS}",
    f"trainer.save_every_steps={STOP}",
    "trainer.log_every=1",
    "backbone.dropout=0",  # a function of the rank
    f"optimizer.clip_norm={CLIP}",
    "data.identities=22",
)


class Stopped(Exception):
    """Power failure on all ranks at once."""


def run(where: Path, name: str, world: int, stop: int = STEPS, *more: str) -> None:
    """One start, up to a step, or up to its report; with batch norms that know nothing of the batch.

    Each rank would have statistics of its own.
    """
    teacher = str(where.parents[1] / "teacher" / "checkpoints" / "last.ckpt")
    given = [one.replace("TEACHER", teacher) for one in RUNS[name]]
    config, plain = compose(*COMMON, *given, *more, f"trainer.devices={world}")
    with pytest.MonkeyPatch.context() as patch:
        configure, step = FaceModule.configure_model, FaceModule.training_step

        def frozen(self):
            configure(self)
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train(False)
                    module.train = lambda mode=True, module=module: module

        def stopping(self, batch, number):
            if self.progress.step == stop:
                raise Stopped
            step(self, batch, number)

        def reporting(self, batch, number):
            raise Stopped

        patch.setattr(FaceModule, "configure_model", frozen)
        patch.setattr(FaceModule, "_calibrate", lambda self: None)
        patch.setattr(FaceModule, "training_step", stopping)
        patch.setattr(FaceModule, "test_step", reporting)
        with pytest.raises(Stopped):
            fit.train(config, plain, where, one_process=False)


def job(rank, world, folder):
    launched = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    launched |= {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "localhost", "MASTER_PORT": 0}  # as torchrun says it
    before = dict(os.environ)
    os.environ.update({key: str(value) for key, value in launched.items()})
    try:
        for name in RUNS:
            if world == 2:
                run(folder / name / "2", name, world, STOP)
                if rank == 0:
                    for other in ("1", "3"):
                        shutil.copytree(folder / name / "2", folder / name / other)
                dist.barrier()
            else:
                run(folder / name / "3", name, world)
        if world == 2:
            run(folder / "frozen" / "2", "buffer", world, STEPS, *going_on(folder))
    finally:
        os.environ.clear()
        os.environ.update(before)


def going_on(folder):
    """From weights, with frozen stages; the others at rates of their own, and recomputed."""
    weights = folder / "frozen" / "start" / "checkpoints" / "last.ckpt"
    return f"backbone.weights={weights}", "backbone.freeze=2", "optimizer.stage_decay=0.5", "trainer.checkpointing=true"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    config, plain = compose(*COMMON, "loss.scale=16", "backbone.attention=cbam", "seed=2")
    fit.train(config, plain, folder / "teacher", one_process=False)
    run(folder / "frozen" / "start", "buffer", 1)
    run(folder / "frozen" / "1", "buffer", 1, STEPS, *going_on(folder))
    on_ranks((2, 3), job, folder)
    for name in RUNS:
        run(folder / name / "1", name, 1)
        run(folder / name / "alone", name, 1)
    shutil.copytree(folder / "margins" / "2", folder / "margins" / "damaged")
    files_of(folder / "margins" / "damaged" / "checkpoints" / "last.ckpt")[2].unlink()
    run(folder / "margins" / "damaged", "margins", 1)
    return folder


def tensors(where: Path) -> dict[str, np.ndarray]:
    """What last.ckpt holds of all ranks, as one process would have written it."""
    found: dict[str, list[np.ndarray]] = {}
    for path in files_of(where / "checkpoints" / "last.ckpt"):
        with safe_open(path, "np") as file:
            for key in list(file.keys()):
                found.setdefault(key, []).append(file.get_tensor(key))
    return {key: parts[0] if len(parts) == 1 else np.concatenate(parts) for key, parts in found.items()}


def history(where: Path) -> list[dict[str, str]]:
    with open(where / "metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("name", RUNS)
def test_stopped_on_two_ranks_it_goes_on_with_one_and_three(folder, name, world):
    """What one process computed that never stopped: the steps on two ranks, and those after the checkpoint."""
    alone, resumed = history(folder / name / "alone"), history(folder / name / str(world))
    assert [int(row["step"]) for row in resumed] == [int(row["step"]) for row in alone] == [1, 2, 3, 4]
    for expected, row in zip(alone, resumed, strict=True):
        assert float(expected["train/grad_norm"]) > 1.1 * CLIP  # every step is clipped, by the norm over all ranks
        for column in ("train/loss", "train/accuracy", "train/grad_norm"):
            assert float(row[column]) == pytest.approx(float(expected[column]), rel=1e-4), (row["step"], column)
    wanted, found = tensors(folder / name / "alone"), tensors(folder / name / str(world))
    assert wanted.keys() == found.keys()
    assert "optimizer.loss.classifier.weight.momentum_buffer" in wanted
    assert {"margins": "model.loss.margins", "buffer": "model.loss.t"}.get(name, "model.backbone.fc.weight") in wanted
    for key, value in wanted.items():
        limit = 1e-4 * abs(value).max()
        np.testing.assert_allclose(found[key], value, rtol=0, atol=limit, err_msg=key)


def test_without_a_shard_the_checkpoint_before_is_taken(folder):
    """Of step 0, so it is the run that one process trains alone."""
    wanted, found = tensors(folder / "margins" / "alone"), tensors(folder / "margins" / "damaged")
    assert all(np.array_equal(value, found[key]) for key, value in wanted.items())
    starts = json.loads((folder / "margins" / "damaged" / "environment.json").read_text())["starts"]
    assert "last.ckpt.shard-1-of-2.2 is missing); going on from previous.ckpt, of step 0" in starts[-1]["damaged"]


def test_the_classes_are_shared_unevenly(folder):
    classes = len(tensors(folder / "buffer" / "alone")["model.loss.classifier.weight"])
    assert classes % 2
    assert classes % 3
    shards = {path.name.rsplit(".", 1)[0] for path in (folder / "buffer" / "3" / "checkpoints").glob("last*shard*")}
    # Of the checkpoint before too, which two ranks wrote.
    assert shards == {f"last.ckpt.shard-{rank}-of-{world}" for world in (2, 3) for rank in range(world)}


def test_frozen_stages_and_rates_of_their_own_on_two_ranks(folder):
    start, alone, ranks = (tensors(folder / "frozen" / name) for name in ("start", "1", "2"))
    fixed = ("conv1", "bn1", "prelu", "layer1", "features.weight")
    for key in (key for key in start if key.startswith("model.backbone.") and "tracked" not in key):
        if key.removeprefix("model.backbone.").startswith(fixed):
            np.testing.assert_array_equal(ranks[key], start[key])
        else:
            limit = 1e-4 * abs(alone[key]).max()
            np.testing.assert_allclose(ranks[key], alone[key], rtol=0, atol=limit, err_msg=key)
            assert "running" in key or not np.array_equal(ranks[key], start[key]), key
