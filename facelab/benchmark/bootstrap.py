"""How far a rate may be trusted: intervals by resampling the people, and not the comparisons.

Comparisons that share a person are alike, so drawing comparisons anew would give intervals that are too narrow. Here S
people are drawn out of S with replacement, each with all of their comparisons (the subsets bootstrap: Bolle, Ratha and
Pankanti, Computer Vision and Image Understanding 93, 2004), and the rate, errors over trials, is counted again; the
interval is that of the percentiles. An impostor comparison belongs to two people and counts as often as the one was
drawn times as often as the other (the pigeonhole bootstrap: Owen, Annals of Applied Statistics 1, 2007; for two sides
of the same people: Davezies, D'Haultfœuille and Guyonvarch, Annals of Statistics 49, 2021).

S people, T rates that are counted over the same draws, R replicates.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

AT_ONCE = 2**22  # numbers that are drawn at once


def share_intervals(
    errors: np.ndarray, trials: np.ndarray, *, replicates: int, seed: int, level: float = 0.95
) -> np.ndarray:
    """Percentile intervals of Σ errors / Σ trials, where every person has errors and trials of his own.

    People with the same counts are interchangeable: how often each *kind* of person is drawn is multinomial, which is
    the same draw with fewer numbers.

    Args:
        errors: (S,) or (S,T).
        trials: of the same shape; people without any trial are left out.
        replicates: R, usually 1,000 to 10,000.
        seed: of the draws.
        level: share of the replicates inside the interval.

    Returns:
        (2,) or (2,T) float64: lower and upper bounds; NaN where nobody has a trial.

    Raises:
        ValueError: shapes that differ, or a setting out of range.
    """
    errors, trials = np.asarray(errors, np.float64), np.asarray(trials, np.float64)
    if errors.shape != trials.shape or errors.ndim not in (1, 2):
        raise ValueError(f"errors of shape {errors.shape}, trials of shape {trials.shape}: (S,) or (S,T) of both")
    _check(replicates, level)
    alone = errors.ndim == 1
    counts = np.concatenate([part[:, None] if alone else part for part in (errors, trials)], axis=1)
    rates = counts.shape[1] // 2
    kinds, people = np.unique(counts[counts[:, rates:].any(axis=1)], axis=0, return_counts=True)
    if not len(people):
        bounds = np.full((2, rates), np.nan)
        return bounds[:, 0] if alone else bounds
    rng = np.random.default_rng(seed)
    drawn = []
    for part in _parts(replicates, len(kinds)):
        sums = rng.multinomial(people.sum(), people / people.sum(), size=part).astype(np.float64) @ kinds
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn.append(sums[:, :rates] / sums[:, rates:])
    bounds = _percentiles(np.concatenate(drawn), level)
    return bounds[:, 0] if alone else bounds


def two_way_interval(
    pairs: np.ndarray,
    errors: np.ndarray,
    one: np.ndarray,
    other: np.ndarray,
    *,
    replicates: int,
    seed: int,
    level: float = 0.95,
) -> np.ndarray:
    """Percentile interval of a rate over all comparisons of different people, where errors are rare.

    A replicate draws people once, for both sides: the rate is Σ w_i·w_j·errors_ij / Σ w_i·w_j·n_i·m_j over i ≠ j, w how
    often a person was drawn. Copies of a person are never compared with one another.

    Args:
        pairs: (E,2) int, the people of both sides that have errors, 0 … S−1; they are not the same.
        errors: (E,) how many.
        one: (S,) n, images of each person on the first side.
        other: (S,) m, on the other side.
        replicates: R.
        seed: of the draws.
        level: share of the replicates inside the interval.

    Returns:
        (2,) float64, the bounds.

    Raises:
        ValueError: a setting out of range.
    """
    _check(replicates, level)
    one, other, errors = (np.asarray(part, np.float64) for part in (one, other, errors))
    assert (pairs[:, 0] != pairs[:, 1]).all(), "impostor comparisons are of two people"
    count, rng = len(one), np.random.default_rng(seed)
    found = []
    for _ in range(replicates):
        weight = np.bincount(rng.integers(count, size=count), minlength=count).astype(np.float64)
        hits = float(np.sum(weight[pairs[:, 0]] * weight[pairs[:, 1]] * errors))
        total = float((weight @ one) * (weight @ other) - np.sum(weight * weight * one * other))
        found.append(hits / total if total > 0 else np.nan)
    return _percentiles(np.array(found)[:, None], level)[:, 0]


def per_subject(subjects: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """(S,T) sums of values (N,T) over the comparisons of each person (N,)."""
    values = np.asarray(values, np.float64)
    return np.stack([np.bincount(subjects, weights=column, minlength=count) for column in values.T], axis=1)


def _parts(replicates: int, kinds: int) -> Iterator[int]:
    most = max(1, AT_ONCE // kinds)
    for start in range(0, replicates, most):
        yield min(most, replicates - start)


def _percentiles(drawn: np.ndarray, level: float) -> np.ndarray:
    """(R,T) → (2,T); replicates without a trial tell nothing."""
    tail = (1 - level) / 2
    known = [column[~np.isnan(column)] for column in drawn.T]
    bounds = [np.quantile(column, [tail, 1 - tail]) if len(column) else [np.nan, np.nan] for column in known]
    return np.array(bounds, np.float64).reshape(len(known), 2).T


def _check(replicates: int, level: float) -> None:
    if replicates < 1 or not 0 < level < 1:
        raise ValueError(
            f"bootstrap of {replicates} replicates at level {level}: give 1,000 or more, and a share below 1, as 0.95"
        )
