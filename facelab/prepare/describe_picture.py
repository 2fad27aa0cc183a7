"""Draws what a set is like: six panels, three of images per identity and three of a sample's images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from facelab.atomic import atomic
from facelab.report import style

if TYPE_CHECKING:
    from facelab.prepare.describe import Look, Tail

WIDTH, HEIGHT, DPI = 13.0, 7.4, 110  # inches and dots per inch
GROUPS = {"many": style.BLUE, "medium": style.ORANGE, "few": style.VERMILLION}


def draw(file: Path, name: str, tail: Tail, look: Look, many: int, few: int) -> None:
    """Writes the picture.

    Args:
        file: a PNG.
        name: of the set.
        tail: images per identity.
        look: what a sample's images look like.
        many: bound of the group.
        few: bound of the group.
    """
    with matplotlib.rc_context():
        matplotlib.rcParams.update(style.SETTINGS)
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, 3)
        _curve(axes[0, 0], tail, many, few)
        _histogram(axes[0, 1], tail)
        _lorenz(axes[0, 2], tail)
        _sizes(axes[1, 0], look)
        _light(axes[1, 1], look)
        _sharpness(axes[1, 2], look)
        images = int(tail.counts.sum())
        about = f"{name}: {images:,} images of {len(tail.counts):,} identities; {len(look.pixels):,} images looked at"
        figure.suptitle(_printable(about), x=0.01, ha="left", fontweight="bold")
        with atomic(file) as temporary:
            figure.savefig(temporary, dpi=DPI, format="png")


def _printable(text: str) -> str:
    """A dollar sign would begin a formula, and half letters have no shape."""
    return text.replace("$", r"\$").encode("utf-8", "replace").decode()


def _curve(axes: Axes, tail: Tail, many: int, few: int) -> None:
    """Images of each identity, the most first."""
    ranks = np.arange(1, len(tail.counts) + 1)
    axes.plot(ranks, tail.counts, color=style.INK, drawstyle="steps-mid")
    axes.set_xscale("log")
    axes.set_yscale("log")
    begin = 0
    for group, colour in GROUPS.items():
        number = tail.groups[group]["identities"]
        if number:
            label = f"{group}: {number:,} identities, {tail.groups[group]['images']:,} images"
            low, high = max(begin + 0.5, 0.5), begin + number + 0.5
            axes.axvspan(low, high, color=colour, alpha=0.18, linewidth=0, label=label)
        begin += number
    for bound in (many, few):
        axes.axhline(bound, color=style.GREY, linewidth=0.8, linestyle=style.DASHED)
    axes.set_title("Images of each identity")
    axes.set_xlabel("identities, the largest first")
    axes.set_ylabel("images")
    style.plain_logarithm(axes)
    axes.legend(loc="lower left")


def _histogram(axes: Axes, tail: Tail) -> None:
    """How many identities have so many images."""
    low, high = int(tail.counts[-1]), int(tail.counts[0])
    edges = np.unique(np.round(np.geomspace(low, high + 1, 41))) - 0.5 if high > low + 40 else None
    bins = np.arange(low, high + 2) - 0.5 if edges is None else edges
    axes.hist(tail.counts, bins=bins.tolist(), color=style.BLUE)
    if edges is not None:
        axes.set_xscale("log")
    axes.axvline(np.median(tail.counts), color=style.INK, linestyle=style.DASHED, label="median")
    axes.set_title("How many have so many")
    axes.set_xlabel("images of an identity")
    axes.set_ylabel("identities")
    axes.legend()


def _lorenz(axes: Axes, tail: Tail) -> None:
    """Which share of the images the largest identities have."""
    share = np.concatenate([[0], np.cumsum(tail.counts) / tail.counts.sum()])
    axes.plot(np.linspace(0, 100, len(share)), 100 * share, color=style.BLUE)
    axes.plot([0, 100], [0, 100], color=style.GREY, linewidth=0.8, linestyle=style.DASHED, label="all have as many")
    axes.set_title(f"Gini {tail.gini:.3f}, imbalance ratio {tail.imbalance:.4g}")
    axes.set_xlabel("% of the identities, the largest first")
    axes.set_ylabel("% of the images")
    axes.legend(loc="lower right")


def _sizes(axes: Axes, look: Look) -> None:
    """Resolutions, or where there is only one, what the files weigh."""
    if not len(look.pixels):
        return style.empty(axes, "no image was looked at")
    one = look.pixels.min() == look.pixels.max()
    axes.hist(look.kilobytes if one else look.pixels, bins=40, color=style.GREEN)
    axes.set_title(f"All have {look.pixels[0]:g} pixels a side" if one else "Resolution")
    axes.set_xlabel("KiB of a file" if one else "√(height · width) in pixels")
    axes.set_ylabel("images")


def _light(axes: Axes, look: Look) -> None:
    """Brightness and contrast."""
    if not len(look.pixels):
        return style.empty(axes, "no image was looked at")
    bins = np.linspace(0, 255, 52).tolist()
    axes.hist(look.brightness, bins=bins, color=style.ORANGE, alpha=0.7, label="brightness (mean)")
    axes.hist(look.contrast, bins=bins, color=style.PURPLE, alpha=0.7, label="contrast (standard deviation)")
    axes.set_title("Light")
    axes.set_xlabel("grey value")
    axes.set_ylabel("images")
    axes.legend()


def _sharpness(axes: Axes, look: Look) -> None:
    """Blurred images lie on the left."""
    if not len(look.pixels):
        return style.empty(axes, "no image was looked at")
    shown = np.maximum(look.sharpness, 1e-2)
    axes.hist(shown, bins=np.geomspace(shown.min(), shown.max() * 1.001, 41).tolist(), color=style.SKY)
    axes.set_xscale("log")
    axes.axvline(np.median(shown), color=style.INK, linestyle=style.DASHED, label="median")
    axes.set_title("Sharpness")
    axes.set_xlabel("variance of the Laplacian, blurred on the left")
    axes.set_ylabel("images")
    axes.legend()
    return None
