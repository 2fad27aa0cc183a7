"""Damaged checkpoints: found before anything is taken from them; the one before is, and the run ends the same."""

import errno
import json
import os
import random
import shutil
import threading
from types import SimpleNamespace

import killing
import pytest
import torch
from killing import compose
from ranks import on_ranks
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from facelab.training import checkpoint, fit, saving, stored
from facelab.training.background import Writer
from facelab.training.keeper import Keeper
from facelab.training.module import FaceModule
from facelab.training.stored import Damaged, Start, choose, files_of, read_meta, verify

META = {"step": 7, "note": "a text of some length, in which a bit may flip as well"}


class Rows(nn.Module):
    """What a checkpoint needs to know of a module; with rows that belong to ranks."""

    def __init__(self, rank=0, world=1):
        super().__init__()
        self.centres = nn.Parameter(torch.arange(12.0).reshape(6, 2)[rank::world])
        self.backbone = nn.Linear(3, 2, dtype=torch.bfloat16)
        self.register_buffer("count", torch.tensor(5))
        self.sharded = ["centres"]
        self.shard_start, self.shard_stop = rank * len(self.centres), (rank + 1) * len(self.centres)


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def content(path):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()["facelab"]  # noqa: SIM118


def test_a_damaged_header_is_not_told_whole(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoint.save(path, Rows(), None, {**META, "note": "x" * 5000})
    path.write_bytes(path.read_bytes().replace(b"__metadata__", b"__metadatum_"))
    with pytest.raises(Damaged) as told:
        read_meta(path)
    assert str(path) in str(told.value)
    assert len(str(told.value)) < 500 + len(str(path))


def test_any_flipped_bit_is_found(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoint.save(path, Rows(), None, META)
    whole, good = path.read_bytes(), content(path)
    assert verify(path)["note"] == META["note"]
    bits = 8 * len(whole)
    tensors = 8 * (len(whole) - sum(value.nbytes for value in good[0].values()))
    for bit in [*random.Random(0).sample(range(bits), 200), *range(tensors, bits, 5)]:
        flip(path, bit)
        try:
            verify(path)
        except ValueError:
            pass
        else:  # a blank that fills the header up
            assert bit < tensors
            assert content(path)[1] == good[1]
            assert all(torch.equal(value, good[0][key]) for key, value in content(path)[0].items())
        path.write_bytes(whole)


def test_who_reads_one_tensor_is_told_of_that_one(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoint.save(path, Rows(), None, META)
    flip(path, 8 * path.stat().st_size - 3)  # the last tensor of the file
    told = []
    for key in content(path)[0]:
        try:
            stored.Tensors([path]).read(key, (0, 1))
        except Damaged as error:
            told.append(str(error))
    assert len(told) == 1
    assert "is not what its checksum says): delete it, or take the other one" in told[0]


def test_blocks_add_up_to_the_whole(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "last.ckpt", Rows(), None, META)
    monkeypatch.setattr(stored, "_BLOCK", 20)  # of which a row of two numbers does not divide the tensor
    verify(tmp_path / "last.ckpt")


def test_a_file_without_checksums_is_read_as_it_is(tmp_path):
    path = tmp_path / "last.ckpt"
    text = json.dumps({"format": 1, "shards": [], **META})
    save_file({"model.a": torch.ones(2)}, path, {"facelab": text})
    assert choose(path, tmp_path / "previous.ckpt").meta["step"] == 7
    # But not one that has lost them.
    save_file({"model.a": torch.ones(2)}, path, {"facelab": json.dumps({**json.loads(text), "crc32": True})})
    with pytest.raises(Damaged, match="its text is not what its checksum says"):
        verify(path)


# Which one a run goes on from


def saved(folder, steps):
    for step in steps:
        args = (folder / "last.ckpt", Rows(), None, {**META, "step": step})
        saving.write([checkpoint.take(*args, previous=folder / "previous.ckpt")])
    return folder / "last.ckpt", folder / "previous.ckpt"


def test_the_one_before_is_taken_aloud(tmp_path):
    assert choose(tmp_path / "last.ckpt", tmp_path / "previous.ckpt") is None
    last, previous = saved(tmp_path, (3, 5, 5, 9))
    assert (read_meta(last)["step"], read_meta(previous)["step"]) == (9, 5)
    assert choose(last, previous)[::2] == (last, "")
    os.truncate(last, last.stat().st_size - 1)
    start = choose(last, previous)
    assert (start.path, start.meta["step"]) == (previous, 5)
    assert start.told.startswith(f"checkpoint {last} is damaged (last.ckpt: ")
    assert start.told.endswith("going on from previous.ckpt, of step 5")
    last.unlink()
    assert "(last.ckpt is missing); going on from previous.ckpt" in choose(last, previous).told
    flip(previous, 8 * previous.stat().st_size - 1)
    with pytest.raises(ValueError, match=r"is whole \(last\.ckpt is missing; previous\.ckpt: .*\): put back a copy"):
        choose(last, previous)


def test_a_saving_of_the_same_step_is_no_predecessor(tmp_path):
    _, previous = saved(tmp_path, (3, 5))
    first = previous.read_bytes()
    saved(tmp_path, (5,))
    assert previous.read_bytes() == first


def test_a_file_system_without_second_names(tmp_path, monkeypatch):
    def never(*names):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", never)
    last, previous = saved(tmp_path, (3, 5))
    assert (read_meta(last)["step"], read_meta(previous)["step"]) == (5, 3)


# In the background


def test_what_is_written_is_what_was_there_when_training_stood_still(tmp_path, monkeypatch):
    begun, go_on, original = threading.Event(), threading.Event(), saving.save_file

    def slow(*arguments, **rest):
        begun.set()
        assert go_on.wait(10)
        original(*arguments, **rest)

    monkeypatch.setattr(saving, "save_file", slow)
    model, writer, path = Rows(), Writer(background=True), tmp_path / "last.ckpt"
    before = model.centres.detach().clone()
    with torch.inference_mode():  # as after a validation
        writer.start([writer.take(path, model, None, META)])
    assert begun.wait(10)
    with torch.no_grad():
        model.centres.mul_(-1)
    assert not path.exists()
    go_on.set()
    writer.finish()
    assert torch.equal(content(path)[0]["model.centres"], before)
    writer.start([writer.take(path, model, None, META)])  # into the same memory
    writer.close()
    assert torch.equal(content(path)[0]["model.centres"], -before)


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_ends_the_run_with_the_line_it_always_had(tmp_path, monkeypatch, background):
    calls, original = [], saving.save_file

    def full(*arguments, **rest):
        calls.append(1)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(*arguments, **rest)

    monkeypatch.setattr(saving, "save_file", full)
    config, plain = compose(f"trainer.save_in_background={str(background).lower()}", *FEW)
    with pytest.raises(OSError, match=r"last\.ckpt cannot be written \(No space left on device\): mend that .* before"):
        fit.train(config, plain, tmp_path / "run", one_process=False)
    assert len(calls) == 4
    assert not list(tmp_path.rglob(".unfinished-*"))
    monkeypatch.undo()
    assert fit.train(config, plain, tmp_path / "run", one_process=False)["steps"] == 8


def job(rank, world, folder):
    path, previous = folder / "last.ckpt", folder / "previous.ckpt"
    writer, model = Writer(background=True), Rows(rank, world)
    for step in (3, 5, 5, 9):  # of one step twice: the main file waits for the second shards
        with torch.no_grad():
            model.centres.add_(1)
        writer.finish()
        writer.start([writer.take(path, model, None, {**META, "step": step}, previous=previous)])
    writer.finish()
    if rank == 0:
        assert (verify(path)["step"], verify(previous)["step"]) == (9, 5)
        shards = [file.name for one in (path, previous) for file in files_of(one)[1:]]
        assert sorted(shards) == sorted(file.name for file in folder.glob("*.shard-*"))
        low, high = (content(file)[0]["model.centres"] for file in files_of(path)[1:])
        assert torch.equal(torch.stack([low, high], 1).reshape(6, 2), torch.arange(12.0).reshape(6, 2) + 4)
    original = saving.save_file

    def full(*arguments, **rest):
        raise OSError(errno.ENOSPC, "No space left on device")

    saving.save_file = full if rank == 1 else original
    try:
        writer.start([writer.take(path, model, None, {**META, "step": 11}, previous=previous)])
        told = "No space left" if rank == 1 else "another process could not write"
        with pytest.raises(OSError, match=told):
            writer.finish()
        writer.close()  # at once, though the other shard never comes
    finally:
        saving.save_file = original
    if rank == 0:
        assert choose(path, previous)[::2] == (path, "")
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    run = SimpleNamespace(last=path)
    for start in (None if rank else Start(path, META, ""), Start(path, {"step": 5 + rank}, "")):
        with pytest.raises(ValueError, match="the processes find different checkpoints"):
            Keeper(run, None, {}, None, None, start, background=True).setup(trainer, None, "fit")
    Keeper(run, None, {}, None, None, Start(path, META, ""), background=True).setup(trainer, None, "fit")


def test_two_ranks_write_and_fail_together(tmp_path):
    on_ranks((2,), job, tmp_path)
    shard = tmp_path / "last.ckpt.shard-1-of-2.9"
    kept = shard.read_bytes()
    flip(shard, 8 * len(kept) - 1)
    for spoil in (lambda: None, shard.unlink):
        spoil()
        start = choose(tmp_path / "last.ckpt", tmp_path / "previous.ckpt")
        assert (start.meta["step"], shard.name in start.told) == (5, True)
    shutil.copy(tmp_path / "last.ckpt.shard-1-of-2.5", shard)
    assert "of another saving than last.ckpt" in choose(tmp_path / "last.ckpt", tmp_path / "previous.ckpt").told


# Runs

FEW = ("trainer.epochs=2", "trainer.max_steps=8", "trainer.validate_every=0.5", "trainer.accumulate=1")


class Stopped(Exception):
    """A power failure."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One that was left alone, and one that stopped in mid-epoch, after some savings."""
    folder = tmp_path_factory.mktemp("damaged")
    config, plain = compose(*FEW)
    fit.train(config, plain, folder / "alone", one_process=False)
    step = FaceModule.training_step

    def stopping(self, batch, number):
        if self.progress.step == 7:
            raise Stopped
        step(self, batch, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FaceModule, "training_step", stopping)
        with pytest.raises(Stopped):
            fit.train(config, plain, folder / "stopped", one_process=False)
    return folder


def rows(folder):
    lines = (folder / "metrics.csv").read_text().splitlines()
    clock = [lines[0].split(",").index(name) for name in ("images_per_s", "seconds")]
    return [[cell for place, cell in enumerate(line.split(",")) if place not in clock] for line in lines]


@pytest.mark.parametrize("damage", ["bit", "short", "gone"])
def test_a_run_goes_on_from_the_one_before_and_ends_the_same(runs, tmp_path, capsys, damage):
    shutil.copytree(runs / "stopped", tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    steps = [read_meta(last.with_name(name))["step"] for name in ("last.ckpt", "previous.ckpt")]
    assert steps[0] > steps[1] > 0
    if damage == "bit":
        flip(last, 8 * last.stat().st_size - 50)
    elif damage == "short":
        os.truncate(last, 5000)
    else:
        last.unlink()
    config, plain = compose(*FEW)
    fit.train(config, plain, tmp_path / "run", one_process=False)
    out = capsys.readouterr().out
    assert f"going on from previous.ckpt, of step {steps[1]}\n" in out
    assert f"resumed at step {steps[1]}" in out
    for name in ("last.ckpt", "best.ckpt", "previous.ckpt"):
        ours, theirs = (content(one / "checkpoints" / name)[0] for one in (tmp_path / "run", runs / "alone"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items()), name
    assert rows(tmp_path / "run") == rows(runs / "alone")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert "going on from previous.ckpt" in environment["starts"][-1]["damaged"]


def test_the_one_before_stays_while_the_last_is_damaged(runs, tmp_path, monkeypatch):
    """Killed again before it has saved, and after it has saved once."""
    shutil.copytree(runs / "stopped", tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    flip(last, 8 * last.stat().st_size - 50)
    kept = last.with_name("previous.ckpt").read_bytes()
    original, saved = saving.write_file, []

    def once(path, tensors, meta):
        original(path, tensors, meta)
        saved.append(path.name)
        if path.name == "last.ckpt":
            raise Stopped

    monkeypatch.setattr(saving, "write_file", once)
    config, plain = compose(*FEW, "trainer.save_in_background=false")
    with pytest.raises(Stopped):
        fit.train(config, plain, tmp_path / "run", one_process=False)
    assert saved[-1] == "last.ckpt"
    assert last.with_name("previous.ckpt").read_bytes() == kept
    verify(last)


def test_both_damaged_ends_in_one_line(runs, tmp_path):
    shutil.copytree(runs / "stopped", tmp_path / "run")
    for name in ("last.ckpt", "previous.ckpt"):
        path = tmp_path / "run" / "checkpoints" / name
        path.write_bytes(path.read_bytes()[:-9])
    config, plain = compose(*FEW)
    with pytest.raises(ValueError, match=r"no checkpoint in .*checkpoints is whole \(last.*; previous.*\): put back"):
        fit.train(config, plain, tmp_path / "run", one_process=False)


def test_the_best_is_missed(runs, tmp_path):
    shutil.copytree(runs / "alone", tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    (tmp_path / "run" / "checkpoints" / "best.ckpt").unlink()
    config, plain = compose(*FEW)
    with pytest.raises(FileNotFoundError, match=r"best\.ckpt, chosen at step \d+, is missing"):
        fit.train(config, plain, tmp_path / "run", one_process=False)


@pytest.mark.parametrize("place", killing.PLACES)
def test_every_place_of_the_kills_is_there(place):
    child = os.fork()
    if child == 0:
        try:
            killing.PLACES[place](1)
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
