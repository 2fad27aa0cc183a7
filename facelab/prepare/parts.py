"""Work on very many images that can be stopped at any moment: it is done in parts, each kept as a file when complete.

A part is one file: a line of JSON that says what became of each of its images, then the faces' JPEGs one behind the
other. It has its name only when it is complete, and lies in a hidden folder beside the place of the finished set.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from facelab.atomic import atomic
from facelab.prepare.photograph import Unusable

__all__ = ["Made", "Outcome", "Part", "work"]

_CHUNK = 8  # images that a thread takes at once
_AHEAD = 32  # chunks for each thread that may be done before their turn, while a part goes to disk


class Made(NamedTuple):
    """A face."""

    jpeg: bytes
    about: dict[str, Any]  # what is to be known of it, plain values


class Outcome(NamedTuple):
    """What became of an image.

    Attributes:
        image: its number in the source.
        length: bytes of the JPEG, 0 where there is none.
        about: of a face, else {"reason": …, "detail": …}.
    """

    image: int
    length: int
    about: dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A part's file. What it says of its images is read again whenever it is asked for: there may be very many.

    Attributes:
        file: its place.
        seconds: that it took.
    """

    file: Path
    seconds: float

    @classmethod
    def read(cls, file: Path) -> "Part | None":
        """What is known of a part; None where it is not there, or not complete."""
        try:
            with open(file, "rb") as opened:
                line = opened.readline()
            head = json.loads(line)
            complete = file.stat().st_size == len(line) + sum(length for _, length, _ in head["outcomes"])
            return cls(file, head["seconds"]) if complete else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def outcomes(self) -> list[Outcome]:
        """What became of its images, in their order."""
        with open(self.file, "rb") as opened:
            return [Outcome(*fields) for fields in json.loads(opened.readline())["outcomes"]]

    def faces(self) -> Iterator[tuple[Outcome, bytes]]:
        """Its faces, in their order."""
        outcomes = self.outcomes()
        with open(self.file, "rb") as opened:
            opened.readline()
            for outcome in outcomes:
                if outcome.length:
                    yield outcome, opened.read(outcome.length)


def work(
    source: Any,
    make: Callable[[np.ndarray], Made],
    folder: Path,
    size: int,
    threads: int,
    tell: Callable[[int, int], None],
    stop: Callable[[int], None],
) -> list[Part]:
    """Makes a face of each image of a source, in threads; what lies in the folder already is not made again.

    Args:
        source: images with `encoded(index)`.
        make: a face of an image's bytes; raises Unusable.
        folder: where parts are kept.
        size: images of a part.
        threads: how many work.
        tell: is told how many images are done in this call, and how many there are to do.
        stop: is called now and then with the number of all images done; what it raises ends the work.

    Returns:
        All parts, in their order.
    """
    ranges = [range(first, min(first + size, len(source))) for first in range(0, len(source), size)]
    parts = [Part.read(folder / _name(number)) for number in range(len(ranges))]
    missing = [number for number, part in enumerate(parts) if part is None]
    todo = sum(len(ranges[number]) for number in missing)
    chunks = (
        (number, ranges[number][first : first + _CHUNK])
        for number in missing
        for first in range(0, len(ranges[number]), _CHUNK)
    )
    done, kept, began = 0, len(source) - todo, time.perf_counter()
    results: list[tuple[int, Made | Unusable]] = []
    for (number, chunk), made in _in_order(lambda item: _make(source, make, item[1]), chunks, threads):
        results += made
        done += len(chunk)
        if chunk.stop == ranges[number].stop:
            now = time.perf_counter()
            parts[number] = _write(folder / _name(number), results, now - began)
            kept += len(results)
            results, began = [], now
        tell(done, todo)
        stop(kept)
    return [part for part in parts if part is not None]


def _name(number: int) -> str:
    return f"{number:08d}.part"


def _make(source: Any, make: Callable[[np.ndarray], Made], chunk: range) -> list[tuple[int, Made | Unusable]]:
    results: list[tuple[int, Made | Unusable]] = []
    for index in chunk:
        try:
            results.append((index, make(_encoded(source, index))))
        except Unusable as error:
            results.append((index, error))
        except MemoryError:
            results.append((index, Unusable("unreadable", "does not fit in memory")))
    return results


def _encoded(source: Any, index: int) -> np.ndarray:
    try:
        return source.encoded(index)
    except OSError as error:
        raise Unusable("unreadable", error.strerror or str(error)) from None
    except ValueError as error:  # a damaged record
        raise Unusable("unreadable", " ".join(str(error).split())) from None


def _write(file: Path, results: Sequence[tuple[int, Made | Unusable]], seconds: float) -> Part:
    outcomes = [
        Outcome(index, len(made.jpeg), made.about)
        if isinstance(made, Made)
        else Outcome(index, 0, {"reason": made.reason, "detail": made.detail})
        for index, made in results
    ]
    with atomic(file) as temporary, open(temporary, "wb") as opened:
        opened.write(json.dumps({"outcomes": outcomes, "seconds": seconds}).encode() + b"\n")
        opened.writelines(made.jpeg for _, made in results if isinstance(made, Made))
    return Part(file, seconds)


def _in_order(function: Callable[[Any], Any], items: Iterable[Any], threads: int) -> Iterator[tuple[Any, Any]]:
    """Each item with what the function makes of it, in their order; threads work a little ahead."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="facelab-prepare")
    waiting: deque[tuple[Any, Future]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > _AHEAD * threads:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
