"""A W&B server that goes away in the middle of a run: the run is the same, and W&B gets all of it later."""

import json
import logging
import os
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))

wandb = pytest.importorskip("wandb")

from wandb_server import KEY, Server  # noqa: E402
from works import CLOCK, Training  # noqa: E402

from facelab.training import wandb_run  # noqa: E402
from facelab.training.module import FaceModule  # noqa: E402
from facelab.training.record import read_history  # noqa: E402
from facelab.training.send import send  # noqa: E402


@pytest.fixture
def server(monkeypatch, tmp_path):
    """An account of this machine, at W&B's server of this machine."""
    for name in [name for name in os.environ if name.startswith("WANDB") and name != "WANDB_SERVICE"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb_run, "getproxies", dict)
    monkeypatch.setattr(wandb_run, "LAST_WORDS", 1)
    monkeypatch.setattr(wandb_run, "LOOK_EVERY", -1)
    with Server() as opened:
        monkeypatch.setenv("WANDB_BASE_URL", opened.url)
        wandb.teardown()  # it keeps the settings of before
        yield opened
    wandb.teardown()


def test_the_run_goes_on_and_is_sent_later(tmp_path, server, monkeypatch, caplog):
    where, step = tmp_path / "runs" / "run", FaceModule.training_step
    short = ("trainer.max_steps=8", "trainer.log_every=1", "trainer.validate_every=3")
    work = Training("averaged", tmp_path, *short, "logger=wandb", "logger.mode=online")

    def training_step(self, batch, number):
        if self.progress.step == 4:
            deadline = time.monotonic() + 60
            while not any(run.history for run in server.runs.values()):  # some of it has arrived
                assert time.monotonic() < deadline, "nothing arrived"
                time.sleep(0.05)
            server.__exit__()
        step(self, batch, number)

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(FaceModule, "training_step", training_step)
        work.run(where)
    words = [record.getMessage() for record in caplog.records if record.name.startswith("facelab")]
    assert [word.split(" (")[0] for word in words].count("W&B cannot be reached any more") == 1
    assert any("facelab.training.send" in word for word in words)
    assert work.damaged(where) == []
    steps = [int(row["step"]) for row in read_history(where / "metrics.csv") if row["train/loss"]]
    assert steps == list(range(1, 9))
    # Who had no W&B comes to the same end.
    alone = Training("averaged", tmp_path, *short)
    alone.run(tmp_path / "alone")
    numbers = (json.loads((path / "metrics.json").read_text()) for path in (where, tmp_path / "alone"))
    first, second = ({key: value for key, value in found.items() if key not in CLOCK} for found in numbers)
    assert first == second
    with Server(server.port) as again:
        again.runs = server.runs  # it comes back with what it had
        (name,) = server.runs
        assert send(where) == name
        assert [row[wandb_run.STEP] for row in server.runs[name].history] == list(range(9))
