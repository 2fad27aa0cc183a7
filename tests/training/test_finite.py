"""A number that is none ends a run before it is saved: on a CPU at once, on a GPU where that is waited for."""

import os
import re
import shlex
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from killing import compose
from safetensors import safe_open
from torch import nn

from facelab.data.folder import FolderFaces
from facelab.training import fit
from facelab.training.finite import Diverged, Watch, refuse_weights
from facelab.training.module import FaceModule
from facelab.training.stored import files_of

FEW = ("trainer.precision=fp32", "trainer.max_steps=9", "trainer.validate_every=9")
NAN = torch.tensor(torch.nan)


def run(where, *overrides):
    config, plain = compose(*FEW, *overrides)
    return fit.train(config, plain, where, one_process=False)


def tensors(path):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def assert_finite(folder):
    files = list((folder / "checkpoints").glob("*.ckpt*"))
    assert files
    for path in files:
        assert all(value.isfinite().all() for value in tensors(path).values()), path


class Named:
    """A data set that can name its images."""

    def name(self, index):
        """As a folder does."""
        return f"person/{index}.jpg"


def rate(step):
    return 0.1 / (step + 1)


@pytest.mark.parametrize("wrong", ["loss", "norm", "both"])
def test_the_first_bad_step_is_told(wrong):
    watch, good = Watch(Named()), torch.ones(3, 2)
    rows = good.clone()
    rows[1, 1], rows[2, 0] = torch.inf, torch.nan
    for step in range(6):
        bad = step >= 3
        watch.rows(good, torch.tensor([5, 6, 7]))
        watch.rows(rows if bad else good, torch.tensor([8, 9, 10]) + step)
        loss = NAN if bad and wrong != "norm" else torch.tensor(2.0)
        watch.step(step, loss, NAN.double() if bad and wrong != "loss" else torch.tensor(step + 0.5).double())
        if not bad:
            watch.refuse(rate)
    with pytest.raises(Diverged) as told:
        watch.refuse(rate)
    loss, norm = "nan" if wrong != "norm" else "2.0", "nan" if wrong != "loss" else "3.5"
    assert str(told.value) == (
        f"the loss is {loss} in step 4 (learning rate 2.50e-02, gradient norm {norm}, 2.5 the step before); embeddings "
        "of 2 of 6 images are not, the first is image 12 of the data (person/12.jpg)"
    )


def test_where_no_image_is_to_blame_none_is_named():
    watch = Watch(object())
    watch.rows(torch.ones(2, 2), torch.tensor([1, 2]))
    watch.step(0, torch.tensor(1.0), torch.tensor(torch.inf))
    with pytest.raises(Diverged, match=r"step 1 .*gradient norm inf\); all embeddings are finite"):
        watch.refuse(rate)


def test_weights_that_overflow_are_not_saved_and_masks_may_be_infinite():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.register_buffer("mask", torch.tensor([-torch.inf, 0.0]))
    refuse_weights(model, 5, 0.1)
    model[1].running_var[0] = torch.nan
    with pytest.raises(Diverged, match=r"1 of 7 tensors .* after step 5 .*, 1\.running_var first"):
        refuse_weights(model, 5, 0.1)
    model[1].running_var[0], model[0].weight.data[0, 0] = 1.0, torch.inf
    with pytest.raises(Diverged, match=r"0\.weight first"):
        refuse_weights(model, 5, 0.1)


# Runs


def break_embedding(monkeypatch, step, row, rank=0):
    """From this step on, a row of this rank's part of the batch is NaN."""
    original = FaceModule.forward

    def broken(self, images):
        embeddings = original(self, images)
        if self.training and self.progress.step >= step and int(os.environ.get("LOCAL_RANK", 0)) == rank:
            embeddings = torch.cat([embeddings[:row], embeddings[row : row + 1] * torch.nan, embeddings[row + 1 :]])
        return embeddings

    monkeypatch.setattr(FaceModule, "forward", broken)


def follow(advice, where):
    """The overrides that the last line recommends, as a shell and Hydra read them."""
    words = shlex.split(re.search(r'"backbone\.weights=.* job=', advice)[0])[:-1]
    assert [word.split("=", 1)[0] for word in words] == ["backbone.weights", "loss.classifier.weights"]
    assert all(word.split("=", 1)[1] == f"'{where}/checkpoints/last.ckpt'" for word in words)
    return words


def test_a_run_stops_before_its_checkpoint_and_the_advice_is_true(tmp_path, monkeypatch):
    where = tmp_path / "backbone=tiny,optimizer.lr=0.1"  # as jobs are named
    break_embedding(monkeypatch, step=5, row=2)
    with pytest.raises(ValueError, match=r"in step 6 \(learning rate") as told:
        run(where, "trainer.accumulate=1")
    text = str(told.value)
    assert "gradient not computed, " in text
    assert re.search(r"embeddings of 1 of 16 images are not, the first is image \d+ of the data\.", text)
    assert f"checkpoint is {where}/checkpoints/last.ckpt, of step 4; the same command goes on" in text
    assert_finite(where)
    with pytest.raises(ValueError, match=r"in step 6 .*of step 4"):  # to the same end
        run(where, "trainer.accumulate=1")
    monkeypatch.undo()
    # Another rate is another configuration: refused here, and welcome elsewhere, with these weights.
    with pytest.raises(ValueError, match=r"another configuration \(optimizer\.lr: 0\.1 → 0\.01\)"):
        run(where, "trainer.accumulate=1", "optimizer.lr=0.01")
    run(tmp_path / "other", "trainer.accumulate=1", "optimizer.lr=0.01", *follow(text, where))
    assert run(where, "trainer.accumulate=1")["steps"] == 9  # and what healed goes on


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path, monkeypatch):
    original, seen = FaceModule._clip, {}

    def clip(self):
        if self.progress.step == 5:
            seen.update({key: value.clone() for key, value in self.state_dict().items()}, module=self)
            next(self.backbone.parameters()).grad[0] = torch.inf
        return original(self)

    monkeypatch.setattr(FaceModule, "_clip", clip)
    with pytest.raises(ValueError, match=r"in step 6 .*gradient norm inf, [\d.]+ the step before\); all embeddings"):
        run(tmp_path / "run")
    after = seen.pop("module").state_dict()
    assert all(torch.equal(value, after[key]) for key, value in seen.items())


@pytest.mark.parametrize(
    ("options", "step"),
    [
        (("trainer.log_every=100", "trainer.save_every_steps=4"), 4),  # found before the saving after step 8
        (("trainer.log_every=7", "trainer.save_every_steps=100"), 0),  # found at the row of the log after step 7
        (("trainer.log_every=100", "trainer.save_every_steps=100"), 0),  # found before the validation
    ],
)
def test_a_gpu_is_asked_before_anything_is_saved(tmp_path, monkeypatch, options, step):
    """Without the look at each step, and with losses that pass NaN on: as on a GPU."""
    monkeypatch.setattr(FaceModule, "stops_at_once", False)
    monkeypatch.setattr("facelab.loss.classifier.require_finite", lambda *_: None)
    break_embedding(monkeypatch, step=5, row=2)
    with pytest.raises(ValueError, match=r"is nan in step 6 .*gradient norm nan, .*embeddings of \d+ of 16") as told:
        run(tmp_path / "run", *options)
    assert f"of step {step};" in str(told.value)
    assert_finite(tmp_path / "run")


def test_weights_that_a_finite_step_made_infinite_are_not_saved(tmp_path, monkeypatch):
    original = FaceModule.training_step

    def overflow(self, batch, number):
        original(self, batch, number)
        if self.progress.step == 6:
            next(self.backbone.parameters()).data[0] = torch.inf

    monkeypatch.setattr(FaceModule, "training_step", overflow)
    with pytest.raises(ValueError, match=r"not finite after step 6 .*, backbone.* first; .* of step 4;"):
        run(tmp_path / "run")
    assert_finite(tmp_path / "run")


def test_a_folder_names_the_file(tmp_path, monkeypatch):
    break_embedding(monkeypatch, step=0, row=0)
    original = FaceModule.__init__

    def named(self, *arguments, **rest):
        original(self, *arguments, **rest)
        self.watch.source = Named()

    monkeypatch.setattr(FaceModule, "__init__", named)
    assert hasattr(FolderFaces, "name")
    with pytest.raises(ValueError, match=r"first is image (\d+) of the data \(person/\1\.jpg\)"):
        run(tmp_path / "run")


def _two(rank, folder, port):
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    patch = pytest.MonkeyPatch()
    two = ("trainer.devices=2", "trainer.accumulate=2", "loss=sum", "trainer.accelerator=cpu")
    run(folder / "good", *two, "trainer.max_steps=4", "trainer.log_every=2")
    pair = [f"{key}='{folder}/good/checkpoints/last.ckpt'" for key in ("backbone.weights", "loss.classifier.weights")]
    break_embedding(patch, step=5, row=1, rank=1)
    with pytest.raises(ValueError, match="in step 6 ") as told:
        run(folder / "bad", *two, *pair, "loss.classifier.frozen=true")
    (folder / f"told{rank}").write_text(str(told.value))
    patch.undo()
    run(folder / "bad", *two, *pair, "loss.classifier.frozen=true")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_two, args=(folder, port), nprocs=2)
    return folder


def test_two_ranks_stop_together_with_one_word(two):
    first, second = ((two / f"told{rank}").read_text() for rank in range(2))
    assert first == second
    # Of 8 images a rank and 4 a part the first part, since the loss refuses it: rows 0…3 of rank 0, then rank 1's.
    assert "embeddings of 1 of 8 images are not" in first
    assert "last.ckpt, of step 4;" in first
    assert_finite(two / "bad")


def test_two_ranks_train_a_sum_keep_its_parts_and_freeze_its_centres(two):
    _, *shards = files_of(two / "good" / "checkpoints" / "last.ckpt")
    assert [shard.name for shard in shards] == ["last.ckpt.shard-0-of-2.4", "last.ckpt.shard-1-of-2.4"]
    key = "model.loss.parts.arcface.classifier.weight"
    for shard, after in zip(shards, files_of(two / "bad" / "checkpoints" / "last.ckpt")[1:], strict=True):
        assert torch.equal(tensors(shard)[key], tensors(after)[key])
        assert not any("momentum" in name for name in tensors(after))
    rows = [row.split(",") for row in (two / "good" / "metrics.csv").read_text().splitlines()]
    table = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    trained = [{k: float(v) for k, v in row.items() if v} for row in table if row["train/loss"]]
    assert len(trained) == 2
    for row in trained:
        total = row["train/loss/arcface"] + 0.1 * row["train/loss/triplet"]
        assert row["train/loss"] == pytest.approx(total, rel=1e-5)
        assert 0 <= row["train/accuracy/triplet"] <= 1
    assert Path(two / "bad" / "metrics.json").is_file()
