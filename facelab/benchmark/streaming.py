"""Searching without a score matrix: blocked products of any size, of which only what is asked for is kept.

Scores are float64, and the float32 products of the blocks only sift (`facelab.benchmark.products`). P is the number of
probes, G of gallery rows, D the embedding size. Memory: the probes on the device, one block of the gallery, one tile of
scores; arrays may be memory-mapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from facelab.benchmark.products import TILES, Product, Progress, full_precision, norms, pair_scores, rounding, unit

__all__ = ["Nearest", "Progress", "Ranks", "pair_scores", "rank_mates", "rank_scores", "top_k", "unit"]


SPARE = 16  # further neighbours that are kept while sifting, so that rounding cannot lose one


class Nearest(NamedTuple):
    """The k best gallery rows of each probe, the best first; equal scores in the order of the rows.

    Where fewer than k rows are there, −inf and −1 fill up.
    """

    scores: np.ndarray  # (P,k) float64
    rows: np.ndarray  # (P,k) int64


class Ranks(NamedTuple):
    """What a search found about mates, and about all others.

    The rank of a probe's best mate is 1 + the least ``above`` of its mates.
    """

    scores: np.ndarray  # (Q,) float64, of each mate
    above: np.ndarray  # (Q,) int64: others that score at least as high; equal scores count against the mate
    other: np.ndarray  # (P,) float64, the best score of a row that is no mate; −inf where there is none
    other_row: np.ndarray  # (P,) int64, which that is; −1 where there is none


def top_k(
    probes: np.ndarray,
    gallery: np.ndarray,
    k: int,
    *,
    excluded: np.ndarray | None = None,
    device: str = "cpu",
    tile: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> Nearest:
    """The k most similar gallery rows of each probe, exact.

    Args:
        probes: (P,D) float; normalise them for cosines (`unit`).
        gallery: (G,D) float.
        k: how many are asked for, at least 1.
        excluded: (X,2) int pairs of probe and gallery row that are not compared, as an image with itself.
        device: ``cpu`` or ``cuda``.
        tile: probes and gallery rows that are multiplied at once; null: as fits the device.
        progress: told of every tile.

    Raises:
        ValueError: shapes that do not fit, rows that are not finite, k below 1.
    """
    search = _Search(probes, gallery, excluded, device, tile, progress)
    if k < 1:
        raise ValueError(f"k={k}: at least one neighbour is asked for")
    best = _Best(len(probes), min(k + SPARE, max(len(gallery), 1)), search.device)
    search.run([best])
    return search.settle(best, k)


def rank_mates(
    probes: np.ndarray,
    gallery: np.ndarray,
    mates: np.ndarray,
    *,
    device: str = "cpu",
    tile: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> Ranks:
    """Scores and ranks of mates among all that are no mates of the same probe, in one pass and without sorting.

    Args:
        probes: (P,D) float; normalise them for cosines (`unit`).
        gallery: (G,D) float.
        mates: (Q,2) int pairs of probe and gallery row: the same person. A probe may have several, or none.
        device: see `top_k`, as for tile and progress.
        tile: see there.
        progress: see there.

    Raises:
        ValueError: shapes that do not fit, rows that are not finite, mates that are not there.
    """
    search = _Search(probes, gallery, mates, device, tile, progress)
    scores = pair_scores(probes, gallery, search.excluded)
    return _ranked(search, search.excluded[:, 0], scores)


def rank_scores(
    probes: np.ndarray,
    gallery: np.ndarray,
    who: np.ndarray,
    scores: np.ndarray,
    *,
    excluded: np.ndarray | None = None,
    device: str = "cpu",
    tile: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> Ranks:
    """As `rank_mates`, of mates that lie elsewhere, whose scores are given (MegaFace: a gallery of distractors).

    Args:
        probes: (P,D) float.
        gallery: (G,D) float.
        who: (Q,) int probe of each score.
        scores: (Q,) float64, as of `pair_scores`.
        excluded: see `top_k`, as for the others.
        device: see there.
        tile: see there.
        progress: see there.

    Raises:
        ValueError: shapes that do not fit, rows that are not finite.
    """
    search = _Search(probes, gallery, excluded, device, tile, progress)
    who, scores = np.asarray(who, np.int64), np.asarray(scores, np.float64)
    if who.shape != scores.shape or who.ndim != 1 or (who.size and not 0 <= who.min() <= who.max() < len(probes)):
        raise ValueError(f"scores of shape {scores.shape} for probes {who.shape}: each score has a probe of its own")
    return _ranked(search, who, scores)


class _Visitor(Protocol):
    def see(self, scores: Tensor, best: Tensor, probe: int, row: int) -> None:
        """Is shown a tile (p,n,SEGMENT), and the best of each stretch (p,n): from which probe and gallery row on."""


class _Search:
    """What is compared with what, checked; `run` does it once."""

    def __init__(
        self,
        probes: np.ndarray,
        gallery: np.ndarray,
        excluded: np.ndarray | None,
        device: str,
        tile: tuple[int, int] | None,
        progress: Progress | None,
    ):
        self.probes, self.gallery = probes, gallery
        largest = [float(norms(rows, what).max(initial=0)) for rows, what in ((probes, "probes"), (gallery, "gallery"))]
        if probes.shape[1] != gallery.shape[1]:
            raise ValueError(
                f"probes have {probes.shape[1]} numbers each, the gallery {gallery.shape[1]}: not of one model"
            )
        self.rounding = rounding(probes.shape[1], *largest)
        self.bound = largest[0] * largest[1] + self.rounding
        self.excluded = (
            np.empty((0, 2), np.int64) if excluded is None else np.asarray(excluded, np.int64).reshape(-1, 2)
        )
        inside = (self.excluded >= 0) & (self.excluded < [len(probes), len(gallery)])
        if not inside.all():
            raise ValueError(
                f"{int((~inside.all(axis=1)).sum())} pairs name rows that are not there: {len(probes)} probes, "
                f"{len(gallery)} gallery rows"
            )
        self.device = torch.device(device)
        self.tile = tile or TILES[self.device.type]
        self.progress = progress

    def run(self, visitors: Sequence[_Visitor]) -> None:
        """Shows every tile to all visitors, the gallery in the order of its rows."""
        (height, width), product = self.tile, Product(self.tile, self.device)
        tops = range(0, len(self.probes), height)
        key = self.excluded[:, 1] // width * len(tops) + self.excluded[:, 0] // height
        order = np.argsort(key, kind="stable")
        within = torch.from_numpy((self.excluded % [height, width])[order]).to(self.device)
        ends = np.searchsorted(key[order], np.arange(-(-len(self.gallery) // width) * len(tops) + 1))
        done, total = 0, len(self.probes) * len(self.gallery)
        with full_precision():
            probes = [product.rows(self.probes, top, top + height) for top in tops]
            for block, row in enumerate(range(0, len(self.gallery), width)):
                rows = product.rows(self.gallery, row, row + width)
                for number, own in enumerate(probes):
                    scores = product(own, rows)
                    start, stop = ends[block * len(tops) + number :][:2]
                    if start < stop:
                        scores.view(len(own), -1)[within[start:stop, 0], within[start:stop, 1]] = -torch.inf
                    best = scores.amax(dim=2)
                    for visitor in visitors:
                        visitor.see(scores, best, number * height, row)
                    done += len(own) * len(rows)
                    if self.progress is not None:
                        self.progress(done, total)

    def settle(self, best: _Best, k: int) -> Nearest:
        """The k best in float64, of those that were kept; where too few were to be sure, more are kept once more."""
        best.finish()
        sifted, rows = best.scores.cpu().numpy(), best.rows.cpu().numpy()
        count, kept = rows.shape
        scores = np.full((count, kept), -np.inf)
        there = rows >= 0
        scores[there] = pair_scores(self.probes, self.gallery, np.stack([there.nonzero()[0], rows[there]], axis=1))
        rows = np.where(there, rows, len(self.gallery))
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
        rows[np.isneginf(scores)] = -1
        if scores.shape[1] < k:
            fill = ((0, 0), (0, k - scores.shape[1]))
            scores, rows = np.pad(scores, fill, constant_values=-np.inf), np.pad(rows, fill, constant_values=-1)
        if kept < len(self.gallery):
            unsure = np.flatnonzero(sifted[:, -1] + self.rounding >= scores[:, k - 1])
            unsure = unsure[np.isfinite(sifted[unsure, -1])]
            more = min(kept * 16, len(self.gallery))
            for some in np.array_split(unsure, -(-len(unsure) * more // 2**22)) if len(unsure) else []:
                scores[some], rows[some] = self._again(some, more, k)
        return Nearest(scores, rows)

    def _again(self, some: np.ndarray, keep: int, k: int) -> Nearest:
        """For a few probes, with more rows kept."""
        number = np.full(len(self.probes), -1)
        number[some] = np.arange(len(some))
        excluded = self.excluded[number[self.excluded[:, 0]] >= 0]
        excluded = np.stack([number[excluded[:, 0]], excluded[:, 1]], axis=1)
        search = _Search(self.probes[some], self.gallery, excluded, str(self.device), self.tile, None)
        best = _Best(len(some), keep, self.device)
        search.run([best])
        return search.settle(best, k)


def _ranked(search: _Search, who: np.ndarray, scores: np.ndarray) -> Ranks:
    best = _Best(len(search.probes), min(1 + SPARE, max(len(search.gallery), 1)), search.device)
    above = _Above(search, who, scores)
    search.run([best, above])
    other = search.settle(best, 1)
    return Ranks(scores, above.counts(), other.scores[:, 0], other.rows[:, 0])


class _Best:
    """Keeps the best of each probe, in float32; what comes later and is equal is no better.

    What passes the bar of a probe, its last score so far, waits until there is as much of it as is kept: bars that lag
    behind by so much let at most twice as many pass, and sorting becomes rare.
    """

    def __init__(self, count: int, keep: int, device: torch.device):
        self.scores = torch.full((count, keep), -torch.inf, device=device)
        self.rows = torch.full((count, keep), -1, dtype=torch.int64, device=device)
        self._waiting: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}  # by the first probe of a tile

    def see(self, scores: Tensor, best: Tensor, probe: int, row: int) -> None:
        """Takes in a tile of scores, from this probe and row on, and the best of each of its stretches."""
        keep = self.scores.shape[1]
        bar = self.scores[probe : probe + len(scores), -1]
        line, stretch = (best > bar[:, None]).nonzero(as_tuple=True)
        if not len(line):
            return
        own, segment = scores[line, stretch], scores.shape[2]
        better = own > bar[line][:, None]
        if len(line) * segment > scores.numel() // 4 and scores[0].numel() > keep:  # the first tiles: nearly all are
            least = scores.view(len(scores), -1).topk(keep, dim=1).values[:, -1]
            better &= own >= least[line][:, None]
        found, column = better.nonzero(as_tuple=True)
        waiting = self._waiting.setdefault(probe, [])
        waiting.append((line[found] + probe, own[better], column + stretch[found] * segment + row))
        if sum(len(part[0]) for part in waiting) >= keep * len(scores):
            self._merge(probe)

    def finish(self) -> None:
        """Takes in all that waits."""
        for probe in list(self._waiting):
            self._merge(probe)

    def _merge(self, probe: int) -> None:
        keep = self.scores.shape[1]
        who, scores, rows = (torch.cat(part) for part in zip(*self._waiting.pop(probe), strict=True))
        place, who = torch.unique(who, return_inverse=True)
        # What was there before stands first: a stable order keeps it there among equals.
        who = torch.cat([torch.arange(len(place), device=who.device).repeat_interleave(keep), who])
        scores = torch.cat([self.scores[place].flatten(), scores])
        rows = torch.cat([self.rows[place].flatten(), rows])
        order = torch.sort(scores, descending=True, stable=True).indices
        order = order[torch.sort(who[order], stable=True).indices]
        sizes = torch.bincount(who, minlength=len(place))
        rank = torch.arange(len(order), device=who.device) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        order, rank = order[rank < keep], rank[rank < keep]
        self.scores[place[who[order]], rank] = scores[order]
        self.rows[place[who[order]], rank] = rows[order]


class _Above:
    """Counts, for scores of each probe that are known (bars), who reaches them."""

    def __init__(self, search: _Search, who: np.ndarray, scores: np.ndarray):
        count = len(search.probes)
        self.search = search
        self.order = np.lexsort((scores, who))
        who, scores = who[self.order], scores[self.order]
        self.start = np.searchsorted(who, np.arange(count + 1))
        lowest = np.full(count, np.inf)
        some = np.flatnonzero(np.diff(self.start))
        lowest[some] = scores[self.start[some]] - search.rounding
        device = search.device
        self.lowest = torch.from_numpy(np.nextafter(lowest.astype(np.float32), np.float32(-np.inf))).to(device)
        # One sorted list of all bars: those of a probe lie in a stretch of numbers that no other probe has.
        self.span = 4 * max(search.bound, float(np.abs(scores).max(initial=0))) + 1
        self.slack = search.rounding + 2.0**-50 * self.span * (count + 1)  # keys are large numbers, and rounded too
        self.bars, self.keys = scores, torch.from_numpy(who * self.span + scores).to(device)
        self.starts = torch.from_numpy(self.start).to(device)
        # reached[start + probe + n]: how many reach n of this probe's bars, and no more
        self.reached = torch.zeros(len(scores) + count, dtype=torch.int64, device=device)

    def see(self, scores: Tensor, best: Tensor, probe: int, row: int) -> None:
        """Takes in a tile of scores, from this probe and row on, and the best of each of its stretches."""
        lowest = self.lowest[probe : probe + len(scores), None]
        line, stretch = (best >= lowest).nonzero(as_tuple=True)
        if not len(line):
            return
        own = scores[line, stretch]
        high = own >= lowest[line]
        number, column = high.nonzero(as_tuple=True)
        column += stretch[number] * scores.shape[2]
        found, who = own[high].double(), line[number] + probe
        base, start = who.double() * self.span + found, self.starts[who]
        low = torch.searchsorted(self.keys, base - self.slack, right=True) - start
        high = torch.searchsorted(self.keys, base + self.slack, right=True) - start
        close = (low != high).nonzero()[:, 0]
        if len(close):
            low[close] = self._settled(who[close], column[close] + row, low[close], high[close])
        self.reached.index_add_(0, start + who + low, torch.ones_like(low))

    def _settled(self, who: Tensor, row: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """How many bars are reached, by the float64 score."""
        pairs = torch.stack([who, row], dim=1).cpu().numpy()
        exact = pair_scores(self.search.probes, self.search.gallery, pairs)
        first, most = low.cpu().numpy(), high.cpu().numpy()
        start, reached = self.start[pairs[:, 0]], first.copy()
        for step in range(int((most - first).max())):
            there = first + step < most
            reached[there] += self.bars[start[there] + first[there] + step] <= exact[there]
        return torch.from_numpy(reached).to(who.device)

    def counts(self) -> np.ndarray:
        """(Q,) int64, of each bar in the order in which they were given: who reaches it."""
        reached = np.concatenate([[0], np.cumsum(self.reached.cpu().numpy())])
        who = np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))
        found = np.empty(len(self.bars), np.int64)
        found[self.order] = reached[self.start[who + 1] + who + 1] - reached[np.arange(len(who)) + who + 1]
        return found
