"""How far work is: a bar with rate and time left, or lines now and then where nobody watches."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["SECONDS_BETWEEN_LINES", "Rate", "Tracker", "console", "track"]

SECONDS_BETWEEN_LINES = 15  # where the output is a file, a line now and then stands for the bar


def console() -> Console:
    """Where the program talks: standard output, as wide as the terminal, at least 100 columns in a file."""
    return Console(width=None if sys.stdout.isatty() else 110, highlight=False, soft_wrap=False)


class Rate(ProgressColumn):
    """Images a second, or what else is counted, over the last seconds."""

    def render(self, task: Any) -> Text:
        """The rate that the last call told."""
        return Text(f"{_digits(task.fields.get('rate', 0))} {task.fields.get('unit', 'images')}/s", style="cyan")


def _digits(rate: float) -> str:
    """A rate with as many digits as say something."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def track(batches: Iterable[Any], total: int, what: str, enabled: bool) -> Iterator[Any]:
    """The batches, with a bar of images, images/s and the time left; lines now and then where nobody watches.

    Args:
        batches: each with `images`.
        total: images in all of them.
        what: is being done, a word in front of the bar.
        enabled: false shows nothing.
    """
    done = 0
    with Tracker(what, enabled) as tell:
        for batch in batches:
            yield batch
            done += len(batch.images)
            tell(done, total)


class Tracker:
    """How far work is: a bar, or lines now and then where nobody watches; nothing within the first second.

    Args:
        what: is being done, a word in front of the bar.
        enabled: false shows nothing.
        unit: what is counted.
    """

    def __init__(self, what: str, enabled: bool, unit: str = "images"):
        self.what, self.enabled, self.unit = what, enabled, unit
        self.began = self.spoken = time.perf_counter()
        self._bar: Progress | None = None

    def __enter__(self) -> "Tracker":
        return self

    def __call__(self, done: int, total: int) -> None:
        """So many of all are done."""
        now = time.perf_counter()
        if not self.enabled or now - self.began < 1:
            return
        rate = done / (now - self.began)
        if sys.stdout.isatty():
            if self._bar is None:
                words = TextColumn(f"{{task.completed:,}}/{{task.total:,}} {self.unit}")
                columns = (TextColumn(self.what), BarColumn(), words, Rate(), TimeRemainingColumn())
                self._bar = Progress(*columns, console=console(), transient=True)
                self._bar.start()
                self._bar.add_task(self.what, total=total, rate=rate, unit=self.unit)
            self._bar.update(self._bar.task_ids[0], completed=done, rate=rate)
        elif now - self.spoken > SECONDS_BETWEEN_LINES:
            self.spoken = now
            left = f"  {(total - done) / rate:,.0f} s left" if done else ""
            unit = self.unit
            print(f"{self.what}  {done:,}/{total:,} {unit}  {_digits(rate)} {unit}/s{left}", flush=True)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
