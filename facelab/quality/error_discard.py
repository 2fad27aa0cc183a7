"""Error versus discard: how fast do errors fall as the pairs of worst quality are left out?

A pair is as good as its worse image: q = min(q_1, q_2), higher is better. Pairs leave in the order of q, those of equal
quality together, so that a curve is a staircase: between two attainable shares nothing changes. The smaller the area
under its beginning (to 0.2, usually), the better the quality knows which pairs go wrong.

Two definitions give two different curves:

- *fixed*: one threshold for all of the curve, at which a stated share of the genuine pairs is rejected at the start
  (5 %, usually). Genuine pairs alone are discarded and counted. This is the definition of ISO/IEC 29794-1, and what a
  system sees that has one threshold.
- *re-derived*: genuine and impostor pairs are discarded, and the threshold is set anew on those that are left, for the
  same false match rate. Some public code does so; better impostors make it more lenient as it goes.

Two curves stand beside those of a quality. The *oracle* knows the scores, and discards what is rejected first: no
quality is better. *Random* discarding changes nothing on average: a flat line at the start's error.

G genuine pairs, N pairs, M images, P points of a curve.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from facelab.benchmark.operating_points import allowed_false_accepts, tar_at_far


@dataclass(frozen=True)
class Curve:
    """A staircase from share 0 on.

    Attributes:
        share: (P,) discarded shares, rising from 0; each holds up to the next.
        fnmr: (P,) share of the genuine pairs that are left which are rejected.
    """

    share: np.ndarray
    fnmr: np.ndarray

    def at(self, shares: np.ndarray) -> np.ndarray:
        """The error where up to so much may be discarded, for any shares from 0 on."""
        return self.fnmr[np.searchsorted(self.share, shares, side="right") - 1]

    def area(self, limit: float) -> float:
        """The area under the curve from 0 to `limit`, exactly; of a curve without any effect it is fnmr₀·limit."""
        ends = np.minimum(np.append(self.share[1:], np.inf), limit)
        return float(np.sum(self.fnmr * np.maximum(ends - self.share, 0)))


def pair_quality(quality: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(M,) qualities of images, higher is better, and (N,2) their pairs → (N,) the worse one's.

    Raises:
        ValueError: a quality is NaN.
    """
    quality = np.asarray(quality, np.float64)
    if np.isnan(quality).any():
        raise ValueError(
            f"{int(np.isnan(quality).sum())} of {len(quality)} images have no quality, the first is image "
            f"{int(np.argmax(np.isnan(quality)))}: give each a number, the lowest where it is unknown"
        )
    return quality[pairs].min(axis=1)


def threshold_at(genuine: np.ndarray, start: float) -> float:
    """The highest threshold that rejects at most the share `start` of the genuine scores (those below it).

    Args:
        genuine: (G,) scores.
        start: FNMR to begin with, as 0.05.

    Raises:
        ValueError: so few pairs, or so many equal scores, that none would be rejected; or a share outside 0…1.
    """
    genuine = np.sort(np.asarray(genuine, np.float64))
    allowed = allowed_false_accepts(start, len(genuine))
    threshold = genuine[min(allowed, len(genuine) - 1)]
    if allowed == 0 or genuine[0] == threshold:
        raise ValueError(
            f"with an error of {start:g} at the start none of {len(genuine):,} genuine pairs is rejected, so that no "
            "curve can fall: give more pairs, or a larger error"
        )
    return float(threshold)


def fixed(genuine: np.ndarray, quality: np.ndarray, threshold: float) -> Curve:
    """The curve at one threshold.

    Args:
        genuine: (G,) scores of genuine pairs; below the threshold they are rejected.
        quality: (G,) of these pairs, higher is better.
        threshold: of all of the curve.
    """
    wrong = np.asarray(genuine) < threshold
    group = np.unique(quality, return_inverse=True)[1]
    pairs, errors = np.bincount(group), np.bincount(group, weights=wrong)
    gone = np.concatenate([[0], np.cumsum(pairs)[:-1]])  # before each quality's turn; the best one stays
    left = len(wrong) - gone
    return Curve(gone / len(wrong), (wrong.sum() - np.concatenate([[0], np.cumsum(errors)[:-1]])) / left)


def oracle(genuine: np.ndarray, threshold: float) -> Curve:
    """The curve of whoever discards rejected pairs first, one by one even where scores are equal: (G,) scores."""
    return fixed(genuine, np.argsort(np.argsort(genuine)), threshold)


def flat(curve: Curve) -> Curve:
    """The expected curve of random discarding: what another one begins with."""
    return Curve(curve.share[:1], curve.fnmr[:1])


def rederived(scores: np.ndarray, same: np.ndarray, quality: np.ndarray, far: float, limit: float, steps: int) -> Curve:
    """The curve with a threshold set anew on what is left, up to a share.

    Args:
        scores: (N,) of genuine and impostor pairs, higher is more alike.
        same: (N,) bool, genuine.
        quality: (N,) of the pairs, higher is better.
        far: false match rate that the threshold keeps, at most.
        limit: up to which share the curve is needed.
        steps: at how many shares, evenly, pairs are discarded; fewer where ties leave together.

    Raises:
        ValueError: no genuine or no impostor pair is left at the limit.
    """
    scores, same = np.asarray(scores, np.float64), np.asarray(same, bool)
    order = np.sort(quality)
    shares: list[float] = []
    found: list[float] = []
    for share in np.arange(steps + 1) / steps * limit:
        worst = order[min(int(share * len(order) + 1e-9), len(order) - 1)]  # the first that stays, with all its equals
        kept = quality >= worst
        attained = 1 - kept.sum() / len(order)
        if shares and attained == shares[-1]:
            continue
        shares.append(attained)
        found.append(1 - tar_at_far(scores[kept & same], scores[kept & ~same], far, "at_most").tar)
    return Curve(np.array(shares), np.array(found))
