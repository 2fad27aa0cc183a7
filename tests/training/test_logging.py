"""What goes to a logger is a copy: a logger that fails costs nobody a run."""

import logging

import pytest

from facelab.training.logging import Copy, rows_of
from facelab.training.preemption import Interrupted


class Broken:
    """A logger that has gone away."""

    name, identity = "W&B", "abc"

    def __init__(self, error):
        self.error, self.calls = error, []

    def __getattr__(self, name):
        def fail(*arguments):
            self.calls.append((name, *arguments))
            raise self.error

        return fail


def test_a_failure_is_told_once_and_the_run_goes_on(tmp_path, caplog):
    broken = Broken(BrokenPipeError("the service\nis gone"))
    copy = Copy(broken)
    assert copy.version == "abc"
    with caplog.at_level(logging.WARNING):
        copy.log({"loss": 1.0}, 1)
        copy.log({"loss": 1.0}, 2)
        copy.publish({"lfw/accuracy": 1.0}, tmp_path)
        copy.finish()
        copy.log({"loss": 1.0}, 3)
    # It is closed all the same, as a run that has come to its end: another job of this process may follow.
    assert broken.calls == [("log", {"loss": 1.0}, 1), ("finish", True)]
    assert [record.getMessage() for record in caplog.records] == [
        "W&B has failed (the service is gone); the run goes on without it, its record is complete"
    ]


def test_failing_at_the_end_costs_no_run_either(caplog):
    broken = Broken(BrokenPipeError())
    with caplog.at_level(logging.WARNING):
        Copy(broken).finish()
    assert broken.calls == [("finish", False)]
    assert "(BrokenPipeError)" in caplog.text


def test_an_interruption_is_no_failure():
    with pytest.raises(Interrupted):
        Copy(Broken(Interrupted("twice"))).log({}, 1)


def test_no_logger(tmp_path):
    copy = Copy(None)
    copy.follow(tmp_path / "metrics.csv")
    copy.log({}, 1)
    copy.publish({}, tmp_path)
    copy.finish()
    assert copy.version is None
    assert copy.about == {}


def test_rows_are_numbers_and_empty_cells_are_none(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,images,lr\n0,0,\n5,80,0.1\n6,9")
    assert rows_of(tmp_path / "metrics.csv") == [{"step": 0.0, "images": 0.0}, {"step": 5.0, "images": 80.0, "lr": 0.1}]
    assert rows_of(tmp_path / "none.csv") == []
