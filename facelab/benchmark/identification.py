"""1:N search in an open set: how often the right person is missed, where few searches of strangers may find anybody.

FPIR(T) is the share of non-mated searches whose best candidate scores ≥ T; FNIR(N, R, T) the share of mated searches
whose mate is not among the first R candidates, or scores < T, in a gallery of N people. The threshold of a target is
the lowest with FPIR ≤ target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from facelab.benchmark.comparisons import Comparisons
from facelab.benchmark.operating_points import allowed_false_accepts
from facelab.benchmark.streaming import Progress, rank_mates


@dataclass(frozen=True)
class Searches:
    """What every search found.

    Attributes:
        mated: (P,) bool, whether the person is in the gallery.
        score: (P,) float64 of the mate; −inf where a search, or the mate's image, has failed, or where there is none.
        rank: (P,) int64 of the mate, 1 + others that score at least as high; 0 where there is no score.
        other: (P,) float64, the best score of somebody else; −inf where the search has failed.
    """

    mated: np.ndarray
    score: np.ndarray
    rank: np.ndarray
    other: np.ndarray

    @property
    def strangers(self) -> np.ndarray:
        """(P,) bool, the non-mated searches: of people not enrolled; without such people all, their mates taken out."""
        return np.ones(len(self.mated), bool) if self.mated.all() else ~self.mated

    def threshold(self, fpir: float) -> float:
        """The lowest with FPIR ≤ target."""
        scores = np.sort(self.other[self.strangers])[::-1]
        allowed = allowed_false_accepts(fpir, len(scores))
        if allowed >= len(scores):
            return -math.inf
        return float(np.nextafter(scores[allowed], math.inf))

    def missed(self, threshold: float, rank: int) -> np.ndarray:
        """(P,) bool: mated searches that do not bring the mate."""
        found = (self.rank > 0) & (self.rank <= rank) & (self.score >= threshold)
        return self.mated & ~found

    def cmc(self, most: int) -> np.ndarray:
        """(most,) share of mated searches with the mate among the first 1, 2 … candidates, whatever its score."""
        ranks = self.rank[self.mated]
        counts = np.bincount(np.minimum(ranks, most + 1), minlength=most + 2)
        return np.cumsum(counts[1 : most + 1]) / max(len(ranks), 1)


def search(
    probes: np.ndarray,
    gallery: np.ndarray,
    probe_person: np.ndarray,
    gallery_person: np.ndarray,
    failed_probes: np.ndarray,
    failed_gallery: np.ndarray,
    *,
    device: str,
    progress: Progress | None,
) -> Searches:
    """Searches every probe in a gallery with one image of each person.

    Args:
        probes: (P,D) float32 unit vectors.
        gallery: (N,D) float32 unit vectors.
        probe_person: (P,) int.
        gallery_person: (N,) int, no one twice.
        failed_probes: (P,) bool: no embedding; whose rows mean nothing.
        failed_gallery: (N,) bool, likewise.
        device: see `facelab.benchmark.streaming.top_k`, as for progress.
        progress: see there.
    """
    assert len(np.unique(gallery_person)) == len(gallery_person), "one image of each person"
    there, enrolled = np.flatnonzero(~failed_probes), np.flatnonzero(~failed_gallery)
    mates = Comparisons(probe_person[there], gallery_person[enrolled]).genuine()
    ranks = rank_mates(probes[there], gallery[enrolled], mates, device=device, progress=progress)
    score, other = (np.full(len(probes), -math.inf) for _ in range(2))
    rank = np.zeros(len(probes), np.int64)
    who = there[mates[:, 0]]
    score[who], rank[who], other[there] = ranks.scores, ranks.above + 1, ranks.other
    return Searches(np.isin(probe_person, gallery_person), score, rank, other)
