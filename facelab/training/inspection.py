"""Before a first training: are these the images that they should be, and how many are there?"""

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from facelab.data.inspect import Inspection, inspect
from facelab.training.progress import SECONDS_BETWEEN_LINES, console
from facelab.training.record import RunDirectory

FILE = "images.csv"


def look_at_images(
    source: Any, choices: Mapping[str, Any], threads: int, directory: RunDirectory, show: bool
) -> Inspection:
    """What the images of a source are; of a run that has begun, what they were then.

    Args:
        source: the data set.
        choices: data.inspect.
        threads: how many look.
        directory: the run's.
        show: whether to say how far it is.

    Raises:
        ValueError: where an image must stop the run: all of them are named in `images.csv` of the run directory, which
            then stays; or where a resumed run finds other images than it began with.
    """
    file = directory.path / FILE
    if (directory.path / "config.yaml").is_file() and file.is_file():
        return Inspection.read(file, source)
    with _Display(show and directory.writes) as tell:
        found = inspect(source, **choices, threads=threads, tell=tell)
    refusal = found.refusal(file)
    if refusal is not None:
        if directory.writes:
            found.write(file)
        raise ValueError(refusal)
    return found


def differences_from_known(source: Any, known: Mapping[str, Any] | None) -> str:
    """How the counts of a set differ from those its authors give; empty where they agree or nothing is known."""
    if not known:
        return ""
    counts = {"identities": source.num_classes, "images": len(source)}
    differing = [f"{n:,} {what} instead of {known[what]:,}" for what, n in counts.items() if n != known[what]]
    return f"not as {known['name']} is known: {', '.join(differing)}" if differing else ""


def about_images(source: Any, known: Mapping[str, Any] | None, found: Inspection) -> dict[str, str]:
    """Rows of the summary before training: only where there is something to say."""
    rows = {"known": differences_from_known(source, known)}
    if hasattr(source, "encoded"):
        rows["images"] = str(found)
    return {name: text for name, text in rows.items() if text}


def record_of_images(source: Any, known: Mapping[str, Any] | None, found: Inspection) -> dict[str, Any]:
    """The same for environment.json."""
    counts = {"identities": source.num_classes, "images": len(source)}
    return {**counts, "known": None if known is None else dict(known), "found": found.counts if found.looked else None}


class _Display:
    """A bar, or a line now and then where nobody watches; nothing for what takes less than a moment."""

    def __init__(self, enabled: bool):
        self.enabled = enabled
        self.began = self.spoken = time.perf_counter()
        self._bar: Progress | None = None

    def __enter__(self) -> "_Display":
        return self

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        rate = done / max(now - self.began, 1e-9)
        if not self.enabled or now - self.began < 1:
            return
        if sys.stdout.isatty():
            if self._bar is None:
                words = "{task.completed:,.0f}/{task.total:,.0f}  {task.fields[rate]:,.0f} images/s"
                columns = (TextColumn("looking at images"), BarColumn(), TextColumn(words), TimeRemainingColumn())
                self._bar = Progress(*columns, console=console(), transient=True)
                self._bar.start()
                self._bar.add_task("look", total=total, rate=rate)
            self._bar.update(self._bar.task_ids[0], completed=done, rate=rate)
        elif now - self.spoken > SECONDS_BETWEEN_LINES:
            self.spoken = now
            left = (total - done) / rate
            print(f"looking at images: {done:,}/{total:,}  {rate:,.0f} images/s  {left:.0f} s left", flush=True)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
