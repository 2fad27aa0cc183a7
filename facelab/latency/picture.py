"""Draws the way of a photograph under each engine, stage after stage, against the limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from facelab.atomic import atomic
from facelab.latency.budget import stages_of
from facelab.latency.engines import Engine
from facelab.latency.stages import Measured
from facelab.report import style

__all__ = ["draw", "save"]

_WIDTH, _ROW, _FRAME, _DPI = 9.0, 0.34, 1.9, 130  # inches, inches of a bar and of the rest, dots per inch
_COLORS = {
    "read": style.GREY, "detect": style.ORANGE, "align": style.PURPLE, "embed": style.BLUE, "mirror": style.SKY,
    "compare": style.INK,
}  # fmt: skip


def draw(engines: Sequence[Engine], measured: Sequence[Measured], budget: float, where: str) -> FigureCanvasAgg:
    """The picture: medians as bars, the p99 of the whole as a tick.

    Args:
        engines: E.
        measured: E.
        budget: seconds for a photograph.
        where: threads and machine, in words.
    """
    ways = [stages_of(one, True, True) for one in measured]
    totals = [one.spread(*way) for one, way in zip(measured, ways, strict=True)]
    order = sorted(range(len(engines)), key=lambda i: -totals[i].median)
    with rc_context(style.SETTINGS):
        figure = Figure(figsize=(_WIDTH, _FRAME + _ROW * len(engines)), dpi=_DPI, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for place, i in enumerate(order):
            left = 0.0
            for stage in ways[i]:
                width = measured[i].spread(stage).median
                axes.barh(place, width, left=left, height=0.66, color=_COLORS[stage])
                left += width
            axes.plot([totals[i].p99] * 2, [place - 0.33, place + 0.33], color=style.INK, lw=1.4)
            end = max(left, totals[i].p99)
            axes.annotate(
                f"{totals[i].median:.0f} ms" if totals[i].median >= 10 else f"{totals[i].median:.1f} ms",
                (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8,
            )  # fmt: skip
        axes.axvline(1000 * budget, color=style.VERMILLION, lw=1.6)
        axes.annotate(
            f"{budget:g} s", (1000 * budget, 1), (-4, -2), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="right", va="top", fontsize=9, color=style.VERMILLION,
        )  # fmt: skip
        axes.set_yticks(range(len(order)), [engines[i].name for i in order])
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0, 1.1 * max(1000 * budget, *(total.p99 for total in totals)))
        axes.set_xlabel("milliseconds for a photograph: medians of the stages; the tick is the p99 of the whole")
        axes.set_title(f"From photograph to score, with the mirrored image: {where}")
        handles = [
            axes.barh(0, 0, color=_COLORS[stage], label=stage) for stage in _COLORS if any(stage in w for w in ways)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return canvas


def save(path: Path, engines: Sequence[Engine], measured: Sequence[Measured], budget: float, where: str) -> None:
    """Writes it as PNG, whole or not at all."""
    canvas = draw(engines, measured, budget, where)
    with atomic(path) as temporary:
        canvas.print_png(str(temporary))
