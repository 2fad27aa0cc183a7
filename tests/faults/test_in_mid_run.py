"""What may happen to a run in its middle: disks, clocks, workers, images. One line, and nothing lost."""

import errno
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import ranks
from full_disk import room_for
from short_of_memory import Short
from works import Training

from facelab.data import process_loader
from facelab.data.albumentation import Albumentations
from facelab.data.plan import Plan
from facelab.data.process_loader import ProcessLoader
from facelab.data.torch_loader import TrainLoader
from facelab.training import checkpoint, fit
from facelab.training.module import FaceModule

SHORT = ("trainer.max_steps=8", "trainer.save_every_steps=2", "trainer.log_every=1")
AT = 5  # the step in which it happens


def prepared(folder, kind, *more):
    """A kind of run, and where one was left alone."""
    work = Training(kind, folder, *SHORT, *more)
    work.run(folder / "alone")
    assert work.damaged(folder / "alone") == []
    return work, folder / "alone"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("rendered"), "averaged")


@pytest.fixture(scope="module")
def by_processes(tmp_path_factory):
    """Of files, which two processes decode and augment."""
    # Nothing is decoded long before it is needed, nor is a validation in between, at which the loader would begin anew.
    late = ("data.loader.prefetch=1", "trainer.validate_every=3")
    return prepared(tmp_path_factory.mktemp("processes"), "processes", *late)


@contextmanager
def at_step(monkeypatch, happens, step=AT):
    """While this context is open, `happens` is called at the beginning of a step."""
    original = FaceModule.training_step

    def training_step(self, batch, number):
        if self.progress.step == step:
            happens()
        original(self, batch, number)

    with monkeypatch.context() as patched:
        patched.setattr(FaceModule, "training_step", training_step)
        yield


def goes_on(work, alone, where):
    """Whatever is there is whole, and the same command comes to the same end."""
    assert work.damaged(where) == []
    last = checkpoint.read_meta(where / "checkpoints" / "last.ckpt")
    work.run(where)
    assert work.unlike(alone, where) == []
    return last["step"]


# Disks


def test_no_room_for_a_checkpoint(rendered, tmp_path, monkeypatch):
    work, alone = rendered
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fills_up():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    try:
        with (
            at_step(monkeypatch, fills_up),
            pytest.raises(OSError, match=r"last\.ckpt cannot be written \(.*free some"),
        ):
            work.run(tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert goes_on(work, alone, tmp_path / "run") in (2, 4)


def test_no_room_for_what_comes_at_the_end(rendered, tmp_path, monkeypatch):
    work, alone = rendered
    for owner, name, file in ((fit, "save_all", "scores/heldout.npz"), (fit.report, "draw", "report.png")):
        write = getattr(owner, name)

        def full(*given, write=write):
            with room_for(200):
                write(*given)

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, full)
            with pytest.raises(OSError, match="File too large") as caught:
                work.run(tmp_path / "run")
        assert caught.value.errno == errno.EFBIG
        assert caught.value.filename == str(tmp_path / "run" / file)
    goes_on(work, alone, tmp_path / "run")


@pytest.fixture
def disk(tmp_path):
    """Mounts a file system in memory, of so many bytes; where nobody may, the test is skipped aloud."""
    mounted = []

    def mount(size):
        folder = tmp_path / "disk"
        folder.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "facelab-test", str(folder)]
        if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
            pytest.skip("needs the right to mount a file system (root)")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_and_is_emptied_again(rendered, tmp_path, monkeypatch, disk):
    work, alone = rendered
    where = disk("16m") / "run"

    def others_fill_it():
        with suppress(OSError), open(where.parent / "of others", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    with (
        at_step(monkeypatch, others_fill_it),
        pytest.raises(OSError, match=r"run/.* cannot be written \(No space left"),
    ):
        work.run(where)
    (where.parent / "of others").unlink()
    assert goes_on(work, alone, where) in (2, 4)


def test_a_disk_that_may_only_be_read(rendered, disk):
    folder = disk("1m")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    with pytest.raises(ValueError, match=r"run directory .*run cannot be written \(Read-only file system\): give anot"):
        rendered[0].run(folder / "run")


def test_a_disk_that_may_only_be_read_from_now_on(rendered, tmp_path, monkeypatch):
    """As a kernel leaves it behind errors of the hardware."""
    work, alone = rendered
    make, closed = tempfile.mkstemp, []

    def mkstemp(*given, **named):
        if closed and Path(named["dir"]).is_relative_to(tmp_path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), named["dir"])
        return make(*given, **named)

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    with at_step(monkeypatch, lambda: closed.append(True)), pytest.raises(OSError, match="Read-only file system"):
        work.run(tmp_path / "run")
    closed.clear()
    assert goes_on(work, alone, tmp_path / "run") in (2, 4)


# Clocks


def test_no_result_depends_on_a_clock(rendered, tmp_path, monkeypatch):
    """Clocks jump years to and fro, files come from the future, and checkpoints by the minute at any moment."""
    work, alone = rendered
    chance, clocks = random.Random(1), (time.time, time.monotonic)
    work = Training("averaged", tmp_path, *SHORT, "trainer.save_every_minutes=1")

    def stop():
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        for clock in clocks:
            patched.setattr(time, clock.__name__, lambda clock=clock: clock() + chance.uniform(-1e8, 1e8))
        with at_step(monkeypatch, stop), pytest.raises(fit.Interrupted, match="after step 6"):
            work.run(tmp_path / "run")
        for file in (tmp_path / "run").rglob("*"):
            os.utime(file, (4e9, 4e9))  # 2096
        assert goes_on(work, alone, tmp_path / "run") == 6


# Workers


def own_processes():
    """The loader's; ranks that other tests keep ready are none."""
    known = {process for process, _ in ranks._started}
    return [child for child in multiprocessing.active_children() if child not in known]


def kill_one():
    """A process of the loader's dies, as Linux kills it where memory is short."""
    processes = own_processes()
    assert len(processes) >= 2
    for process in processes:  # all: which one will be asked next is not known
        os.kill(process.pid, signal.SIGKILL)


def test_a_worker_is_killed(by_processes, tmp_path, monkeypatch):
    work, alone = by_processes
    words = r"augments images ended unasked \(exit code -9\): where memory is short, lower data\.loader\.processes"
    began = time.monotonic()
    with at_step(monkeypatch, kill_one), pytest.raises(ValueError, match=words):
        work.run(tmp_path / "run")
    assert time.monotonic() - began < 60, "a hang, which no other test would end"
    assert own_processes() == []
    assert goes_on(work, alone, tmp_path / "run") >= 2


def loaders():
    known = {"source": Short(), "subset": np.arange(40), "labels": np.zeros(40, np.int64), "plan": Plan(40, 8, seed=1)}
    known |= {"seed": 1, "draws": 1, "start": 0, "stop": 5, "rank": 0, "world": 1, "prefetch": 2, "pin": False}
    yield TrainLoader(threads=2, **known)
    yield ProcessLoader(Albumentations(["ToGray"]), 2, **known)


@pytest.mark.parametrize("number", [0, 1], ids=["threads", "processes"])
def test_a_worker_without_memory_says_so(number):
    with pytest.raises(ValueError, match=r"^image 17 \(identity 0\) cannot be loaded: memory ran out; lower data"):
        list(list(loaders())[number])


def test_a_process_without_memory_for_a_batch_says_so(monkeypatch):
    def ended(*given):
        raise MemoryError

    monkeypatch.setattr(process_loader, "_augment", ended)
    monkeypatch.setattr(process_loader.signal, "signal", lambda *given: None)
    ours, theirs = multiprocessing.Pipe()
    ours.send((np.arange(2), np.arange(2), (8, 8, 3)))
    ours.send(None)  # which ends it, in this process
    with pytest.raises(TypeError):
        process_loader._work(theirs, None, None)
    assert ours.recv().startswith("a process that augments images failed with MemoryError: where memory is short")


# Images


def test_an_image_is_damaged_while_the_run_goes_on(by_processes, tmp_path, monkeypatch):
    """It was whole when images were looked at; the line names it, and mended, the run goes on."""
    work, alone = by_processes
    faces = Path(work.plain["data"]["root"])
    kept = shutil.copytree(faces, tmp_path / "kept")

    def damage():
        for file in faces.rglob("*.jpg"):
            file.write_bytes(file.read_bytes()[:200])

    try:
        with at_step(monkeypatch, damage), pytest.raises(ValueError, match=r"^image \d+ .*p\d\d.* cannot be loaded"):
            work.run(tmp_path / "run")
    finally:
        shutil.copytree(kept, faces, dirs_exist_ok=True)
    assert goes_on(work, alone, tmp_path / "run") >= 2
