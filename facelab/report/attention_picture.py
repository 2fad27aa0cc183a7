"""The picture of attention maps: faces, what the students see of them, and the maps as heat over the faces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from facelab.atomic import atomic
from facelab.report import style
from facelab.report.attention_numbers import regions

CELL, GAP, NOTE = 1.75, 0.12, 0.2  # inches: side of a face, between two, for the words under a map
LEFT, RIGHT, TOP, BOTTOM = 0.2, 0.95, 0.62, 1.2  # inches around all
DPI = 130
HEAT, OPACITY = "inferno", 0.62  # its lightness rises evenly: readable in print, and without red or green
FINE = 224  # pixels at which outlines are found, whatever the image has: no stairs
EXTREMES = (1, 99)  # percentiles of all maps' values where the colours end: a map's border may stand out alone


@dataclass(frozen=True)
class Column:
    """One column of the picture, a row for each face.

    Attributes:
        title: in bold.
        subtitle: below it.
        images: (F,H,H,3) uint8 RGB.
        maps: (F,H,H) laid over them as heat; or None.
        notes: F words, one below each map; or none.
        foot: lines below the column.
    """

    title: str
    subtitle: str
    images: np.ndarray
    maps: np.ndarray | None = None
    notes: Sequence[str] = ()
    foot: Sequence[str] = ()


def draw(out: Path, columns: Sequence[Column], caption: str) -> Path:
    """Draws the columns beside each other, all maps in one scale of colours.

    Args:
        out: where the picture (PNG) goes.
        columns: at least one of them with maps.
        caption: lines below all.

    Returns:
        The picture's path.
    """
    faces, high = len(columns[0].images), CELL + NOTE
    width = LEFT + len(columns) * (CELL + GAP) - GAP + RIGHT
    height = TOP + faces * high + BOTTOM
    values = np.concatenate([column.maps.ravel() for column in columns if column.maps is not None])
    low, top = np.percentile(values, EXTREMES)
    scale = Normalize(low, max(top, low + 1e-6))
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever a user's matplotlibrc says
        matplotlib.rcParams.update(style.SETTINGS)
        figure = Figure(figsize=(width, height), dpi=DPI)
        canvas = FigureCanvasAgg(figure)
        for i, column in enumerate(columns):
            x = LEFT + i * (CELL + GAP)
            for row in range(faces):
                y = height - TOP - row * high - CELL
                axes = figure.add_axes((x / width, y / height, CELL / width, CELL / height))
                _face(axes, column, row, scale)
            middle = (x + CELL / 2) / width
            figure.text(middle, 1 - 0.22 / height, column.title, ha="center", fontsize=10, fontweight="bold")
            figure.text(middle, 1 - 0.42 / height, column.subtitle, ha="center", fontsize=8, color=style.GREY)
            for line, words in enumerate(column.foot):
                place = (BOTTOM - 0.08 - 0.17 * line) / height
                figure.text(middle, place, words, ha="center", va="top", fontsize=8)
        figure.text(LEFT / width, 0.12 / height, caption, fontsize=8, color=style.GREY, va="bottom", linespacing=1.5)
        _bar(figure, scale, width, height, faces * high - NOTE)
        with atomic(out) as temporary:
            canvas.print_png(temporary)
    return out


def _face(axes: Axes, column: Column, row: int, scale: Normalize) -> None:
    axes.set_axis_off()
    image, size = column.images[row], column.images.shape[1]
    if column.maps is None:
        axes.imshow(image, interpolation="nearest")
        return
    axes.imshow(image.mean(2), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.imshow(column.maps[row], cmap=HEAT, norm=scale, alpha=OPACITY, interpolation="bilinear")
    places = (np.arange(FINE) + 0.5) * size / FINE - 0.5
    for region in regions(FINE).values():
        axes.contour(places, places, region, levels=[0.5], colors="white", linewidths=0.7, alpha=0.8)
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    if column.notes:
        axes.text(0.5, -0.02, column.notes[row], transform=axes.transAxes, ha="center", va="top", fontsize=8)


def _bar(figure: Figure, scale: Normalize, width: float, height: float, long: float) -> None:
    """The scale of colours, as they are over a middle grey."""
    part = min(long, 3 * CELL)  # of many faces
    place = ((width - RIGHT + 0.14) / width, (height - TOP - part) / height, 0.14 / width, part / height)
    axes = figure.add_axes(place, facecolor="#808080")
    bar = figure.colorbar(ScalarMappable(scale, HEAT), cax=axes, alpha=OPACITY)
    bar.outline.set_visible(False)
    bar.set_label("σ(spatial map)", fontsize=8)
    axes.grid(False)
    axes.tick_params(labelsize=7, length=2)
