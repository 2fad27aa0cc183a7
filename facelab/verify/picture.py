"""Draws a verdict: the two aligned faces, the score against the threshold, and what it stands for."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from facelab.atomic import atomic
from facelab.report import style
from facelab.verify.quality import Quality
from facelab.verify.recogniser import Comparison

__all__ = ["draw", "save"]

_WIDTH, _HEIGHT, _DPI = 6.4, 5.2, 130  # inches and dots per inch
_LONGEST = 34  # letters of a photograph's name
_VERDICTS = {
    True: ("same person", style.GREEN),
    False: ("different people", style.VERMILLION),
    None: ("no verdict asked for", style.GREY),
}


def draw(comparison: Comparison, qualities: Sequence[Quality], measured_on: str) -> FigureCanvasAgg:
    """The picture.

    Args:
        comparison: what was found.
        qualities: of the two faces.
        measured_on: where the threshold comes from, in words.
    """
    word, color = _VERDICTS[comparison.same]
    with rc_context(style.SETTINGS):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=_DPI)
        canvas = FigureCanvasAgg(figure)
        grid = figure.add_gridspec(2, 2, height_ratios=(1, 0.16), left=0.07, right=0.93, top=0.8, bottom=0.2,
                                   wspace=0.1, hspace=0.75)  # fmt: skip
        figure.text(0.07, 0.935, word, fontsize=17, fontweight="bold", color=color, va="center")
        figure.text(0.93, 0.935, f"score {comparison.score:.4f}", fontsize=13, ha="right", va="center")
        for place, (face, quality) in enumerate(zip(comparison.faces, qualities, strict=True)):
            axes = figure.add_subplot(grid[0, place])
            axes.imshow(face.pixels, interpolation="lanczos")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(False)
            for spine in axes.spines.values():
                spine.set_visible(True)
                spine.set_color(color)
                spine.set_linewidth(2)
            axes.set_title(_short(Path(face.name).name), fontsize=9, fontweight="normal")
            axes.set_xlabel(_lines(quality), fontsize=7.5, color=style.GREY)
        _scale(figure.add_subplot(grid[1, :]), comparison, color)
        figure.text(
            0.07,
            0.06,
            textwrap.fill(measured_on.replace(" %", "\u00a0%"), 96),
            fontsize=7.5,
            color=style.GREY,
            va="top",
        )
    return canvas


def save(path: Path, comparison: Comparison, qualities: Sequence[Quality], measured_on: str) -> None:
    """Writes it as PNG, whole or not at all."""
    canvas = draw(comparison, qualities, measured_on)
    with atomic(path) as temporary:
        canvas.print_png(str(temporary))


def _scale(axes: Axes, comparison: Comparison, color: str) -> None:
    low = min(-0.2, comparison.score - 0.1)
    axes.set_xlim(low, 1)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(False)
    axes.set_xlabel("cosine of the two embeddings")
    if comparison.point is not None:
        threshold = comparison.point.threshold
        axes.axvspan(low, threshold, color=style.VERMILLION, alpha=0.13, lw=0)
        axes.axvspan(threshold, 1, color=style.GREEN, alpha=0.13, lw=0)
        axes.axvline(threshold, color=style.INK, ls=style.DASHED, lw=1.2)
        right = threshold > 0.75
        axes.text(threshold, 1.12, f"threshold {threshold:.3f}", fontsize=8, ha="right" if right else "left")
    axes.plot([comparison.score], [0.5], marker="o", ms=9, color=color, clip_on=False)


def _lines(quality: Quality) -> str:
    """In two lines, which fit below a face."""
    words = str(quality).split(", ")
    return ", ".join(words[:2]) + ("\n" + ", ".join(words[2:]) if len(words) > 2 else "")


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2]}…{name[-_LONGEST // 2 :]}"
