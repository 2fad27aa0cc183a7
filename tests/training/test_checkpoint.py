"""Checkpoints give back what was put in, bit for bit, on any number of ranks; and damaged ones say so."""

import json
import os
from dataclasses import asdict

import pytest
import torch
from ranks import on_ranks
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from facelab.loss.cosface import CosFace
from facelab.training import checkpoint, saving, stored
from facelab.training.checkpoint import Progress

C, D = 11, 4  # neither 2 nor 3 divides 11
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
}
META = {"step": 7, "progress": asdict(Progress(step=7, images=56, best={"val/accuracy": 0.5})), "config": {"seed": 1}}


class Model(nn.Module):
    """What a checkpoint needs to know of a FaceModule."""

    def __init__(self, classes=C, width=6):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, D))
        self.backbone = self.backbone.to(memory_format=torch.channels_last)
        self.loss = CosFace(embedding_size=D, num_classes=classes, scale=30.0, margin=0.2)
        self.sharded = [f"loss.{name}" for name in self.loss.sharded_parameters()]
        self.shard_start, self.shard_stop = self.loss.classifier.start, self.loss.classifier.stop


def whole(key, shape):
    """The values that belong to a name, the same on every rank."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(key) + sum(map(ord, key))))


def part(model, name, key, shape):
    if name not in model.sharded:
        return whole(key, shape)
    return whole(key, (C, *shape[1:]))[model.shard_start : model.shard_stop]


@torch.no_grad()
def filled(kind):
    """A model and its optimizer in a state in which every number belongs to its name."""
    model = Model()
    optimizer = OPTIMIZERS[kind](model.parameters())
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(part(model, name, name, value.shape))
        else:
            value.fill_(3)
    for name, parameter in model.named_parameters():
        quantities = ("momentum_buffer",) if kind == "sgd" else ("exp_avg", "exp_avg_sq")
        for quantity in quantities:
            value = part(model, name, f"{name}.{quantity}", parameter.shape)
            optimizer.state[parameter][quantity] = torch.empty_like(parameter).copy_(value)
        if kind == "adamw":
            optimizer.state[parameter]["step"] = torch.tensor(7.0)
    return model, optimizer


def empty(kind, **changes):
    torch.manual_seed(1)
    model = Model(**changes)
    return model, OPTIMIZERS[kind](model.parameters())


def assert_same(restored, expected):
    """Models and optimizers are equal to the last bit, in the same memory format."""
    for (name, a), b in zip(restored[0].state_dict().items(), expected[0].state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for (name, a), b in zip(restored[0].named_parameters(), expected[0].parameters(), strict=True):
        now, then = restored[1].state[a], expected[1].state[b]
        assert set(now) == set(then)
        for quantity in then:
            assert torch.equal(now[quantity], then[quantity]), f"{name}.{quantity}"
            assert now[quantity].dtype == then[quantity].dtype
            assert now[quantity].stride() == then[quantity].stride()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_is_saved_comes_back(tmp_path, kind):
    path = tmp_path / "last.ckpt"
    saved, restored = filled(kind), empty(kind)
    checkpoint.save(path, *saved, META)
    assert os.listdir(tmp_path) == ["last.ckpt"]
    meta = checkpoint.load(path, *restored)
    assert_same(restored, saved)
    assert {key: meta[key] for key in META} == META
    assert Progress(**meta["progress"]) == Progress(step=7, images=56, best={"val/accuracy": 0.5})


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_as_if_it_had_not_stopped(tmp_path, kind):
    images, labels = torch.randn(6, 3, 3, 3), torch.arange(6)

    def train(model, optimizer, steps):
        for step in range(steps):
            optimizer.zero_grad()
            model.loss(model.backbone(images), labels, step).loss.backward()
            optimizer.step()

    straight, saved, restored = empty(kind), empty(kind), empty(kind)
    train(*straight, 4)
    train(*saved, 2)
    checkpoint.save(tmp_path / "last.ckpt", *saved, META)
    checkpoint.load(tmp_path / "last.ckpt", *restored)
    train(*restored, 2)
    assert_same(restored, straight)


def test_the_file_is_readable_without_facelab(tmp_path):
    checkpoint.save(tmp_path / "last.ckpt", *filled("sgd"), META)
    with safe_open(tmp_path / "last.ckpt", "pt") as file:
        names = set(file.keys())
        assert json.loads(file.metadata()["facelab"])["config"] == {"seed": 1}
    assert {"model.loss.classifier.weight", "optimizer.loss.classifier.weight.momentum_buffer"} <= names
    assert {name.split(".")[0] for name in names} == {"model", "optimizer"}


def test_the_best_is_kept_without_an_optimizer(tmp_path):
    model, _ = filled("sgd")
    checkpoint.save(tmp_path / "best.ckpt", model, None, META)
    with safe_open(tmp_path / "best.ckpt", "pt") as file:
        assert {name.split(".")[0] for name in file.keys()} == {"model"}  # noqa: SIM118
    restored, _ = empty("sgd")
    checkpoint.load(tmp_path / "best.ckpt", restored)
    assert torch.equal(restored.loss.classifier.weight, model.loss.classifier.weight)


def test_an_optimizer_that_has_not_stepped(tmp_path):
    checkpoint.save(tmp_path / "last.ckpt", *empty("adamw"), META)
    restored = filled("adamw")
    checkpoint.load(tmp_path / "last.ckpt", *restored)
    assert not restored[1].state


@pytest.mark.parametrize("size", [0, 4, 100, 0.5, -1])
def test_a_truncated_file_is_named(tmp_path, size):
    path = tmp_path / "last.ckpt"
    checkpoint.save(path, *filled("sgd"), META)
    content = path.read_bytes()
    path.write_bytes(content[: int(size * len(content)) if size == 0.5 else size])
    for read in (lambda: checkpoint.read_meta(path), lambda: checkpoint.load(path, *empty("sgd"))):
        with pytest.raises(ValueError, match=r"checkpoint .*last\.ckpt cannot be read"):
            read()


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint .*none\.ckpt is not there"):
        checkpoint.read_meta(tmp_path / "none.ckpt")
    save_file({"a": torch.ones(2)}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt was not written by facelab"):
        checkpoint.load(tmp_path / "other.ckpt", *empty("sgd"))
    saving.write_file(tmp_path / "later.ckpt", {}, {"format": stored.FORMAT + 1, "shards": []})
    with pytest.raises(ValueError, match=r"later\.ckpt has format 2, this facelab reads 1"):
        checkpoint.read_meta(tmp_path / "later.ckpt")


def test_another_model_is_refused_by_names(tmp_path):
    checkpoint.save(tmp_path / "last.ckpt", *filled("sgd"), META)
    other = Model()
    other.extra = nn.Linear(2, 2)
    del other.backbone[3]
    with pytest.raises(ValueError, match=r"lacks model\.extra\.bias, .* in excess model\.backbone\.3\.bias, "):
        checkpoint.load(tmp_path / "last.ckpt", other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 8}, r"backbone\.0\.weight has shape \(6, 3, 3, 3\), the model \(8, 3, 3, 3\)"),
        ({"classes": 12}, r"loss\.classifier\.weight has shape \(11, 4\), the model \(12, 4\)"),
    ],
)
def test_another_shape_is_refused(tmp_path, changes, message):
    checkpoint.save(tmp_path / "last.ckpt", *filled("sgd"), META)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path / "last.ckpt", *empty("sgd", **changes))


@pytest.mark.parametrize("crash", ["write", "rename"])
def test_a_crash_while_saving_leaves_the_old_file(tmp_path, monkeypatch, crash):
    path = tmp_path / "last.ckpt"
    checkpoint.save(path, *filled("sgd"), META)
    before = path.read_bytes()

    def half(tensors, file, metadata):
        file.write_bytes(before[:100])
        raise OSError("disk full")

    def never(*names):
        raise OSError("disk full")

    if crash == "write":
        monkeypatch.setattr(saving, "save_file", half)
    else:
        monkeypatch.setattr(os, "replace", never)
    with pytest.raises(OSError, match=r"last\.ckpt cannot be written \(disk full\): mend that \(free some space\)"):
        checkpoint.save(path, *empty("sgd"), {**META, "step": 8})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.ckpt"]


# Shards: written on two ranks, read on one, two and three.


def job(rank, world, folder):
    for kind in OPTIMIZERS:
        if world == 2:
            path = folder / kind / "last.ckpt"
            checkpoint.save(path, *empty(kind), {**META, "step": 6})
            checkpoint.save(path, *filled(kind), META)
            checkpoint.save(folder / kind / "best.ckpt", filled(kind)[0], None, META)
        for name in ("last.ckpt", "one.ckpt"):
            restored = empty(kind)
            checkpoint.load(folder / kind / name, *restored)
            assert restored[0].shard_stop - restored[0].shard_start < C
            assert_same(restored, filled(kind))
    for classes in (C - 2, C + 2):
        with pytest.raises(ValueError, match=rf"classifier\.weight has 11 rows, the model {classes} classes"):
            checkpoint.load(folder / "sgd" / "last.ckpt", *empty("sgd", classes=classes))
    (folder / f"passed-{world}-{rank}").touch()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    for kind in OPTIMIZERS:
        checkpoint.save(folder / kind / "one.ckpt", *filled(kind), META)
    on_ranks((2, 3), job, folder)
    return folder


def test_two_and_three_ranks_read_what_two_and_one_have_written(folder):
    passed = {file.name for file in folder.glob("passed-*")}
    assert passed == {f"passed-{world}-{rank}" for world in (2, 3) for rank in range(world)}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_one_process_reads_what_two_have_written(folder, kind):
    restored = empty(kind)
    checkpoint.load(folder / kind / "last.ckpt", *restored)
    assert_same(restored, filled(kind))


def test_shards_hold_the_rows_and_older_ones_are_gone(folder):
    files = {file.name for file in (folder / "sgd").iterdir()}
    shards = {f"{name}.shard-{rank}-of-2.7" for name in ("last.ckpt", "best.ckpt") for rank in range(2)}
    assert files == shards | {"last.ckpt", "best.ckpt", "one.ckpt"}
    with safe_open(folder / "sgd" / "last.ckpt", "pt") as file:
        assert not [name for name in file.keys() if "classifier" in name]  # noqa: SIM118
    with safe_open(folder / "sgd" / "last.ckpt.shard-1-of-2.7", "pt") as file:
        assert set(file.keys()) == {
            "model.loss.classifier.weight",
            "optimizer.loss.classifier.weight.momentum_buffer",
        }
        assert file.get_slice("model.loss.classifier.weight").get_shape() == [5, D]
        assert json.loads(file.metadata()["facelab"])["start"] == 6


@pytest.fixture
def shards(folder, tmp_path):
    """A copy of the checkpoint of two ranks, to be damaged."""
    for file in (folder / "sgd").glob("last.ckpt*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / "last.ckpt"


@pytest.mark.parametrize("classes", [C - 2, C + 2])
def test_another_number_of_classes_is_refused(shards, classes):
    with pytest.raises(ValueError, match=rf"classifier\.weight has 11 rows, the model {classes} classes"):
        checkpoint.load(shards, *empty("sgd", classes=classes))


def test_a_missing_shard_is_named(shards):
    shards.with_name("last.ckpt.shard-1-of-2.7").unlink()
    with pytest.raises(FileNotFoundError, match=r"last\.ckpt needs its shard last\.ckpt\.shard-1-of-2\.7"):
        checkpoint.load(shards, *empty("sgd"))


def test_a_truncated_shard_is_named(shards):
    shard = shards.with_name("last.ckpt.shard-0-of-2.7")
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"shard-0-of-2\.7 cannot be read"):
        checkpoint.load(shards, *empty("sgd"))


def test_a_shard_is_no_checkpoint(shards):
    with pytest.raises(ValueError, match=r"shard-0-of-2\.7 is one shard of several: give the main file"):
        checkpoint.read_meta(shards.with_name("last.ckpt.shard-0-of-2.7"))


def test_one_process_that_goes_on_takes_the_shards_away(shards):
    restored = empty("sgd")
    checkpoint.load(shards, *restored)
    checkpoint.save(shards, *restored, {**META, "step": 8})
    assert os.listdir(shards.parent) == ["last.ckpt"]
    again = empty("sgd")
    checkpoint.load(shards, *again)
    assert_same(again, filled("sgd"))
