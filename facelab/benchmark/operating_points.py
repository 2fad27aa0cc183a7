"""What becomes of scores: TAR at FAR, EER, AUC, DET curves and the ten-fold accuracy. Plain numpy, exact with ties.

Everywhere a *higher* score means more alike, and a pair is accepted when ``score >= threshold``:

    FAR(T) = FMR(T) = share of impostor scores >= T        TAR(T) = share of genuine scores >= T = 1 - FNMR(T)

The functions sort and count; none walks over thresholds in Python, so LFW's 6,000 scores take a few milliseconds and
IJB-C's fifteen million seconds. N is the number of pairs, G of genuine and I of impostor scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

THRESHOLDS = np.arange(0, 4, 0.01)
"""The 400 squared-distance thresholds of the ten-fold protocol, the very float64 numbers of the public scripts."""


class OperatingPoint(NamedTuple):
    """One point of a ROC curve: the acceptance threshold and the two rates that it gives."""

    threshold: float
    far: float
    tar: float


class Det(NamedTuple):
    """A detection error trade-off curve, FMR ascending: thresholds, FMR and FNMR, each (P,) float64."""

    threshold: np.ndarray
    fmr: np.ndarray
    fnmr: np.ndarray


def _checked(genuine: np.ndarray, impostor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both score sets as flat float64, refused where empty or not a number."""
    sets = []
    for kind, scores in (("genuine", genuine), ("impostor", impostor)):
        flat = np.asarray(scores, dtype=np.float64).ravel()
        if not flat.size:
            raise ValueError(f"no {kind} scores: error rates need genuine and impostor pairs; check the pair list")
        if np.isnan(flat).any():
            raise ValueError(f"{int(np.isnan(flat).sum())} of {flat.size} {kind} scores are NaN; check the embeddings")
        sets.append(flat)
    return sets[0], sets[1]


def allowed_false_accepts(far: float, impostors: int) -> int:
    """⌊far·I⌋ in exact arithmetic, where far is the decimal number that was written (0.29·100 is 29, not 28).

    Args:
        far: target false accept rate, 0 ≤ far ≤ 1.
        impostors: I, the number of impostor scores.
    """
    if not 0 <= far <= 1:
        raise ValueError(f"far={far}: a false accept rate lies between 0 and 1")
    return math.floor(Fraction(str(float(far))) * impostors)


def tar_at_far(genuine: np.ndarray, impostor: np.ndarray, far: float, rule: str) -> OperatingPoint:
    """The operating point for a target FAR; see `tars_at_fars`."""
    return tars_at_fars(genuine, impostor, [far], rule)[0]


def tars_at_fars(genuine: np.ndarray, impostor: np.ndarray, fars: Sequence[float], rule: str) -> list[OperatingPoint]:
    """The operating points for target FARs, by selection: nothing is sorted.

    ``at_most`` is facelab's rule: the lowest threshold with FAR ≤ target, that is just above the (⌊far·I⌋+1)-th largest
    impostor score. With far < 1/I that is the TAR at zero false accepts. ``nearest`` is the rule of the public IJB
    scripts: of all attainable FARs the one nearest to the target, which may exceed it (the larger one of two equally
    near, as those scripts take it), and there the highest TAR.

    Args:
        genuine: (G,) scores.
        impostor: (I,) scores.
        fars: targets, e.g. 1e-3.
        rule: ``at_most`` or ``nearest``.

    Raises:
        ValueError: no scores of a kind, NaN, a target outside [0, 1], an unknown rule.
    """
    genuine, impostor = _checked(genuine, impostor)
    check_far_rule(rule)
    allowed = [allowed_false_accepts(far, impostor.size) for far in fars]
    places = sorted({impostor.size - 1 - count for count in allowed if count < impostor.size})
    parted = np.partition(impostor, places) if places else impostor
    choose = _at_most if rule == "at_most" else _nearest
    return [choose(genuine, parted, far, count) for far, count in zip(fars, allowed, strict=True)]


def _at_most(genuine: np.ndarray, impostor: np.ndarray, far: float, allowed: int) -> OperatingPoint:
    """Of impostors that are parted at the (allowed+1)-th largest."""
    if allowed >= impostor.size:
        return OperatingPoint(-math.inf, 1.0, 1.0)
    place = impostor.size - 1 - allowed
    above = impostor[place]
    accepted = int(np.count_nonzero(impostor[place:] > above)), int(np.count_nonzero(genuine > above))
    threshold = float(np.nextafter(above, math.inf))
    return OperatingPoint(threshold, accepted[0] / impostor.size, accepted[1] / genuine.size)


def check_far_rule(rule: str) -> None:
    """Raises ValueError unless ``rule`` is one of the two that `tar_at_far` knows."""
    if rule not in ("at_most", "nearest"):
        raise ValueError(f"far_rule={rule!r}: choose at_most (FAR never above the target) or nearest (public scripts)")


def _nearest(genuine: np.ndarray, impostor: np.ndarray, far: float, allowed: int) -> OperatingPoint:
    """The same: between the attainable FAR above it and the one below it lies the target."""
    bound, accepted = -math.inf, impostor.size
    if allowed < impostor.size:
        place = impostor.size - 1 - allowed
        above = impostor[place]
        fewer, more = int(np.count_nonzero(impostor[place:] > above)), int(np.count_nonzero(impostor >= above))
        bound, accepted = above, fewer
        if abs(more / impostor.size - far) <= abs(fewer / impostor.size - far):
            lower = impostor[:place][impostor[:place] < above]
            bound, accepted = lower.max() if lower.size else -math.inf, more
    # All thresholds just above this bound give this FAR; the lowest score that is above it gives the highest TAR.
    over, beside = (scores if bound == -math.inf else scores[scores > bound] for scores in (genuine, impostor))
    threshold = min(over.min() if over.size else math.inf, beside.min() if beside.size else math.inf)
    return OperatingPoint(float(threshold), accepted / impostor.size, over.size / genuine.size)


def _roc(genuine: np.ndarray, impostor: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every point of the ROC: the distinct scores as thresholds, +inf first; impostors and genuine accepted there."""
    threshold = np.unique(np.concatenate([genuine, impostor]))[::-1]
    genuine, impostor = np.sort(genuine), np.sort(impostor)
    accepted_impostor = impostor.size - np.searchsorted(impostor, threshold, side="left")
    accepted_genuine = genuine.size - np.searchsorted(genuine, threshold, side="left")
    return (
        np.concatenate([[math.inf], threshold]),
        np.concatenate([[0], accepted_impostor]),
        np.concatenate([[0], accepted_genuine]),
    )


def eer(genuine: np.ndarray, impostor: np.ndarray) -> float:
    """Equal error rate: where FMR = FNMR on the ROC, whose neighbouring points are joined by straight lines.

    Args:
        genuine: (G,) scores.
        impostor: (I,) scores.
    """
    genuine, impostor = _checked(genuine, impostor)
    _, fa, ta = _roc(genuine, impostor)
    fmr, fnmr = fa / impostor.size, 1 - ta / genuine.size
    after = int(np.argmax(fmr >= fnmr))  # FMR rises from 0 to 1 while FNMR falls from 1 to 0: after is never 0
    rise, fall = fmr[after] - fmr[after - 1], fnmr[after - 1] - fnmr[after]
    part = (fnmr[after - 1] - fmr[after - 1]) / (rise + fall)
    return float(fmr[after - 1] + part * rise)


def auc(genuine: np.ndarray, impostor: np.ndarray) -> float:
    """Area under the ROC as the Mann-Whitney probability P(genuine > impostor) + ½·P(equal), counted exactly.

    Args:
        genuine: (G,) scores.
        impostor: (I,) scores.
    """
    genuine, impostor = _checked(genuine, impostor)
    impostor = np.sort(impostor)
    below = np.searchsorted(impostor, genuine, side="left").sum(dtype=np.int64)
    below_or_equal = np.searchsorted(impostor, genuine, side="right").sum(dtype=np.int64)
    return (int(below) + int(below_or_equal)) / (2 * genuine.size * impostor.size)


def det(genuine: np.ndarray, impostor: np.ndarray, points: int = 500) -> Det:
    """The DET curve at up to ``points`` log-spaced false accept counts, from zero false accepts to all of them.

    Each point is an exact one, counted at the lowest threshold that gives its false accepts, as `tar_at_far` does.
    Small counts are all there: the left end of a DET curve is where one impostor matters.

    Args:
        genuine: (G,) scores.
        impostor: (I,) scores.
        points: upper bound of the number of points.
    """
    genuine, impostor = _checked(genuine, impostor)
    genuine, impostor = np.sort(genuine), np.sort(impostor)
    counts = np.unique(np.rint(np.geomspace(1, impostor.size, max(points - 1, 1))).astype(np.int64)) - 1
    above = np.nextafter(impostor[impostor.size - 1 - counts], math.inf)  # as low as this many false accepts allow
    threshold = np.unique(np.append(above, min(genuine[0], impostor[0])))[::-1]
    fmr = (impostor.size - np.searchsorted(impostor, threshold, side="left")) / impostor.size
    fnmr = np.searchsorted(genuine, threshold, side="left") / genuine.size
    return Det(threshold, fmr, fnmr)


def fold_accuracy(distance: np.ndarray, same: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy of each fold at the threshold chosen on all the others, as LFW's View 2 prescribes.

    A pair is called genuine when ``distance < threshold``; the threshold is the first of `THRESHOLDS` with the highest
    accuracy on the other folds. Counting integers in a (fold, threshold) histogram makes the very comparisons of the
    public scripts, 400 × folds at once.

    Args:
        distance: (N,) squared L2 distances of unit embeddings, 0 … 4.
        same: (N,) bool, whether the pair is genuine.
        fold: (N,) int, 0 … K−1, every number in use.

    Returns:
        Accuracies (K,) and chosen thresholds (K,), float64.

    Raises:
        ValueError: fewer than two folds, or a fold without a pair.
    """
    distance, same, fold = np.asarray(distance, np.float64), np.asarray(same, bool), np.asarray(fold, np.int64)
    sizes = np.bincount(fold)
    if sizes.size < 2 or not sizes.all():
        raise ValueError(
            f"folds of {sizes.tolist()} pairs: a threshold is chosen on the other folds, none may be empty"
        )
    bins = THRESHOLDS.size + 1
    first = np.searchsorted(THRESHOLDS, distance, side="right")  # the first threshold that is above the distance
    weight = np.where(same, 1, -1)  # from that threshold on, a genuine pair is right and an impostor pair wrong
    gained = np.bincount(fold * bins + first, weights=weight, minlength=sizes.size * bins).reshape(sizes.size, bins)
    impostors = np.bincount(fold[~same], minlength=sizes.size)
    correct = impostors[:, None] + np.cumsum(gained, axis=1)[:, :-1]  # (K, 400) integers, held exactly by float64
    chosen = np.argmax(correct.sum(axis=0) - correct, axis=1)
    return correct[np.arange(sizes.size), chosen] / sizes, THRESHOLDS[chosen]
