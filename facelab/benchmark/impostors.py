"""The largest impostor scores of any number of comparisons, exact, in one pass, with who they are of.

A threshold for a false match rate depends on the largest scores alone: for FMR ≤ 1e-4 of 1e10 comparisons the 1,000,001
largest. Tiles of products are sifted by a bar: what is below it is looked at once, as part of the maximum of a stretch
of 128. The bar is the lowest score that can still be among the K largest, given those that were seen; it only rises.
What is kept is a few million scores with their images, whatever the number of comparisons.

Scores are float64 as in `facelab.benchmark.products`: the bar lies below the K-th largest float32 product by twice the
rounding of such a product, so that the K largest float64 scores are kept, and in the end all of these are computed
again. So neither tiles nor device decide which impostor is in.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from facelab.atomic import atomic
from facelab.benchmark.comparisons import Comparisons
from facelab.benchmark.operating_points import allowed_false_accepts
from facelab.benchmark.products import TILES, Product, Progress, full_precision, norms, pair_scores, rounding
from facelab.benchmark.scores import DAMAGED

PIECE = 2**18  # scores that are taken out of a tile at once
MOST = 5 * 10**7  # scores that may be kept, 12 bytes each
LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Tail:
    """The K largest impostor scores, and whatever equals the last of them.

    Attributes:
        scores: (n,) float64, descending.
        enrol: (n,) int64 image.
        verify: (n,) int64 image.
        comparisons: N, of how many.
    """

    scores: np.ndarray
    enrol: np.ndarray
    verify: np.ndarray
    comparisons: int

    def threshold(self, fmr: float) -> float:
        """The lowest threshold with FMR ≤ target, just above the (⌊target·N⌋+1)-th largest score.

        Raises:
            ValueError: the target needs more scores than there are here.
        """
        allowed = allowed_false_accepts(fmr, self.comparisons)
        if allowed >= self.comparisons:
            return -math.inf
        if allowed >= len(self.scores):
            raise ValueError(f"fmr={fmr:g} needs the {allowed + 1:,} largest scores; {len(self.scores):,} were kept")
        return float(np.nextafter(self.scores[allowed], math.inf))

    def matches(self, threshold: float) -> int:
        """How many impostor scores reach a threshold that is not below the last score here."""
        return int(np.searchsorted(-self.scores, -threshold, side="right"))


def needed(fmr: float, comparisons: int) -> int:
    """K for `largest`, such that the threshold of a false match rate can be told.

    Raises:
        ValueError: that many cannot be kept.
    """
    count = min(allowed_false_accepts(fmr, comparisons) + 1, comparisons)
    if count > MOST // 2:
        raise ValueError(
            f"fmr={fmr:g} of {comparisons:,} impostor comparisons asks for the {count:,} largest scores, and at most "
            f"{MOST // 2:,} are kept: give a lower rate"
        )
    return count


def largest(
    enrol: np.ndarray,
    verify: np.ndarray | None,
    comparisons: Comparisons,
    count: int,
    *,
    device: str = "cpu",
    tile: tuple[int, int] | None = None,
    progress: Progress | None = None,
    state: Path | None = None,
    save_every: float = 60.0,
) -> Tail:
    """The ``count`` largest impostor scores, and all that equal the last of them.

    Args:
        enrol: (E,D) float; unit vectors give cosines.
        verify: (V,D) float; None: a single list.
        comparisons: who is compared with whom.
        count: K, at most `MOST` / 2; all scores where there are fewer.
        device: ``cpu`` or ``cuda``.
        tile: rows of both sides that are multiplied at once; null: as fits the device.
        progress: told of every tile.
        state: a file that says how far the work is, written every ``save_every`` seconds and removed at its end; where
            it is there, the work goes on from it.
        save_every: seconds.

    Raises:
        ValueError: shapes that do not fit, rows that are not finite, a state of other embeddings or options, or more
            scores within rounding of one another than can be kept.
    """
    sides = [enrol, enrol if verify is None else verify]
    if [len(side) for side in sides] != [len(comparisons.enrol), len(comparisons.verify)]:
        raise ValueError(
            f"{len(sides[0]):,} and {len(sides[1]):,} embeddings for {len(comparisons.enrol):,} enrolment and "
            f"{len(comparisons.verify):,} verification images; one row each"
        )
    if sides[0].shape[1:] != sides[1].shape[1:]:
        raise ValueError(f"embeddings of shapes {sides[0].shape} and {sides[1].shape} are not of one model")
    bounds = [float(norms(side, what).max(initial=0)) for side, what in zip(sides, ("enrol", "verify"), strict=True)]
    total = comparisons.impostors()
    count = min(count, total)
    place = torch.device(device)
    tile = tile or TILES[place.type]
    sift = _Sift(count, rounding(sides[0].shape[1], *bounds))
    if count:
        mark = None if state is None else _fingerprint(sides, comparisons, count, tile)
        _sweep(_Sweep(sides, comparisons, place, tile), sift, progress, state, mark, save_every)
    tail = sift.settled(sides)
    if state is not None:
        state.unlink(missing_ok=True)
    return Tail(*tail, total)


class _Sift:
    """Holds what may still be among the K largest."""

    def __init__(self, count: int, rounding: float):
        self.count, self.rounding = count, rounding
        self.floor, self.size = LOWEST, 0
        self._compact_at = count + max(count // 2, PIECE // 4)  # often: a bar that lags behind lets too many pass
        self._reserve(2 * count + 2 * PIECE)

    def _reserve(self, capacity: int) -> None:
        kinds = (np.float32, np.int32, np.int32)
        before = self.parts() if self.size else [np.empty(0)] * 3
        self._held = [np.empty(capacity, kind) for kind in kinds]
        for held, part in zip(self._held, before, strict=True):
            held[: self.size] = part

    def parts(self) -> list[np.ndarray]:
        """Scores, enrolment and verification images of what is held."""
        return [held[: self.size] for held in self._held]

    def add(self, scores: np.ndarray, enrol: np.ndarray, verify: np.ndarray) -> None:
        """Takes at most `PIECE` scores in."""
        for held, part in zip(self._held, (scores, enrol, verify), strict=True):
            held[self.size : self.size + len(part)] = part
        self.size += len(scores)
        if self.size >= self._compact_at:
            self.compact()

    def compact(self) -> None:
        """Raises the bar to what the scores that were seen allow, and drops what is below."""
        scores = self._held[0][: self.size]
        if self.size > self.count:
            place = self.size - self.count
            bar = float(np.partition(scores, place)[place]) - 2 * self.rounding
            self.floor = max(self.floor, float(np.nextafter(np.float32(bar), np.float32(-np.inf))))
        kept = scores >= self.floor
        left = int(kept.sum())
        for held in self._held:
            held[:left] = held[: self.size][kept]
        self.size = left
        self._compact_at = max(self._compact_at, self.size + PIECE // 4)  # more than K are within rounding of the K-th
        if self.size + 2 * PIECE > len(self._held[0]):
            if len(self._held[0]) >= MOST:
                raise ValueError(
                    f"{self.size:,} impostor scores are equal, or nearly so, to the {self.count:,}-th largest, "
                    f"{self.floor:.6f}: the model gives nearly the same embedding to everybody"
                )
            self._reserve(min(2 * len(self._held[0]), MOST + 2 * PIECE))

    def settled(self, sides: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The K largest float64 scores and their equals, descending; equals in the order of their images."""
        self.compact()
        _, enrol, verify = self.parts()
        pairs = np.stack([enrol, verify], axis=1).astype(np.int64)
        pairs = pairs[np.lexsort((verify, enrol))]
        scores = pair_scores(sides[0], sides[1], pairs)
        order = np.argsort(-scores, kind="stable")
        scores, pairs = scores[order], pairs[order]
        end = np.searchsorted(-scores, -scores[self.count - 1], side="right") if self.count else 0
        return scores[:end], pairs[:end, 0], pairs[:end, 1]


class _Sweep:
    """The tiles, in an order that mixes them, so that the bar is near its end from early on."""

    def __init__(self, sides: list[np.ndarray], comparisons: Comparisons, device: torch.device, tile: tuple[int, int]):
        self.comparisons = comparisons
        self.product = Product(tile, device)
        self.tiles = comparisons.tiles(*tile)
        self.tiles = self.tiles[np.random.default_rng(0).permutation(len(self.tiles))]
        # Groups have to lie together; without groups nothing is copied.
        sorted_sides = [
            side if comparisons.groups == 1 else side[rows] for side, rows in zip(sides, comparisons.rows, strict=True)
        ]
        first = self.product.rows(sorted_sides[0], 0, len(sides[0]))
        same = comparisons.single
        self.sides = (first, first if same else self.product.rows(sorted_sides[1], 0, len(sides[1])))

    def sizes(self) -> np.ndarray:
        """(T,) int64 comparisons of each tile."""
        top, bottom, left, right = self.tiles.T
        return (bottom - top) * (right - left)

    def take(self, number: int, sift: _Sift) -> None:
        """Adds what a tile has above the bar."""
        top, bottom, left, right = self.tiles[number].tolist()
        tile = self.product(self.sides[0][top:bottom], self.sides[1][left:right])
        for scores, row, column in _survivors(tile, sift):
            enrol, verify = row + top, column + left
            own = self.comparisons.impostor(enrol, verify)
            pair = [rows[image[own]] for rows, image in zip(self.comparisons.rows, (enrol, verify), strict=True)]
            if self.comparisons.single:
                pair = [np.minimum(*pair), np.maximum(*pair)]
            sift.add(scores[own], *pair)


def _survivors(tile: Tensor, sift: _Sift) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Scores of a tile (p,n,SEGMENT) that reach the bar, their rows and columns; the bar may rise in between."""
    stretches, segment = tile.shape[1:]
    flat = tile.view(-1, segment)
    hit = (flat.amax(dim=1) >= sift.floor).nonzero()[:, 0]
    for part in hit.split(max(1, PIECE // segment)):
        own = flat[part]
        high = own >= sift.floor
        number, column = high.nonzero(as_tuple=True)
        if len(number):
            place = part[number]
            column += place % stretches * segment
            yield own[high].cpu().numpy(), (place // stretches).cpu().numpy(), column.cpu().numpy()


def _sweep(
    sweep: _Sweep, sift: _Sift, progress: Progress | None, state: Path | None, mark: str | None, save_every: float
) -> None:
    """Every tile once, from where a state says."""
    begin = 0 if state is None or not state.exists() else _restored(state, mark, sift)
    sizes = sweep.sizes()
    done, total = int(sizes[:begin].sum()), int(sizes.sum())
    saved = time.monotonic()
    with full_precision():
        for number in range(begin, len(sizes)):
            sweep.take(number, sift)
            done += int(sizes[number])
            if state is not None and time.monotonic() - saved >= save_every:
                _save(state, mark, number + 1, sift)
                saved = time.monotonic()
            if progress is not None:
                progress(done, total)


def _fingerprint(sides: list[np.ndarray], comparisons: Comparisons, count: int, tile: tuple[int, int]) -> str:
    """sha256 of everything on which a state depends."""
    total = hashlib.sha256(f"{count} {tile} {comparisons.rule} {comparisons.single}".encode())
    about = (comparisons.enrol, comparisons.verify, comparisons.enrol_group, comparisons.verify_group)
    for array in (*(sides[:1] if comparisons.single else sides), *about):
        total.update(f"{array.shape} {array.dtype}".encode())
        for start in range(0, len(array), 2**14):
            total.update(np.ascontiguousarray(array[start : start + 2**14]).tobytes())
    return total.hexdigest()


def _save(state: Path, mark: str | None, done: int, sift: _Sift) -> None:
    scores, enrol, verify = sift.parts()
    with atomic(state) as temporary, open(temporary, "wb") as file:
        np.savez(file, mark=str(mark), done=done, floor=sift.floor, scores=scores, enrol=enrol, verify=verify)


def _restored(state: Path, mark: str | None, sift: _Sift) -> int:
    """Fills a sift as it was, and tells how many tiles it has seen."""
    try:
        with np.load(state, allow_pickle=False) as file:
            found = {key: file[key] for key in ("mark", "done", "floor", "scores", "enrol", "verify")}
    except DAMAGED as error:
        raise ValueError(f"{state}: not a state of this work ({error}); delete it to begin anew") from error
    if str(found["mark"]) != mark:
        raise ValueError(f"{state}: is of other embeddings or options; delete it to begin anew, or give another file")
    for start in range(0, len(found["scores"]), PIECE):
        sift.add(*(found[key][start : start + PIECE] for key in ("scores", "enrol", "verify")))
    sift.floor = float(found["floor"])
    return int(found["done"])


def sample_scores(
    enrol: np.ndarray, verify: np.ndarray | None, comparisons: Comparisons, most: int, seed: int
) -> np.ndarray:
    """Impostor scores of a few images with a few others, chosen at random: what the body of their distribution is.

    Args:
        enrol: (E,D) float.
        verify: (V,D) float; None: a single list, of which two different parts are compared.
        comparisons: which of them count.
        most: images of either side.
        seed: of the choice.

    Returns:
        (n,) float64, products in float32.
    """
    rng = np.random.default_rng(seed)
    if verify is None:
        drawn = rng.permutation(len(enrol))[: 2 * most]
        one, other = np.sort(drawn[::2]), np.sort(drawn[1::2])
    else:
        one, other = (np.sort(rng.permutation(len(side))[:most]) for side in (enrol, verify))
    counts = comparisons.enrol[one][:, None] != comparisons.verify[other]
    counts &= (comparisons.enrol_group[one][:, None] == comparisons.verify_group[other]) == comparisons.within
    with full_precision():
        rows = (enrol if verify is None else verify)[other]
        scores = (
            torch.from_numpy(np.ascontiguousarray(enrol[one], np.float32))
            @ torch.from_numpy(np.ascontiguousarray(rows, np.float32)).T
        )
    return scores.numpy()[counts].astype(np.float64)
