"""What is kept of millions of scores: the tail of the impostors, and counts of each subject at the operating points."""

from __future__ import annotations

import numpy as np

TAIL = 100_000  # of the best-scored impostors that are kept; IJB-C has 15.6 million, 1e-3 of them are 15,639
QUANTILES = 2001  # of all impostor scores that are kept, from which a histogram can be drawn


def summary(impostor: np.ndarray) -> dict[str, np.ndarray]:
    """The ``impostor_tail`` (≤ TAIL,) descending, and the ``impostor_sample`` (QUANTILES,) ascending, with both ends.

    Args:
        impostor: (I,) scores, sorted ascending.
    """
    places = np.rint(np.linspace(0, len(impostor) - 1, QUANTILES)).astype(np.int64)
    return {
        "impostor_tail": np.ascontiguousarray(impostor[-TAIL:][::-1]),
        "impostor_sample": impostor[places],
    }


def by_subject(
    ids: np.ndarray, pairs: np.ndarray, same: np.ndarray, scores: np.ndarray, thresholds: np.ndarray
) -> dict[str, np.ndarray]:
    """Who was accepted, rightly and wrongly, at each threshold: what a bootstrap over subjects draws from.

    Args:
        ids: (T,) the templates.
        pairs: (N,2) int, numbers of ``ids``.
        same: (N,) bool.
        scores: (N,).
        thresholds: (P,) float64, a pair is accepted from there on.

    Returns:
        ``subject`` (S,), the least template of each (whoever is joined by genuine pairs is one subject), and of the
        pairs whose left side is the subject's ``subject_genuine`` and ``subject_impostor`` (S,), how many there are,
        ``subject_accepted`` and ``subject_false`` (S,P), how many of them are accepted.
    """
    subject, of = np.unique(joined(len(ids), pairs[same]), return_inverse=True)
    left = of[pairs[:, 0]]

    def count(chosen: np.ndarray) -> np.ndarray:
        return np.bincount(left[chosen], minlength=len(subject))

    high = np.flatnonzero(scores >= thresholds.min(initial=np.inf))  # few, unless a target asks for nearly all
    accepted, false = np.zeros((2, len(subject), len(thresholds)), np.int64)
    for point, threshold in enumerate(thresholds):
        reached = high[scores[high] >= threshold]
        accepted[:, point] = count(reached[same[reached]])
        false[:, point] = count(reached[~same[reached]])
    return {
        "subject": ids[subject],
        "subject_genuine": count(same),
        "subject_accepted": accepted,
        "subject_impostor": count(~same),
        "subject_false": false,
    }


def joined(count: int, edges: np.ndarray) -> np.ndarray:
    """The least node that each of ``count`` nodes is connected with by edges (E,2), (count,) int64."""
    least = np.arange(count)
    while True:
        before = least.copy()
        lower = np.minimum(least[edges[:, 0]], least[edges[:, 1]])
        for side in edges.T:
            np.minimum.at(least, side, lower)
        least = least[least]
        if np.array_equal(least, before):
            return least
