"""Kills on purpose, at a place that a test chooses; for processes that a test forks or starts."""

import os
import signal


def strike() -> None:
    """SIGKILL to this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def strike_in(owner, name: str, count: int, before: bool) -> None:
    """Kills this process at the `count`-th call of `owner.name`, just before or just after it."""
    original = getattr(owner, name)
    calls = 0

    def struck(*args, **kwargs):
        nonlocal calls
        calls += 1
        if before and calls == count:
            strike()
        result = original(*args, **kwargs)
        if calls == count:
            strike()
        return result

    setattr(owner, name, struck)
