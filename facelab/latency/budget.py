"""What fits in the budget? Sums of measured times, by the 99th percentile: a limit is one for every photograph."""

from typing import Any, NamedTuple

from facelab.latency.engines import Engine
from facelab.latency.stages import BEFORE, Measured

__all__ = ["Fit", "fits", "stages_of"]


class Fit(NamedTuple):
    """One way to work.

    Attributes:
        engine: network, runtime and precision.
        way: which stages, in words.
        median: milliseconds of a photograph.
        p99: the same, of the slowest in a hundred.
        fits: whether p99 is within the budget.
        more: further passes of the network (crops, further networks) that fit beside it.
    """

    engine: str
    way: str
    median: float
    p99: float
    fits: bool
    more: int


def stages_of(measured: Measured, detects: bool, mirror: bool) -> tuple[str, ...]:
    """The stages of one way to work, of those that were measured."""
    before = BEFORE if detects else ("read",)
    wanted = (*before, "embed", *(("mirror",) if mirror else ()), "compare")
    return tuple(stage for stage in wanted if stage in measured.seconds)


def fits(engines: list[Engine], measured: list[Measured], budget: float) -> list[Fit]:
    """Every engine with and without detection and mirrored image, the fastest engine first.

    Args:
        engines: E.
        measured: E.
        budget: seconds for a photograph.
    """
    rows: list[Any] = []
    for engine, one in zip(engines, measured, strict=True):
        for detects in (True, False) if "detect" in one.seconds else (False,):
            for mirror in (True, False):
                total = one.spread(*stages_of(one, detects, mirror))
                left = 1000 * budget - total.p99
                words = "detected and aligned" if detects else "aligned already"
                words += ", with mirror" if mirror else ", without mirror"
                more = max(0, int(left / one.spread("embed").p99))
                rows.append(Fit(engine.name, words, total.median, total.p99, left >= 0, more))
    order = {engine.name: one.spread("embed").median for engine, one in zip(engines, measured, strict=True)}
    return sorted(rows, key=lambda row: order[row.engine])
