"""Fitting QMagFace: how much weight should the length of an embedding have, at which similarity?

For 50 false match rates, spread evenly over the logarithms of a range (1e-5 … 1e-2, usually): of 20 weights ω, evenly
from −ω_max to ω_max with ω_max·max(q) = 0.5, the one with the lowest false non-match rate of s + ω·q, and the threshold
that it has there. A line through the fifty (threshold, ω) gives ω(s) = β·s − α, of which
`facelab.benchmark.quality_aware` uses what is below 0.

Source: Terhörst et al., QMagFace, WACV 2023, section 3.3, and the authors' code, whose numbers it gives: equally good
weights count as the smallest one, and a false match rate has to stay *below* its target.

N pairs, G genuine, I impostor ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

RATES, WEIGHTS = 50, 20  # how many of each
LARGEST = 0.5  # what the largest weight adds to the best pair's cosine
SCALES = ("sigmoid", "cosine")


class Fit(NamedTuple):
    """A fitted line and what it was drawn through.

    Attributes:
        alpha: α, minus the intercept.
        beta: β, the slope.
        thresholds: (50,) at the rates, on the chosen scale.
        omegas: (50,) the best weights there.
    """

    alpha: float
    beta: float
    thresholds: np.ndarray
    omegas: np.ndarray


def cosines_and_quality(embeddings: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M,D) embeddings, (N,2) pairs → (N,) float64 cosines and lengths of the shorter ones.

    Raises:
        ValueError: an embedding is zero or not finite.
    """
    vectors = np.asarray(embeddings, np.float64)
    lengths = np.linalg.norm(vectors, axis=1)
    wrong = ~(np.isfinite(lengths) & (lengths > 0))
    if wrong.any():
        raise ValueError(
            f"{int(wrong.sum())} of {len(wrong)} embeddings are zero or not finite, the first is that of image "
            f"{int(np.argmax(wrong))}: check the model"
        )
    unit = vectors / lengths[:, None]
    return np.einsum("nd,nd->n", unit[pairs[:, 0]], unit[pairs[:, 1]]), lengths[pairs].min(axis=1)


def fit(
    similarity: np.ndarray, quality: np.ndarray, same: np.ndarray, *, lowest: float, highest: float, scale: str
) -> Fit:
    """Fits α and β on the pairs of a development set.

    Args:
        similarity: (N,) cosines.
        quality: (N,) lengths of the shorter embeddings.
        same: (N,) bool, genuine.
        lowest: false match rate to begin with.
        highest: the last one.
        scale: on which thresholds are taken. ``sigmoid``: of 1/(1 + e^−s), as the authors' code has it, by which the
            published 0.077428 and 0.125926 were fitted although they are applied to cosines; ``cosine``: of s itself,
            the very numbers to which ω is applied, as the paper's text has it.

    Raises:
        ValueError: no pairs of a kind, an unknown scale, or rates that are none.
    """
    same = np.asarray(same, bool)
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}: give one of {', '.join(SCALES)}")
    if not 0 < lowest < highest < 1:
        raise ValueError(f"false match rates from {lowest:g} to {highest:g}: give two, rising, between 0 and 1")
    if not 0 < same.sum() < len(same):
        raise ValueError(f"{int(same.sum())} genuine of {len(same)} pairs: a fit needs both kinds; check the list")
    rates, largest = np.geomspace(lowest, highest, RATES), LARGEST / quality.max()
    weights = np.linspace(-largest, largest, WEIGHTS)
    allowed = np.ceil(rates * (~same).sum()).astype(np.int64) - 1  # false matches whose rate is below the target
    errors, thresholds = (np.empty((WEIGHTS, RATES)) for _ in range(2))
    for row, omega in enumerate(weights):
        scores = similarity + omega * quality
        errors[row], thresholds[row] = _at_rates(scores[same], scores[~same], allowed)
    best = errors.argmin(axis=0)
    found = thresholds[best, np.arange(RATES)]
    if scale == "sigmoid":
        found = 1 / (1 + np.exp(-found))
    omegas = weights[best]
    if np.ptp(found) == 0:
        raise ValueError("the threshold is the same at all false match rates: give more impostor pairs")
    beta, intercept = np.polyfit(found - found.mean(), omegas, 1)
    return Fit(float(beta * found.mean() - intercept), float(beta), found, omegas)


def _at_rates(genuine: np.ndarray, impostor: np.ndarray, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of false non-matches with so many false matches at most, and the lowest accepted genuine scores there."""
    genuine, falling = np.sort(genuine), -np.sort(-impostor)
    above = falling[np.minimum(allowed, len(falling) - 1)]  # the first that may not be accepted
    missed = np.searchsorted(genuine, above, side="right")
    return missed, np.where(missed < len(genuine), genuine[np.minimum(missed, len(genuine) - 1)], above)
