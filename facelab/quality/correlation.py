"""Correlations over the images of many classes, with intervals over the classes.

Images of one class are alike, so drawing images anew would give intervals that are too narrow. Here C classes are drawn
out of C with replacement, each with all of its images, and the correlation is counted again; the interval is that of
the percentiles (Efron's). Spearman's is ranked anew in every replicate, ties at their mean rank.

N images, C classes, R replicates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

AT_ONCE = 2**22  # numbers that are drawn at once


class Correlation(NamedTuple):
    """A correlation, and the bounds between which it lies, with 95 %, had other classes been taken; NaN: undefined."""

    value: float
    low: float
    high: float


def pearson(x: np.ndarray, y: np.ndarray, classes: np.ndarray, *, replicates: int, seed: int) -> Correlation:
    """Pearson's correlation of two numbers per image.

    Args:
        x: (N,).
        y: (N,).
        classes: (N,) of which class each image is, any integers.
        replicates: R, 1,000 and more.
        seed: of the draws.
    """
    x, y, who, count = _checked(x, y, classes, replicates)
    x, y = x - x.mean(), y - y.mean()  # for the digits: sums of squares of large numbers that hardly differ have few
    parts = (np.ones_like(x), x, y, x * x, y * y, x * y)
    sums = np.stack([np.bincount(who, weights=part, minlength=count) for part in parts], axis=1)
    drawn = np.concatenate([weights @ sums for weights in _draws(count, replicates, seed)])
    return _with_bounds(float(_of_sums(sums.sum(0))), _of_sums(drawn.T))


def spearman(x: np.ndarray, y: np.ndarray, classes: np.ndarray, *, replicates: int, seed: int) -> Correlation:
    """Spearman's rank correlation of two numbers per image; arguments as of `pearson`."""
    x, y, who, count = _checked(x, y, classes, replicates)
    places = [np.unique(values, return_inverse=True)[1] for values in (x, y)]
    found = [
        _of_ranks(places, row[who]) for weights in _draws(count, replicates, seed) for row in weights.astype(np.float64)
    ]
    return _with_bounds(_of_ranks(places, np.ones(len(x))), np.array(found))


def _of_ranks(places: list[np.ndarray], weights: np.ndarray) -> float:
    """The correlation of the ranks of images that are there so many times; places (N,) number their distinct values."""
    x, y = (_mean_ranks(place, weights) for place in places)
    total = weights.sum()
    x, y = x - weights @ x / total, y - weights @ y / total
    return float(_of_sums(np.array([total, 0.0, 0.0, weights @ x**2, weights @ y**2, weights @ (x * y)])))


def _mean_ranks(place: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(N,) mean rank of each image among all copies of all images, but for a constant."""
    times = np.bincount(place, weights=weights)
    return (np.cumsum(times) - times / 2)[place]


def _of_sums(sums: np.ndarray) -> np.ndarray:
    """(6,…) n, Σx, Σy, Σx², Σy², Σxy → (…) Pearson's correlation; NaN where a number does not vary."""
    n, x, y, xx, yy, xy = sums
    spread = np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 0, (n * xy - x * y) / np.sqrt(spread), np.nan)


def _draws(count: int, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks of (r,C) int64: how often each class is drawn."""
    rng = np.random.default_rng(seed)
    most = max(1, AT_ONCE // count)
    for start in range(0, replicates, most):
        rows = min(most, replicates - start)
        drawn = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)


def _with_bounds(value: float, drawn: np.ndarray) -> Correlation:
    known = drawn[~np.isnan(drawn)]
    low, high = np.quantile(known, (0.025, 0.975)) if len(known) else (np.nan, np.nan)
    return Correlation(value, float(low), float(high))


def _checked(
    x: np.ndarray, y: np.ndarray, classes: np.ndarray, replicates: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    assert x.ndim == 1, "one number per image"
    assert x.shape == y.shape == np.shape(classes), "as many of all"
    if replicates < 1:
        raise ValueError(f"replicates is {replicates}: give 1,000 or more, or 1 where no interval is wanted")
    for name, values in (("x", x), ("y", y)):
        if not np.isfinite(values).all():
            raise ValueError(f"{int((~np.isfinite(values)).sum())} of {len(values)} numbers {name} are not finite")
    if not len(x):
        raise ValueError("no image is left to correlate anything of")
    who = np.unique(classes, return_inverse=True)[1]
    return x, y, who, int(who.max()) + 1
