"""What goes to W&B is a copy: a W&B that fails costs nobody a run."""

import logging
import os
import socket
from types import SimpleNamespace

import pytest
import wandb

from facelab.training import logging as logging_room
from facelab.training.logging import Copy, _has_key, wandb_logger
from facelab.training.preemption import Interrupted


class Broken:
    """A logger whose W&B has gone away."""

    version = "abc"

    def __init__(self, error):
        self.error, self.calls = error, 0

    @property
    def experiment(self):
        self.calls += 1
        raise self.error

    def log_metrics(self, values, step):
        self.calls += 1
        raise self.error


def test_a_failure_is_told_once_and_the_run_goes_on(tmp_path, caplog):
    broken = Broken(BrokenPipeError("the service\nis gone"))
    copy = Copy(broken)
    assert copy.version == "abc"
    with caplog.at_level(logging.WARNING):
        copy.log({"loss": 1.0}, 1)
        copy.log({"loss": 1.0}, 2)
        copy.publish({"lfw/accuracy": 1.0}, tmp_path / "report.png")
        copy.finish()
    assert broken.calls == 1
    assert [record.getMessage() for record in caplog.records] == [
        "W&B has failed (the service is gone); the run goes on without it, its record is complete"
    ]


def test_failing_at_the_end_costs_no_run_either(tmp_path):
    broken = Broken(BrokenPipeError())
    Copy(broken).publish({}, tmp_path / "report.png")
    assert broken.calls == 1


def test_an_interruption_is_no_failure():
    with pytest.raises(Interrupted):
        Copy(Broken(Interrupted("twice"))).log({}, 1)


def test_no_logger(tmp_path):
    copy = Copy(None)
    copy.log({}, 1)
    copy.publish({}, tmp_path)
    copy.finish()
    assert copy.version is None


@pytest.fixture
def settings(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    found = SimpleNamespace(api_key=None, base_url="https://api.wandb.ai")
    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=found))
    return found


def test_a_key_is_found_wherever_it_lies(monkeypatch, tmp_path, settings):
    assert not _has_key()
    (tmp_path / "netrc").write_text("machine elsewhere login user password secret\n")
    os.chmod(tmp_path / "netrc", 0o600)
    assert not _has_key()
    settings.base_url = "https://elsewhere/"
    assert _has_key()
    settings.base_url = "https://api.wandb.ai"
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert _has_key()


@pytest.fixture
def server(monkeypatch):
    """A socket of this machine, at which W&B is told to be; closed, nobody answers there."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        url = f"http://127.0.0.1:{opened.getsockname()[1]}"
        monkeypatch.setattr(
            wandb, "setup", lambda: SimpleNamespace(settings=SimpleNamespace(base_url=url, api_key="k"))
        )
        monkeypatch.setattr(logging_room, "getproxies", dict)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        yield opened


def modes(monkeypatch):
    """The modes in which W&B is started from now on; it does not start."""
    seen = []

    def start(settings, **options):
        seen.append(settings.mode)
        raise wandb.errors.CommError("no answer")

    monkeypatch.setattr(wandb, "init", start)
    return seen


def started(mode, folder):
    return wandb_logger("p", None, mode, folder, {}, "group", "job", "train", [])


def test_a_wandb_that_cannot_start_ends_in_one_line(monkeypatch, tmp_path, server):
    seen = modes(monkeypatch)
    with pytest.raises(ValueError, match=r"W&B cannot be started \(no answer\): set logger\.mode=offline"):
        started("online", tmp_path)
    assert seen == ["online"]


def test_a_server_that_is_not_there_is_found_out_at_once(monkeypatch, tmp_path, server, caplog):
    seen = modes(monkeypatch)
    server.close()
    with pytest.raises(
        ValueError, match=r"W&B cannot be reached \(127\.0\.0\.1: Connection refused\): set logger\.mode"
    ):
        started("online", tmp_path)
    assert seen == []
    with pytest.raises(ValueError, match="cannot be started"):  # by our `start`, which never does
        started("auto", tmp_path)
    assert seen == ["offline"]
    assert "this run is offline" in caplog.text


def test_behind_a_proxy_w_and_b_asks_for_itself(monkeypatch, tmp_path, server):
    seen = modes(monkeypatch)
    server.close()
    monkeypatch.setattr(logging_room, "getproxies", lambda: {"http": "http://proxy"})
    with pytest.raises(ValueError, match="cannot be started"):
        started("auto", tmp_path)
    assert seen == ["online"]
