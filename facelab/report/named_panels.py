"""The panels of a classification, and of searches: how often the true one comes first, and where it does not."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from facelab.report import style
from facelab.report.record import Record
from facelab.report.style import BLUE, GREEN, GREY, LIGHT, PURPLE, VERMILLION

SHOWN = 16  # classes with a bar and a name; of more, those with the lowest accuracies


def top(axes: Axes, record: Record) -> None:
    """Share of images whose class is among the first k, over k; a curve for each resolution."""
    axes.set_title("Among the first k")
    last = 1
    for named, color in zip(record.named[:4], (BLUE, VERMILLION, GREEN, PURPLE), strict=False):
        right = named.predictions == named.truth[:, None]
        shares = 100 * np.maximum.accumulate(right, axis=1).mean(axis=0)
        axes.plot(np.arange(1, len(shares) + 1), shares, marker="o", markersize=4, color=color, label=named.name)
        last = max(last, len(shares))
    axes.set_xlim(0.7, last + 0.3)
    axes.set_ylim(0, 103)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("k")
    axes.set_ylabel("% of images")
    axes.legend(loc="lower right")


def cmc(axes: Axes, record: Record) -> None:
    """Share of searches with a mate among the first r candidates, over r; a curve for each protocol."""
    axes.set_title("CMC: a mate among the first r")
    drawn = [ranked for ranked in record.ranked[:4] if len(ranked.cmc)]
    if not drawn:
        style.empty(axes, f"{record.ranked[0].name}: no curve of its searches")
        return
    for ranked, color in zip(drawn, (BLUE, VERMILLION, GREEN, PURPLE), strict=False):
        ranks = np.arange(1, len(ranked.cmc) + 1)
        axes.plot(ranks, 100 * ranked.cmc, marker="o", markersize=4, color=color, label=ranked.name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("r")
    axes.set_ylabel("% of searches")
    axes.legend(loc="lower right")


def classes(axes: Axes, record: Record) -> None:
    """Top-1 accuracy class by class, those with the lowest first."""
    named = record.named[0]
    there, numbers, counts = np.unique(named.truth, return_inverse=True, return_counts=True)
    right = np.bincount(numbers, named.predictions[:, 0] == named.truth, len(there)) / counts
    order = np.argsort(right, kind="stable")[:SHOWN]
    axes.set_title(f"Top-1 by class: {named.name}" if len(there) <= SHOWN else f"Top-1 of the worst {SHOWN} classes")
    rows = np.arange(len(order))
    axes.barh(rows, 100 * right[order], color=BLUE, alpha=0.75, height=0.7)
    axes.axvline(100 * float(np.mean(right)), color=GREY, linewidth=0.9, linestyle=style.DASHED)
    for row, place in enumerate(order):
        name = named.classes[there[place]]
        text = f"{name if len(name) <= 24 else name[:23] + '…'} ({counts[place]:,})"
        axes.text(1.5, row, text, va="center", fontsize=min(8, 110 / len(order)))
    axes.set_yticks([])
    axes.grid(axis="x", color=LIGHT)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the class's images; dashed: mean of all classes")
