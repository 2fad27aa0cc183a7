"""How far a difference may be trusted: over seeds by Student's t, over the test's people by resampling them.

Two questions, two intervals. *Would training again give the same?* The seeds answer: a paired t-test over the seeds
that two rows share, for runs of one seed see the same images in the same order. With 2 to 5 seeds a bootstrap of the
seeds would cover 49 to 84 % where 95 are promised; the t-interval does not need many. *Would other people give the
same?* The test's people answer, drawn anew with replacement (see `facelab.benchmark.bootstrap`): a comparison of i with
j counts w_i·w_j times, one of i with itself w_i times, w how often a person was drawn.

n seeds, N trials, K rows, R replicates, S people.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from facelab.compare.results import UNKNOWN, Interval

POWER = 0.8  # of the numbers of seeds that are advised; the usual convention (Cohen, 1988)
AT_ONCE = 2**22  # numbers of a chunk of replicates
MOST_SEEDS = 10**6


class Summary(NamedTuple):
    """Of the same quantity over n seeds."""

    mean: float
    std: float
    interval: Interval
    p: float  # two-sided, of the mean being 0


def two_sided(t: float, freedom: int) -> float:
    """P(|T| ≥ |t|) of Student's t with so many degrees of freedom, at least 1."""
    return float(2 * stdtr(freedom, -abs(t)))


def quantile(share: float, freedom: int) -> float:
    """The t that a share of Student's distribution lies below; 0 < share < 1."""
    return float(stdtrit(freedom, share))


def over_seeds(values: Sequence[float] | np.ndarray, level: float, grain: float = 0.0) -> Summary:
    """Mean, deviation, t-interval and t-test of a few numbers.

    Args:
        values: (n,) numbers, or differences of pairs of them: then the test is the paired one.
        level: of the interval.
        grain: standard deviation of what rounding does to a value. An accuracy of N pairs comes in steps of 1/N, so two
            or three seeds may agree to the last digit by chance; nothing is known better than that.

    Returns:
        Of a single value deviation, interval and p are NaN.
    """
    values = np.asarray(values, np.float64)
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Summary(mean, math.nan, UNKNOWN, math.nan)
    std = float(values.std(ddof=1))
    error = max(std, grain) / math.sqrt(count)
    half = quantile((1 + level) / 2, count - 1) * error
    if error == 0:
        return Summary(mean, std, (mean, mean), 1.0 if mean == 0 else 0.0)
    return Summary(mean, std, (mean - half, mean + half), two_sided(mean / error, count - 1))


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """P-values corrected for their number (Holm, 1979), in the same order; NaN stays NaN and does not count.

    The k-th smallest of m is multiplied by m − k + 1, and none may become smaller than those before it.
    """
    p = np.asarray(p, np.float64)
    corrected = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return corrected


def visible(std: float, count: int, level: float, power: float = POWER) -> float:
    """The smallest difference that a paired t-test over so many seeds finds with that power; NaN of less than two.

    (t_{1−α/2} + t_{power})·σ/√n, both of n − 1 degrees of freedom: within a seed of the noncentral t's answer.
    """
    if count < 2 or not std >= 0:
        return math.nan
    return (quantile((1 + level) / 2, count - 1) + quantile(power, count - 1)) * std / math.sqrt(count)


def needed(std: float, difference: float, level: float, power: float = POWER) -> float:
    """The number of seeds for which `visible` is at most such a difference; inf beyond a million, NaN if not known."""
    if not std >= 0 or math.isnan(difference):
        return math.nan
    if difference == 0:
        return math.inf
    low, high = 1, 2  # `visible` falls with the number
    while visible(std, high, level, power) > abs(difference):
        low, high = high, 2 * high
        if high > MOST_SEEDS:
            return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if visible(std, middle, level, power) > abs(difference) else (low, middle)
    return float(high)


def replicate(
    values: np.ndarray,
    weight: np.ndarray,
    one: np.ndarray,
    other: np.ndarray,
    stratum: np.ndarray,
    *,
    replicates: int,
    seed: int,
) -> np.ndarray:
    """The means of K rows over people who are drawn anew, the same draws for every row: their differences are paired.

    In each stratum it is Σ w·weight·value / Σ w·weight, w = w_i·w_j of two people and w_i of one; the strata keep the
    part that they have in the protocol (half genuine, half impostor pairs).

    Args:
        values: (N,K) what the trials give, see `facelab.compare.results.Trials` for these and the next.
        weight: (N,).
        one: (N,) people.
        other: (N,) people; the same as `one` where a trial is of one person.
        stratum: (N,) 0 or 1.
        replicates: R.
        seed: of the draws.

    Returns:
        (R,K) float64; NaN in a replicate that has drawn nobody of a stratum.
    """
    people, numbers = np.unique(np.concatenate([one, other]), return_inverse=True)
    one, other = np.split(numbers.reshape(-1).astype(np.int64), 2)
    two = one != other
    values, weight = np.asarray(values, np.float32), np.asarray(weight, np.float32)
    parts = [(np.flatnonzero(stratum == number)) for number in np.unique(stratum)]
    shares = np.array([weight[part].sum() for part in parts], np.float64)
    shares /= shares.sum()
    held = [np.ascontiguousarray(values[part]) for part in parts]
    rng = np.random.default_rng(seed)
    found = np.zeros((replicates, values.shape[1]))
    for rows in _chunks(replicates, max(len(people), len(one))):
        drawn = _times_drawn(rng, rows.stop - rows.start, len(people))
        counts = drawn[:, one]
        counts[:, two] *= drawn[:, other[two]]
        counts *= weight
        for part, value, share in zip(parts, held, shares, strict=True):
            chosen = counts if len(parts) == 1 else counts[:, part]
            with np.errstate(invalid="ignore", divide="ignore"):
                found[rows] += (
                    share * (chosen @ value).astype(np.float64) / chosen.sum(axis=1, dtype=np.float64)[:, None]
                )
    return found


def percentiles(drawn: np.ndarray, level: float) -> Interval:
    """The interval of replicates (R,); unknown where none tells anything."""
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return UNKNOWN
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled_p(mean: float, drawn: np.ndarray) -> float:
    """Two-sided p of a difference being 0, normal with the replicates' (R,) deviation; NaN where they tell nothing.

    Counting replicates beyond 0 could not tell p below 1/R, and Holm's correction asks for smaller ones.
    """
    error = float(np.nanstd(drawn)) if np.isfinite(drawn).any() else math.nan
    if math.isnan(error) or error == 0:
        return 1.0 if mean == 0 else math.nan
    return math.erfc(abs(mean) / error / math.sqrt(2))


def _times_drawn(rng: np.random.Generator, replicates: int, people: int) -> np.ndarray:
    """(replicates, people) float32: how often each was drawn when as many as there are were drawn with replacement."""
    drawn = rng.integers(people, size=(replicates, people))
    drawn += np.arange(replicates)[:, None] * people
    return np.bincount(drawn.ravel(), minlength=replicates * people).reshape(replicates, people).astype(np.float32)


def _chunks(replicates: int, width: int) -> Iterator[slice]:
    most = max(1, AT_ONCE // width)
    for start in range(0, replicates, most):
        yield slice(start, min(start + most, replicates))
