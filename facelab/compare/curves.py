"""Pictures of a comparison that are lines of what happened: DET curves, and accuracy over images seen."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator

from facelab.compare import looks
from facelab.compare.looks import Look
from facelab.compare.results import Comparison, Run, Scores
from facelab.report import style

POINTS = 160  # of a curve that has thousands
COARSE = 4  # rows without a look of their own have a fourth of them
BANDS = 4  # rows up to which the spread of seeds is shown behind the lines
VALIDATIONS = ("val/accuracy", "val/top1", "train/accuracy")  # the first that runs have


def det(comparison: Comparison) -> Figure | None:
    """Detection error trade-off of all rows on one pair of axes, a panel for each benchmark; means over seeds.

    FNMR are averaged at equal FMR (vertical averaging: Fawcett, Pattern Recognition Letters 27, 2006, section 8.1).
    """
    found = {name: _curves(comparison, name) for name in dict.fromkeys(c.benchmark for c in comparison.columns)}
    drawn = {name: curves for name, curves in found.items() if curves}
    if not drawn:
        return None
    figure, places = looks.panels(min(len(drawn), looks.PANELS), height=2.9)
    shown = looks.looks(comparison)
    for axes, (name, curves) in zip(places, drawn.items(), strict=False):
        axes.set_title(looks.shortened(name, 40))
        _det_panel(axes, curves, shown)
    for axes in places[:: looks.side_by_side(len(places))]:
        axes.set_ylabel("false non-match rate, %")
    there = {number for curves in drawn.values() for number in curves}
    looks.legend(figure, [one for number, one in shown.items() if number in there], more=len(there - set(shown)))
    return figure


def _curves(comparison: Comparison, name: str) -> dict[int, list[Scores]]:
    """By row: the score files that have a curve with errors of both kinds."""
    found = {}
    for number, row in enumerate(comparison.rows):
        scores = [run.scores[name] for run in row.runs if name in run.scores]
        visible = [one for one in scores if _visible(one).any()]
        if visible:
            found[number] = visible
    return found


def _visible(scores: Scores) -> np.ndarray:
    """Points with errors of both kinds: the only ones that have a place on these axes."""
    fmr, fnmr = scores.det_fmr, scores.det_fnmr
    return (fmr > 0) & (fmr < 1) & (fnmr > 0) & (fnmr < 1)


def _det_panel(axes: Axes, curves: dict[int, list[Scores]], shown: dict[int, Look]) -> None:
    points = [(one.det_fmr[_visible(one)], one.det_fnmr[_visible(one)]) for each in curves.values() for one in each]
    low_x = min(0.7 * min(float(fmr.min()) for fmr, _ in points), 7e-4)
    low_y = min(0.7 * min(float(fnmr.min()) for _, fnmr in points), 7e-3)
    worst = max(float(fnmr.max()) for _, fnmr in points)
    style.deviate_axis(axes, "x", low_x, 0.6)
    style.deviate_axis(axes, "y", low_y, min(max(0.5, worst + 0.5 * (1 - worst)), 0.999))
    _thin(axes)
    axes.plot(*[style.deviate(np.array([1e-7, 0.6]))] * 2, color=style.GREY, linewidth=0.7, linestyle=(0, (4, 3)))
    bounds = style.deviate(np.array([low_x, 0.6]))
    every = np.linspace(bounds[0], bounds[1], POINTS)
    # The distribution function that `deviate` inverts, at the places where the curves are asked for.
    rates = np.array([NormalDist().cdf(value) for value in every])
    for number, scores in sorted(curves.items(), key=lambda item: item[0] in shown):
        one = shown.get(number, looks.OTHERS)
        step = 1 if number in shown else COARSE
        x, errors = every[::step], np.stack([fnmr_at(curve, rates[::step]) for curve in scores])  # (n,POINTS)
        _over(axes, x, style.deviate, errors, one, low_y, band=len(curves) <= BANDS)
    axes.set_xlabel("false match rate, %")


def fnmr_at(scores: Scores, fmr: np.ndarray) -> np.ndarray:
    """The lowest FNMR at a FMR of at most so much, (P,): what a threshold can reach; 1 where none can.

    Args:
        scores: with a DET curve.
        fmr: (P,).
    """
    place = np.searchsorted(scores.det_fmr, fmr, side="right") - 1
    lowest = np.minimum.accumulate(np.asarray(scores.det_fnmr, dtype=np.float64))
    return np.where(place >= 0, lowest[np.maximum(place, 0)], 1.0)


def _over(axes: Axes, x: np.ndarray, scale: Any, errors: np.ndarray, one: Look, low: float, band: bool) -> None:
    """The mean of curves, and from the lowest to the highest behind it."""
    # No errors at all have no place on such an axis: the curve leaves at its edge.
    clipped = np.clip(errors, 0.9 * low, 0.9999)
    width = 1.6 if one is not looks.OTHERS else 0.8
    axes.plot(x, scale(clipped.mean(axis=0)), color=one.color, linestyle=one.dashes, linewidth=width)
    if band and len(errors) > 1:
        lower, upper = scale(clipped.min(axis=0)), scale(clipped.max(axis=0))
        axes.fill_between(x, lower, upper, color=one.color, alpha=0.15, linewidth=0)


def _thin(axes: Axes) -> None:
    """Every second tick where a small panel has many."""
    ticks = axes.xaxis.get_major_locator()()
    words = axes.xaxis.get_major_formatter().format_ticks(list(ticks))
    if len(ticks) > 6:
        axes.xaxis.set_major_locator(FixedLocator(list(ticks)[::2]))
        axes.xaxis.set_major_formatter(FixedFormatter(words[::2]))


def history(comparison: Comparison) -> Figure | None:
    """Accuracy over images seen, a line for each row (mean over its seeds); beside it the end, enlarged."""
    key = next((key for key in VALIDATIONS if any(len(run.curve(key)[0]) for run in comparison.runs)), None)
    if key is None:
        return None
    shown = looks.looks(comparison)
    lines = {number: mean_curve(row.runs, key) for number, row in enumerate(comparison.rows)}
    lines = {number: line for number, line in lines.items() if len(line[0])}
    last = max(float(x[-1]) for x, *_ in lines.values())
    enlarge = max(len(x) for x, *_ in lines.values()) >= 4
    figure, places = looks.panels(2 if enlarge else 1, width=8.9)
    for axes in places:
        for number, (x, mean, low, high) in sorted(lines.items(), key=lambda item: item[0] in shown):
            one = shown.get(number, looks.OTHERS)
            dots: dict[str, Any] = {"marker": one.marker, "markersize": 4} if len(x) < 3 else {}
            axes.plot(x, 100 * mean, color=one.color, linestyle=one.dashes, **dots)
            if len(lines) <= BANDS and np.any(high > low):
                axes.fill_between(x, 100 * low, 100 * high, color=one.color, alpha=0.15, linewidth=0)
        style.images_axis(axes, last)
    what = {"val/accuracy": "held-out pairs verified", "val/top1": "held-out images named"}.get(key, "training images")
    places[0].set_title(f"{what[0].upper()}{what[1:]}")
    places[0].set_ylabel("%")
    if enlarge:
        _end(places[1], [(x, 100 * mean) for x, mean, *_ in lines.values()], last)
    looks.legend(figure, [one for number, one in shown.items() if number in lines], more=len(set(lines) - set(shown)))
    return figure


def _end(axes: Axes, lines: Sequence[tuple[np.ndarray, np.ndarray]], last: float) -> None:
    """Half of the images, and the heights of most lines there: one that has failed does not flatten the others."""
    axes.set_title("The second half, enlarged")
    axes.set_xlim(0.5 * last, 1.01 * last)
    values = np.concatenate([mean[x >= 0.5 * last] for x, mean in lines])
    if not len(values):
        return
    upper = float(values.max())
    low = max(float(values.min()), upper - 4 * (upper - float(np.median(values))))
    room = 0.05 * (upper - low) or 0.5
    axes.set_ylim(low - room, upper + room)


def mean_curve(runs: Sequence[Run], key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images seen, and mean, lowest and highest value over runs there, each (P,); P is 0 without any.

    Runs that were validated at other places are interpolated; the line ends where the shortest run does.
    """
    curves = [run.curve(key) for run in runs]
    curves = [(images, values) for images, values in curves if len(images)]
    if not curves:
        return (np.empty(0),) * 4
    first, last = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if first > last:
        curves, first, last = curves[:1], curves[0][0][0], curves[0][0][-1]
    x = np.unique(np.concatenate([images for images, _ in curves]))
    x = x[(x >= first) & (x <= last)]
    if len(x) > POINTS:
        x = np.linspace(x[0], x[-1], POINTS)
    values = np.stack([np.interp(x, *curve) for curve in curves])
    return x, values.mean(axis=0), values.min(axis=0), values.max(axis=0)
