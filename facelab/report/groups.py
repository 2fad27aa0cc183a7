"""groups.png: faces of each group of a GroupFace head. It shows people, and belongs into a run directory alone."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from facelab.atomic import atomic
from facelab.report import style

SHOWN, ACROSS = 32, 12  # groups of a sheet, faces of a group
ROWS = 8  # up to so many groups stand in one column, more in two
FACE, GAP, LABEL, TOP, EDGE, DPI = 0.62, 0.1, 0.75, 0.85, 0.25, 150  # inches, dots per inch


def draw_groups(path: Path, images: np.ndarray, chosen: np.ndarray, certain: np.ndarray, groups: int) -> Path:
    """Draws the faces of each group, the surest ones first; of the groups that have faces those that have most.

    Args:
        path: of the picture.
        images: (N,H,W,3) uint8, RGB.
        chosen: (N,) the group of each.
        certain: (N,) the probability of that group.
        groups: K.

    Returns:
        The same path.
    """
    counts = np.bincount(chosen, minlength=groups)
    order = np.argsort(-counts, kind="stable")
    shown = order[: min(SHOWN, int((counts > 0).sum()))]
    columns = 1 if len(shown) <= ROWS else 2
    rows = -(-len(shown) // columns)
    wide, pitch = LABEL + ACROSS * FACE + EDGE, FACE + GAP
    width, height = EDGE + columns * wide, TOP + rows * pitch + EDGE - GAP
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style.SETTINGS)
        figure = Figure(figsize=(width, height), dpi=DPI)
        canvas = FigureCanvasAgg(figure)
        left, top = EDGE / width, lambda inches: 1 - inches / height
        figure.text(left, top(0.3), "Faces of each group", fontsize=13, fontweight="bold", va="center")
        filled = int((counts > 0).sum())
        used = f"{filled} of {groups} groups have any" + f", {SHOWN} are shown" * (filled > SHOWN)
        words = f"{len(images):,} faces, the surest of each group first; {used}; an even share is {100 / groups:.1f} %"
        figure.text(left, top(0.57), words, fontsize=8.5, color=style.GREY, va="center")
        for place, group in enumerate(shown):
            column, row = divmod(place, rows)
            x, y = EDGE + column * wide, TOP + row * pitch
            figure.text(x / width, top(y + 0.22), f"group {group}", fontsize=8.5, fontweight="bold", va="center")
            share = f"{100 * counts[group] / len(images):.1f} %"
            figure.text(x / width, top(y + 0.42), share, fontsize=8.5, color=style.GREY, va="center")
            mine = np.flatnonzero(chosen == group)
            mine = mine[np.argsort(-certain[mine], kind="stable")][:ACROSS]
            place_at = ((x + LABEL) / width, top(y + FACE), len(mine) * FACE / width, FACE / height)
            axes = figure.add_axes(place_at)
            axes.imshow(_side_by_side(images[mine]), aspect="auto")
            axes.set_axis_off()
        with atomic(path) as temporary:
            canvas.print_png(temporary)
    return path


def _side_by_side(images: np.ndarray) -> np.ndarray:
    """(n,H,W,3) → (H,n·W,3), with a thin white line behind each."""
    lined = images.copy()
    lined[:, :, -max(1, images.shape[2] // 32) :] = 255
    return np.concatenate(list(lined), axis=1)
