"""How facelab's pictures look: one page of settings, colours that colour-blind readers can tell apart, and axes."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, NullFormatter

# Okabe and Ito's palette (Color Universal Design, 2008).
BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
INK, GREY, LIGHT = "#1a1a1a", "#6b6b6b", "#dcdcdc"
DENSITY = LinearSegmentedColormap.from_list("density", ["#ffffff", "#cfe3f1", SKY, BLUE])  # from nobody to many
DASHED = (0, (4, 2))

SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT,
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 1.4,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def plain(value: float, _: float | None = None) -> str:
    """A tick label: 0.05, 20, 1e-05."""
    return f"{value:.6g}"


def count(value: float) -> str:
    """A count in three digits: 950, 12.8 k, 1.05 M."""
    for unit, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= unit * 0.9995:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.3g}"


def percent(share: float, digits: int = 2) -> str:
    """A share in per cent; not more nines than the digits can show."""
    return f"{100 * share:.{digits}f} %"


def images_axis(axes: Axes, last: float) -> None:
    """The x axis of everything that happens in training."""
    axes.set_xlabel("images seen")
    axes.set_xlim(0, 1.02 * last)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value) if value else "0"))


def plain_logarithm(axes: Axes) -> None:
    """A logarithmic y axis with ticks at 1, 2, 5, 10 … in plain numbers."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(NullFormatter())


def empty(axes: Axes, message: str) -> None:
    """A panel without data says why."""
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(LIGHT)
    axes.text(0.5, 0.5, message, transform=axes.transAxes, ha="center", va="center", color=GREY)


def deviate(rate: np.ndarray) -> np.ndarray:
    """Rates → standard normal deviates, the scale of a DET curve; 0 and 1 become ∓inf."""
    inverse = NormalDist().inv_cdf
    rates = np.atleast_1d(np.asarray(rate, dtype=np.float64))
    return np.array([inverse(r) if 0 < r < 1 else np.copysign(np.inf, r - 0.5) for r in rates])


DEVIATE_TICKS = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)


def deviate_axis(axes: Axes, which: str, low: float, high: float) -> None:
    """Ticks in per cent on a normal-deviate axis (``x`` or ``y``) from rate ``low`` to rate ``high``."""
    ticks = [tick for tick in DEVIATE_TICKS if low <= tick <= high]
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(deviate(np.array(ticks)).tolist()))
    axis.set_major_formatter(FixedFormatter([f"{100 * tick:g}" for tick in ticks]))
    (axes.set_xlim if which == "x" else axes.set_ylim)(*deviate(np.array([low, high])))
