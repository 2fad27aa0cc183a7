"""Searches and their figures: ranks of mates, precision, and open-set rates. P probes, G in the gallery, Q mates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from facelab.benchmark.bootstrap import per_subject, share_intervals
from facelab.benchmark.operating_points import OperatingPoint, tars_at_fars
from facelab.benchmark.streaming import rank_mates

LONGEST = 20  # ranks of a CMC curve, at least
Progress = Callable[[int, int], None]


class Search(NamedTuple):
    """What each probe found.

    Attributes:
        mated: (P,) bool, whether somebody of its identity is in the gallery.
        rank: (P,) int64, of the best mate, from 1 on: others that score as high count against it; G + 1 without.
        score: (P,) float64, of the best mate; −inf without.
        other: (P,) float64, the best of those who are no mates.
        precision: (P,) float64, average precision; 0 without mates.
    """

    mated: np.ndarray
    rank: np.ndarray
    score: np.ndarray
    other: np.ndarray
    precision: np.ndarray


def look_up(
    probes: np.ndarray,
    gallery: np.ndarray,
    probe_identity: np.ndarray,
    gallery_identity: np.ndarray,
    progress: Progress | None = None,
) -> Search:
    """Searches for every probe in a gallery, streaming: no matrix of scores.

    Args:
        probes: (P,D) float32, of unit length.
        gallery: (G,D) float32, of unit length.
        probe_identity: (P,) int.
        gallery_identity: (G,) int; whoever is no probe's mate is a distractor, whatever the number.
        progress: told of comparisons, (done, all).
    """
    mates = mates_of(probe_identity, gallery_identity)
    found = rank_mates(probes, gallery, mates, progress=progress)
    who, count = mates[:, 0], len(probes)
    rank = np.full(count, len(gallery) + 1)
    np.minimum.at(rank, who, found.above + 1)
    score = np.full(count, -np.inf)
    np.maximum.at(score, who, found.scores)
    return Search(
        mated=np.bincount(who, minlength=count) > 0,
        rank=rank,
        score=score,
        other=found.other,
        precision=average_precision(who, found.above, count),
    )


def mates_of(probe_identity: np.ndarray, gallery_identity: np.ndarray) -> np.ndarray:
    """All pairs of a probe and a gallery row of one identity, (Q,2) int64, in the order of the probes."""
    order = np.argsort(gallery_identity, kind="stable")
    enrolled = gallery_identity[order]
    first = np.searchsorted(enrolled, probe_identity, side="left")
    each = np.searchsorted(enrolled, probe_identity, side="right") - first
    who = np.repeat(np.arange(len(each)), each)
    within = np.arange(len(who)) - np.repeat(np.cumsum(each) - each, each)
    return np.stack([who, order[first[who] + within]], axis=1)


def average_precision(who: np.ndarray, above: np.ndarray, count: int) -> np.ndarray:
    """Average precision of each of ``count`` probes, as TinyFace's own script (and Market-1501's) has it, (count,).

    The area under precision over recall, whose points are joined by straight lines: with mates at the ranks r_1 < r_2 …
    r_n it is 1/n·Σ ½·((i − 1)/(r_i − 1) + i/r_i), the former 1 where r_i is 1.

    Args:
        who: (Q,) probe of each mate.
        above: (Q,) others, no mates of that probe, that score at least as high.
        count: P.
    """
    order = np.lexsort((above, who))
    who, above = who[order], above[order]
    each = np.bincount(who, minlength=count)
    place = np.arange(len(who)) - np.repeat(np.cumsum(each) - each, each) + 1  # i
    rank = place + above
    before = np.where(rank == 1, 1.0, (place - 1) / np.maximum(rank - 1, 1))
    sums = np.bincount(who, weights=(before + place / rank) / 2, minlength=count)
    return sums / np.maximum(each, 1)


def cmc(rank: np.ndarray, longest: int) -> np.ndarray:
    """The share of searches whose mate is among the first 1 … ``longest``, (longest,) float64.

    Args:
        rank: (P,) of the best mate, from 1 on.
        longest: R.
    """
    return np.cumsum(np.bincount(rank, minlength=longest + 1)[1 : longest + 1]) / len(rank)


def identified(found: Search, fpir: Sequence[float], far_rule: str) -> dict[str, np.ndarray]:
    """Which mated probes are identified at FPIR targets (ISO/IEC 19795-1; Maze et al., ICB 2018, section 4).

    FPIR(T) is the share of probes without a mate whose best score is ≥ T; TPIR(T) the share of probes with a mate of
    whom a mate comes first, before all others, and scores ≥ T.

    Args:
        found: of probes of both kinds.
        fpir: targets.
        far_rule: how they are met, ``at_most`` or ``nearest``.

    Returns:
        ``tpir@fpir=0.01`` → (probes with a mate,) bool; nothing where all probes have one.
    """
    mated = found.mated
    if mated.all():
        return {}
    score, first = found.score[mated], found.rank[mated] == 1
    points: list[OperatingPoint] = tars_at_fars(score, found.other[~mated], fpir, far_rule)
    # A mate that does not come first is no hit, however low the threshold.
    return {
        f"tpir@fpir={target:g}": first & (score >= point.threshold) for target, point in zip(fpir, points, strict=True)
    }


def shares(
    values: Mapping[str, np.ndarray], trials: np.ndarray, subject: np.ndarray, replicates: int, seed: int
) -> tuple[dict[str, float], dict[str, str]]:
    """Numbers with their 95 % intervals over subjects, and these in words.

    Thresholds stay what they are on the whole set: the interval says what other people of the same kind would change.

    Args:
        values: key → (n,) hits of each unit that is counted (a probe, or all genuine pairs of a template).
        trials: (n,) of how many.
        subject: (n,) whose they are.
        replicates: of the bootstrap; 0: no intervals.
        seed: of its draws.

    Returns:
        ``key``, ``key_low``, ``key_high`` → fraction; ``key`` → words.
    """
    total = trials.sum()
    metrics = {key: float(hits.sum() / total) for key, hits in values.items()}
    if not replicates or not values:
        return metrics, {}
    people, of = np.unique(subject, return_inverse=True)
    hits = per_subject(of, np.stack(list(values.values()), axis=1), len(people))
    tried = np.repeat(per_subject(of, trials[:, None], len(people)), len(values), axis=1)
    bounds = share_intervals(hits, tried, replicates=replicates, seed=seed)
    found: dict[str, float] = {}
    notes: dict[str, str] = {}
    for key, low, high in zip(values, *bounds.tolist(), strict=True):
        found |= {key: metrics[key], f"{key}_low": low, f"{key}_high": high}
        notes[key] = f"95 % interval {100 * low:.2f} to {100 * high:.2f}"
    return found, notes


def check_ranks(ranks: Sequence[int]) -> tuple[int, ...]:
    """The ranks, each once, ascending.

    Raises:
        ValueError: none, or one below 1.
    """
    found = tuple(sorted(set(ranks)))
    if not found or found[0] < 1:
        raise ValueError(f"benchmark.ranks is {list(ranks)}: give whole numbers from 1 on, as [1,5,10]")
    return found


def check_bootstrap(bootstrap: int, seed: int) -> dict[str, int]:
    """What `shares` takes.

    Raises:
        ValueError: a number below 0.
    """
    if bootstrap < 0 or seed < 0:
        raise ValueError(
            f"benchmark.bootstrap={bootstrap}, benchmark.seed={seed}: give numbers from 0 on, as 1000 and 0"
        )
    return {"replicates": bootstrap, "seed": seed}
