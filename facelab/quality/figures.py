"""quality.png: class size and norm as the paper has them, norm against BRISQUE, and what the norm is good for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from facelab.atomic import atomic
from facelab.quality.correlation import Correlation
from facelab.quality.error_discard import Curve
from facelab.quality.findings import Samples
from facelab.quality.options import DiscardOptions
from facelab.report import style

SIZE, DPI = (13.2, 7.6), 150  # inches, dots per inch
SHARE = 40  # classes are averaged over a 40th of all, for the line through their means
CELLS = 70  # of a density, across
COLORS = {
    "norm": style.BLUE,
    "standardised": style.VERMILLION,
    "brisque": style.GREEN,
    "random": style.GREY,
    "oracle": style.INK,
}
WORDS = {
    "norm": "norm",
    "standardised": "standardised norm",
    "brisque": "BRISQUE",
    "random": "random",
    "oracle": "oracle",
}
OUTLIERS = {
    "known_people": "known / unknown people",
    "noise": "faces / noise",
    "scrambled": "faces / scrambled",
    "pictures": "faces / pictures",
}


def draw(
    path: Path,
    samples: Samples,
    correlations: Mapping[str, Correlation],
    curves: Mapping[str, Curve],
    discard: DiscardOptions,
    auroc: Mapping[str, Mapping[str, float]],
    without: str,
) -> Path:
    """Draws the six panels of a study.

    Args:
        path: of the picture.
        samples: the training images.
        correlations: as `facelab.quality.findings.correlations` names them.
        curves: error against discarded share; empty where there are none.
        discard: which definition they have.
        auroc: of faces against outliers, by set and quality; empty where there is none.
        without: why something is missing, in words.

    Returns:
        The same path.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever a user's matplotlibrc says
        matplotlib.rcParams.update(style.SETTINGS)
        figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        (sizes, density, discarded), (means, standardised, judged) = figure.subplots(2, 3)
        _classes(sizes, means, samples, correlations)
        _density(density, samples, samples.norms, "norm", "norm", correlations)
        _density(standardised, samples, samples.standardised, "standardised", "norm in its class", correlations)
        missing = "no pairs of unseen faces" if without else "nothing to show"
        if curves:
            _curves(discarded, curves, discard)
        else:
            discarded.set_title("Error against discarded share")
            style.empty(discarded, missing)
        if auroc:
            _auroc(judged, auroc)
        else:
            judged.set_title("Is it a face? Is it somebody known?")
            style.empty(judged, missing)
        with atomic(path) as temporary:
            canvas.print_png(temporary)
    return path


def _classes(above: Axes, below: Axes, samples: Samples, found: Mapping[str, Correlation]) -> None:
    """Two panels with one x axis: the classes, the largest first."""
    sizes, means = samples.class_means()
    order = np.arange(1, len(sizes) + 1)
    above.set_title("Images of each class, falling")
    above.stairs(sizes, np.arange(len(sizes) + 1) + 0.5, fill=True, color=style.SKY)
    above.set_ylim(0, max(1.05 * sizes.max(), 1))
    above.set_ylabel("images in training")
    below.set_title("Mean norm of each class, in that order" + _told(found, "norm_size"))
    below.plot(order, means, "o", color=style.SKY, markersize=_dot(len(means)), alpha=0.6, markeredgewidth=0)
    window = max(1, len(means) // SHARE)
    if len(means) >= 2 * window > 2:
        smooth = np.convolve(means, np.ones(window) / window, mode="valid")
        below.plot(order[: len(smooth)] + (window - 1) / 2, smooth, color=style.BLUE)
    below.set_ylabel("mean norm")
    for axes in (above, below):
        axes.set_xlabel("class, by number of images")
        axes.set_xlim(0.5, len(sizes) + 0.5)


def _told(found: Mapping[str, Correlation], name: str) -> str:
    if f"{name}/pearson" not in found:
        return ""
    one = found[f"{name}/pearson"]
    return f"\nr = {one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"


def _density(
    axes: Axes, samples: Samples, values: np.ndarray, name: str, words: str, found: Mapping[str, Correlation]
) -> None:
    axes.set_title(f"{words[0].upper()}{words[1:]} against BRISQUE" + _told(found, f"{name}_brisque"))
    kept = samples.judged
    if not kept.any():
        style.empty(axes, "BRISQUE was left out")
        return
    x, y = samples.brisque[kept], values[kept]
    if len(x) < 2000:
        axes.plot(x, y, "o", color=style.BLUE, markersize=_dot(len(x)), alpha=0.5, markeredgewidth=0)
    else:
        inner = [np.quantile(part, (0.001, 0.999)) for part in (x, y)]
        axes.hist2d(x, y, bins=CELLS, range=[tuple(bounds) for bounds in inner], cmap=style.DENSITY)
    axes.set_xlabel("BRISQUE (lower is better quality)")
    axes.set_ylabel("norm" if name == "norm" else "(norm − μ)/σ of its class")


def _dot(count: int) -> float:
    """Diameter in points: many dots are small ones."""
    return float(np.clip(60 / np.sqrt(count), 1.5, 5))


def _curves(axes: Axes, curves: Mapping[str, Curve], discard: DiscardOptions) -> None:
    axes.set_title("Error against discarded share")
    for name, curve in curves.items():
        inside = curve.share <= discard.limit
        share = np.append(curve.share[inside], discard.limit)
        error = np.append(curve.fnmr[inside], curve.fnmr[inside][-1])
        dashes = style.DASHED if name in ("random", "oracle") else "-"
        axes.step(
            100 * share, 100 * error, where="post", color=COLORS[name], linestyle=dashes, label=WORDS.get(name, name)
        )
    axes.set_xlim(0, 100 * discard.limit)
    axes.set_ylim(bottom=0)
    what = "genuine pairs" if discard.threshold == "fixed" else "pairs"
    axes.set_xlabel(f"{what} left out, % (threshold {discard.threshold})")
    axes.set_ylabel("FNMR of those left, %")
    axes.legend(loc="lower right")


def _auroc(axes: Axes, auroc: Mapping[str, Mapping[str, Any]]) -> None:
    axes.set_title("Is it a face? Is it somebody known?")
    kinds = [kind for kind in COLORS if any(kind in values for values in auroc.values())]
    high = 0.8 / len(kinds)
    for i, kind in enumerate(kinds):
        places = np.arange(len(auroc)) + (i - (len(kinds) - 1) / 2) * high
        values = [float(part.get(kind, 0.5)) for part in auroc.values()]
        axes.barh(places, np.array(values) - 0.5, left=0.5, height=0.9 * high, color=COLORS[kind], label=WORDS[kind])
    axes.axvline(0.5, color=style.GREY, linewidth=0.8)
    axes.set_yticks(range(len(auroc)), [OUTLIERS.get(name, name) for name in auroc])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("AUROC of the first; 0.5: cannot tell")
    axes.legend(loc="lower left", fontsize=7)
