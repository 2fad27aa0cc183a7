"""Times every stage of the way from a file to a score, in turn: whatever else the machine does slows all alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np

from facelab.alignment import similarities, warp
from facelab.latency.engines import Engine
from facelab.latency.threads import Used, Watch
from facelab.prepare.photograph import read

__all__ = ["BEFORE", "Measured", "Spread", "measure"]

BEFORE = ("read", "detect", "align")  # stages that all engines share
_PROVED = 0.5  # seconds of each engine's work, at least, whose threads are counted


class Spread(NamedTuple):
    """Of some times, milliseconds."""

    median: float
    p95: float
    p99: float


@dataclass
class Measured:
    """Times of one engine, or of the stages before it.

    Attributes:
        seconds: stage → one for each repetition.
        used: what its work took of the machine, by which its threads are counted.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    used: Used | None = None

    def spread(self, *stages: str) -> Spread:
        """Of the sum of these stages, repetition by repetition."""
        total = 1000 * np.sum([self.seconds[stage] for stage in stages], axis=0)
        return Spread(*(float(value) for value in np.percentile(total, (50, 95, 99))))


def measure(
    engines: Sequence[Engine],
    photographs: Sequence[np.ndarray],
    detector: Callable[[np.ndarray], list[Any]] | None,
    repetitions: int,
    progress: Callable[[int, int], None],
) -> tuple[Measured, list[Measured]]:
    """Times all stages, `repetitions` times, one photograph after another; each engine twice beforehand, to warm up.

    Args:
        engines: that embed.
        photographs: encoded, (n,) uint8 each; with a detector, one face at least on each.
        detector: finds faces; None: the photographs are aligned faces.
        repetitions: R.
        progress: told of repetitions, (done, all).

    Returns:
        Of the shared stages, and of each engine: `embed`, `mirror` and `compare`, and in front of them the stages that
        all share, so that sums are of one repetition.
    """
    shared, own = Measured(), [Measured() for _ in engines]
    for number in range(-2, repetitions):
        encoded = photographs[number % len(photographs)]
        times, faces = _before(encoded, detector, {engine.size for engine in engines})
        for engine, measured in zip(engines, own, strict=True):
            found = {**times, **_after(engine, faces[engine.size])}
            if number >= 0:
                _add(measured, found)
        if number >= 0:
            _add(shared, times)
            progress(number + 1, repetitions)
    for engine, measured in zip(engines, own, strict=True):
        measured.used = _proved(lambda engine=engine: engine.run(faces[engine.size]))  # type: ignore[misc]
    shared.used = _proved(lambda: _before(photographs[0], detector, set(faces)))
    return shared, own


def _before(encoded: np.ndarray, detector: Any, sizes: set[int]) -> tuple[dict[str, float], dict[int, np.ndarray]]:
    """Seconds of the shared stages, and the aligned face (1,S,S,3) RGB of each size."""
    clock = time.perf_counter
    began = clock()
    image = read(encoded)
    times = {"read": clock() - began}
    if detector is None:
        return times, {size: _rgb(_square(image, size)) for size in sizes}
    began = clock()
    faces = detector(image)
    times["detect"] = clock() - began
    best = max(faces, key=lambda face: face.score)
    aligned = {}
    for size in sorted(sizes, reverse=True):  # the time of the smallest stays: it is the usual one
        began = clock()
        aligned[size] = _rgb(warp(image, similarities(best.points[None], size)[0], size))
        times["align"] = clock() - began
    return times, aligned


def _after(engine: Engine, face: np.ndarray) -> dict[str, float]:
    clock = time.perf_counter
    began = clock()
    row = engine.run(face)
    embedded = clock()
    both = row + engine.run(np.ascontiguousarray(face[:, :, ::-1]))
    mirrored = clock()
    both /= np.linalg.norm(both)
    float(both[0] @ row[0])
    return {"embed": embedded - began, "mirror": mirrored - embedded, "compare": clock() - mirrored}


def _proved(work: Callable[[], Any]) -> Used:
    """What some calls take of the machine, long enough for its clocks."""
    work()
    with Watch() as watch:
        began = time.perf_counter()
        while time.perf_counter() - began < _PROVED:
            work()
    return watch.used


def _add(measured: Measured, times: Mapping[str, float]) -> None:
    for stage, seconds in times.items():
        measured.seconds.setdefault(stage, []).append(seconds)


def _square(image: np.ndarray, size: int) -> np.ndarray:
    return image if image.shape[:2] == (size, size) else cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def _rgb(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[None, ..., ::-1])
