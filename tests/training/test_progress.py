"""How far long work is: lines with rate and time left where nobody watches, and silence for what is soon done."""

from types import SimpleNamespace

import pytest

from facelab import tracking
from facelab.tracking import Tracker, track


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test turns."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(tracking, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_lines_say_rate_and_time_left(clock, capsys):
    with Tracker("looking at images", True) as tell:
        for _ in range(4):
            clock.now += 60
            tell(int(clock.now - 100) * 50, 20_000)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "looking at images  3,000/20,000 images  50 images/s  340 s left"
    assert len(lines) == 4


def test_slow_work_has_a_rate_too_and_what_has_not_begun_has_none(clock, capsys):
    with Tracker("soak", True, "signals") as tell:
        clock.now += 20
        tell(0, 10)
        clock.now += 20
        tell(5, 10)
    assert capsys.readouterr().out.splitlines() == [
        "soak  0/10 signals  0 signals/s", "soak  5/10 signals  0.12 signals/s  40 s left",
    ]  # fmt: skip


def test_not_a_line_for_every_batch(clock, capsys):
    with Tracker("embedding", True) as tell:
        for done in range(1, 301):
            clock.now += 0.1
            tell(done, 300)
    assert 1 <= len(capsys.readouterr().out.splitlines()) <= 30 / tracking.SECONDS_BETWEEN_LINES


@pytest.mark.parametrize(("enabled", "seconds"), [(False, 1000), (True, 0.01)])
def test_silence(clock, capsys, enabled, seconds):
    batches = [SimpleNamespace(images=range(8)) for _ in range(5)]
    for seen, batch in enumerate(track(batches, 40, "embedding", enabled)):
        assert batch is batches[seen]
        clock.now += seconds
    assert capsys.readouterr().out == ""


def test_somebody_who_watches_sees_a_bar(clock, monkeypatch):
    from rich.console import Console

    drawn = Console(force_terminal=True, width=100, record=True)
    monkeypatch.setattr(tracking, "console", lambda: drawn)
    monkeypatch.setattr(tracking.sys.stdout, "isatty", lambda: True, raising=False)
    with Tracker("embedding", True) as tell:
        clock.now += 2
        tell(100, 400)
    assert "100/400 images" in drawn.export_text()
