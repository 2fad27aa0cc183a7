"""Signals at random moments; after each the same command again, until the end, which is that of one left alone.

A few here; hundreds, and of every kind of training, in `make soak`.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import enduring
import pytest
from works import WORKS, Place

ASKED = {"training, much of it": 5, "prepare": 8, "export, torchscript": 3}


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    done = subprocess.run(
        [
            *(sys.executable, Path(__file__).with_name("enduring.py"), tmp_path_factory.mktemp("struck")),
            *("--work", *ASKED, "--signals", *map(str, ASKED.values()), "--seed", "3"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_nothing_is_lost(starts):
    for work, wanted in ASKED.items():
        own = [start for start in starts if start["work"] == work]
        assert sum(start["struck"] for start in own) == wanted
        assert own[-1]["status"] in (0, enduring.THERE_ALREADY)


def test_it_was_really_struck(starts):
    struck = [start for start in starts if start["struck"]]
    assert len({start["signal"] for start in struck}) >= 4
    assert len({start["place"] for start in struck}) >= 6
    ends = {start["status"] for start in struck}
    assert {-signal.SIGKILL, enduring.INTERRUPTED} <= ends


# The harness itself must be able to fail


@pytest.fixture
def endured(tmp_path, monkeypatch, capsys):
    """Ends as it must for a work that runs in a fork of this process."""

    def endure(work):
        monkeypatch.setitem(WORKS, "made up", lambda folder: work)
        with pytest.raises(SystemExit) as left:
            enduring.endure("made up", tmp_path, 6, 1)
        return str(left.value)

    return endure


class Step:
    """What a made-up work calls once in a while."""

    def step(self):
        pass


class Counting:
    """Writes a number, in two parts; goes on where it was."""

    signals = (signal.SIGKILL,)
    places: ClassVar = {"step": Place(Step, "step")}

    def run(self, where):
        where.mkdir(exist_ok=True)
        for number in range(3):
            Step().step()
            (where / "numbers").open("a").write(f"{number}\n")

    def damaged(self, where):
        return []

    def unlike(self, alone, struck):
        return ["numbers"] * ((alone / "numbers").read_text() != (struck / "numbers").read_text())


def test_a_work_that_begins_again_in_what_is_there_is_found_out(endured):
    assert "these differ: numbers" in endured(Counting())


def test_a_damaged_file_is_found_out(endured):
    class Damaged(Counting):
        def damaged(self, where):
            return ["numbers"]

    assert "these are damaged: numbers" in endured(Damaged())


def test_an_error_is_no_way_to_end(endured):
    class Failing(Counting):
        def run(self, where):
            if where.exists():
                raise RuntimeError("cannot go on")
            super().run(where)

    assert "ended with status 1" in endured(Failing())


def test_a_hang_is_found_out(endured, monkeypatch):
    class Hanging(Counting):
        signals = (signal.SIGUSR1,)

        def run(self, where):
            super().run(where)
            if where.parent.name == "2":
                signal.pause()

    monkeypatch.setattr(enduring, "PATIENCE", 0.2)
    monkeypatch.setattr(enduring, "plan", lambda *told: enduring.Strike(signal.SIGUSR1, "step", 1, 0, None))
    assert "hangs" in endured(Hanging())
