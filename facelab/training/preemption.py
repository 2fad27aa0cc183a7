"""Stopping well: a signal asks, the run answers at the end of the batch."""

import signal
from types import FrameType, TracebackType
from typing import Any


class Interrupted(Exception):
    """The run was asked to stop and has saved its checkpoint; `str()` says how to go on."""


class StopRequest:
    """While this context is open, SIGINT (Ctrl-C) and SIGTERM only set `received`; a second one stops at once.

    What the second one raises is no KeyboardInterrupt: Lightning would end the process on that, without a word.

    Nothing is saved inside a signal handler: it may have interrupted anything, the checkpoint's own writing included.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise Interrupted(
                "stopped at once by a second signal, without saving; the same command, started again, goes on from the "
                "last checkpoint"
            )
        self.received = signal.Signals(number).name
