"""A process that dies takes the others along within seconds, with one word; what was saved is whole."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from test_cli import TINY, start

from facelab.training import company
from facelab.training.checkpoint import Tensors, read_meta
from facelab.training.company import Company, Lost
from facelab.training.preemption import Interrupted

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
FAIL = [sys.executable, "-S", "-c", "raise SystemExit(3)"]
BROKEN = dist.DistBackendError("Connection closed by peer [127.0.0.1]:1234")


def way_on():
    return "That is all"


@pytest.fixture
def children():
    """A process that will end, and one that lives on."""
    started = []

    def begin(*commands):
        started.extend(subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in commands)
        return started

    yield begin
    for child in started:
        child.kill()
        child.wait()


def leave(error, *processes):
    with Company(way_on) as left:
        left.adopt(list(processes))
        raise error


def test_rank_0_tells_who_was_killed_and_ends_the_others(children):
    first, second = children(SLEEP, SLEEP)
    second.kill()
    began = time.monotonic()
    with pytest.raises(Lost) as told:
        leave(BROKEN, first, second)
    assert str(told.value) == (
        "rank 2 was killed by SIGKILL, by hand or for lack of memory; all processes of this run have ended. That is all"
    )
    assert first.returncode == -signal.SIGKILL
    assert time.monotonic() - began < company.PATIENCE


def test_who_ended_with_an_error_has_told_it(children):
    first, second = children(FAIL, SLEEP)
    with pytest.raises(Lost, match=r"^rank 1 ended with an error, told above; all"):
        leave(BROKEN, first, second)


def test_where_all_live_the_line_is_broken(children, monkeypatch):
    monkeypatch.setattr(company, "PATIENCE", 0.2)
    with pytest.raises(Lost, match=r"^the connection to another process is lost.*\(Connection closed by peer"):
        leave(BROKEN, *children(SLEEP))


def test_an_error_of_rank_0_keeps_its_word_and_ends_the_others(children):
    with pytest.raises(OSError, match="disk"):
        leave(OSError("disk"), *children(SLEEP))
    assert children()[0].returncode == -signal.SIGKILL


def test_who_heard_the_same_signal_leaves_by_himself(children):
    ending = [sys.executable, "-S", "-c", "import time; time.sleep(0.3)"]
    with pytest.raises(Interrupted):
        leave(Interrupted("x"), *children(ending))
    assert children()[0].returncode == 0


def test_a_fault_of_ours_stays_one():
    with pytest.raises(RuntimeError, match="shape"):
        leave(RuntimeError("shape"))


@pytest.mark.parametrize(("rank", "word"), [("1", r"^rank 0 was killed"), ("2", r"^$")])
def test_one_of_those_left_behind_tells_of_rank_0(monkeypatch, rank, word):
    monkeypatch.setenv(company.FIRST, str(os.getpid()))  # not our parent: as if that had died
    monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(Lost, match=word), Company(way_on):
        raise BROKEN


def test_who_waits_for_ever_is_ended(tmp_path):
    """As in NCCL: the main thread never comes out of its collective."""
    stuck = f"""
import subprocess, sys, time
from facelab.training import company
company.PATIENCE = 0.5
with company.Company(lambda: "That is all") as us:
    us.adopt([subprocess.Popen({FAIL!r}), subprocess.Popen({SLEEP!r})])
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", stuck], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    assert done.stderr == (
        "facelab: rank 1 ended with an error, told above; all processes of this run have ended. That is all\n"
    )


def test_a_rank_killed_in_training_ends_the_run_in_one_line(tmp_path):
    long = ("trainer.epochs=1000", "trainer.save_every_steps=2", "trainer.log_every=2", "trainer.validate_every=500")
    two = ("trainer.devices=2", "trainer.accelerator=cpu", "trainer.precision=fp32", "trainer.progress=false")
    process = start(tmp_path, *TINY, *long, *two, "logger=csv", "job=two")
    run = tmp_path / "runs" / "default" / "two"
    until = time.monotonic() + 120
    while not (run / "metrics.csv").is_file() or (run / "metrics.csv").read_text().count("\n") < 4:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)
    (child,) = [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    os.kill(child, signal.SIGKILL)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 30  # a loaded machine; not the half hour of gloo
    assert process.returncode == 1
    step = read_meta(run / "checkpoints" / "last.ckpt")["step"]
    assert [line for line in err.splitlines() if line.startswith("facelab: ")] == [
        "facelab: rank 1 was killed by SIGKILL, by hand or for lack of memory; all processes of this run have ended. "
        f"The same command goes on from {run}/checkpoints/last.ckpt, of step {step:,}"
    ]
    assert "Traceback" not in err
    main = run / "checkpoints" / "last.ckpt"
    stored = Tensors([main, *(main.with_name(name) for name in read_meta(main)["shards"])])
    assert stored.rows("model.loss.classifier.weight") == read_meta(main)["num_classes"]
    for key in stored.keys():  # noqa: SIM118
        assert stored.read(key, None).isfinite().all()
