"""Error rates of 1:1 comparisons from genuine scores and the tail of the impostor scores, in all, and by group.

FMR(T) is the share of impostor scores ≥ T, FNMR(T) the share of genuine scores < T. The threshold of a target is the
lowest with FMR ≤ target. G genuine comparisons, T targets, K groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from facelab.benchmark.bootstrap import per_subject, share_intervals, two_way_interval
from facelab.benchmark.comparisons import Comparisons
from facelab.benchmark.image_list import Groups
from facelab.benchmark.impostors import Tail

POINTS = 400  # of a DET curve, at most, in each of its two stretches


@dataclass(frozen=True)
class Genuine:
    """All comparisons of people with themselves, those of failed images too.

    Attributes:
        scores: (G,) float64; −inf where one of the images has failed: no threshold accepts it.
        enrol: (G,) image numbers.
        verify: (G,) image numbers.
        person: (G,) int.
        people: S.
    """

    scores: np.ndarray
    enrol: np.ndarray
    verify: np.ndarray
    person: np.ndarray
    people: int

    def rejected(self, thresholds: np.ndarray) -> np.ndarray:
        """(G,T) bool, below each threshold; a failed image is below −inf too."""
        return (self.scores[:, None] < thresholds) | np.isneginf(self.scores)[:, None]


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: replicates (0: no intervals) and seed."""

    replicates: int
    seed: int

    def shares(self, errors: np.ndarray, trials: np.ndarray) -> np.ndarray:
        """(2,T), see `facelab.benchmark.bootstrap.share_intervals`."""
        if not self.replicates:
            return np.full((2, errors.shape[1]), np.nan)
        return share_intervals(errors, trials, replicates=self.replicates, seed=self.seed)


def fnmr(
    genuine: Genuine, thresholds: np.ndarray, bootstrap: Bootstrap, some: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """False non-matches (T,), intervals of their share over people (2,T), and how many of whom they are (S,T).

    Args:
        genuine: the comparisons.
        thresholds: (T,).
        bootstrap: of the intervals.
        some: (G,) bool, which comparisons count; None: all.
    """
    rejected, person = genuine.rejected(thresholds), genuine.person
    if some is not None:
        rejected, person = rejected[some], person[some]
    errors = per_subject(person, rejected, genuine.people)
    trials = np.bincount(person, minlength=genuine.people)
    return rejected.sum(axis=0), bootstrap.shares(errors, np.repeat(trials[:, None], len(thresholds), axis=1)), errors


def fmr_intervals(
    tail: Tail, thresholds: np.ndarray, comparisons: Comparisons, people: int, bootstrap: Bootstrap
) -> np.ndarray:
    """(2,T) intervals of the FMR at fixed thresholds, people drawn on both sides; NaN where groups are told apart.

    Args:
        tail: impostor scores.
        thresholds: (T,), none below the tail's end.
        comparisons: of the embedded images; `Tail` numbers these.
        people: S.
        bootstrap: of the intervals.
    """
    bounds = np.full((2, len(thresholds)), np.nan)
    if not bootstrap.replicates or comparisons.rule != "all":
        return bounds
    sides = [np.bincount(side, minlength=people) for side in (comparisons.enrol, comparisons.verify)]
    for number, threshold in enumerate(thresholds):
        end = tail.matches(threshold)
        code = comparisons.enrol[tail.enrol[:end]] * people + comparisons.verify[tail.verify[:end]]
        code, times = np.unique(code, return_counts=True)
        pairs = np.stack([code // people, code % people], axis=1)
        times = times * (2 if comparisons.single else 1)  # of a single list a pair stands for both its orders
        bounds[:, number] = two_way_interval(
            pairs, times, sides[0], sides[1], replicates=bootstrap.replicates, seed=bootstrap.seed
        )
    return bounds


def group_tables(
    column: str,
    groups: Groups,
    sides: tuple[np.ndarray, np.ndarray],
    comparisons: Comparisons,
    tail: Tail,
    genuine: Genuine,
    targets: Sequence[float],
    bootstrap: Bootstrap,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """FMR and FNMR of each group, and the FMR of every two groups, all at the thresholds of all comparisons together.

    A group's FMR is that of comparisons inside it; its FNMR that of comparisons whose enrolment image is of it. Where
    the rule counts no comparison of two groups, there is no row for them.

    Args:
        column: what the groups are.
        groups: of all images.
        sides: image numbers of the rows that `comparisons` and `tail` speak of, enrolment and verification.
        comparisons: of the embedded images.
        tail: impostor scores.
        genuine: genuine scores.
        targets: false match rates.
        bootstrap: of the intervals.
    """
    enrol, verify = (groups.code[side] for side in sides)
    count = len(groups.names)
    trials = comparisons.count(enrol, verify, count)
    thresholds = np.array([tail.threshold(target) for target in targets])
    errors = []
    for threshold in thresholds:
        end = tail.matches(threshold)
        pairs = np.stack([tail.enrol[:end], tail.verify[:end]], axis=1)
        errors.append(comparisons.cells(pairs, enrol, verify, count))
    cross = [
        {
            "groups": column, "fmr_target": target, "threshold": threshold, "enrol": groups.names[one],
            "verify": groups.names[other], "comparisons": trials[one, other], "false_matches": found[one, other],
            "fmr": found[one, other] / trials[one, other],
        }
        for target, threshold, found in zip(targets, thresholds, errors, strict=True)
        for one, other in np.argwhere(trials).tolist()
    ]  # fmt: skip
    own = []
    for group, name in enumerate(groups.names):
        inside = groups.code[genuine.enrol] == group
        rejected, bounds, _ = fnmr(genuine, thresholds, bootstrap, inside)
        for place, target in enumerate(targets):
            impostors, matches = trials[group, group], errors[place][group, group]
            own.append({
                "groups": column, "fmr_target": target, "threshold": thresholds[place], "group": name,
                "impostor_comparisons": impostors, "false_matches": matches, "fmr": _share(matches, impostors),
                "genuine_comparisons": inside.sum(), "false_non_matches": rejected[place],
                "fnmr": _share(rejected[place], inside.sum()),
                "fnmr_low": bounds[0, place], "fnmr_high": bounds[1, place],
            })  # fmt: skip
    return own, cross


def _share(errors: int, trials: int) -> float:
    return float(errors / trials) if trials else math.nan


def det_curve(genuine: np.ndarray, tail: Tail, sample: np.ndarray) -> dict[str, np.ndarray]:
    """A DET curve: exact points as far as the tail goes, and behind it points of a sample of the impostor scores.

    Args:
        genuine: (G,) scores, −inf of failures.
        tail: impostor scores.
        sample: (n,) impostor scores at random; empty where the tail holds all there are.

    Returns:
        ``det_threshold``, ``det_fmr``, ``det_fnmr`` (P,), FMR ascending, and ``det_exact`` (P,) bool.
    """
    genuine = np.sort(genuine)
    counts = np.unique(np.rint(np.geomspace(1, len(tail.scores), POINTS)).astype(np.int64)) - 1
    exact = np.unique(np.nextafter(tail.scores[counts], math.inf))[::-1]
    rates = np.array([tail.matches(threshold) for threshold in exact]) / tail.comparisons
    behind = np.empty(0)
    if len(sample):
        sample = np.sort(sample)
        behind = np.unique(np.quantile(sample, 1 - np.geomspace(1e-6, 1, POINTS)))[::-1]
        behind = behind[behind < exact[-1]]
        found = (len(sample) - np.searchsorted(sample, behind)) / len(sample)
        rates = np.concatenate([rates, np.maximum(found, rates[-1])])
    elif len(tail.scores) == tail.comparisons:  # everything is accepted at last
        lowest = np.min(genuine, where=np.isfinite(genuine), initial=math.inf)
        behind = np.array([min(tail.scores[-1], lowest)])
        rates = np.append(rates, 1.0)
    threshold = np.concatenate([exact, behind])
    below = np.searchsorted(genuine, threshold)
    return {
        "det_threshold": threshold,
        "det_fmr": rates,
        "det_fnmr": below / len(genuine),
        "det_exact": np.arange(len(threshold)) < len(exact),
    }
