"""From embeddings of images to one feature for each template: a person's still images and frames of videos together.

M is the number of images, D of an embedding's components, T of templates, N of pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

POOLINGS = ("media", "images")
ROWS = 512  # embeddings at once: in float64 they stay in the cache
WORTH = 16  # a product of all left with all right templates is faster than gathering one in so many of its entries
ENTRIES = 2**22  # of such a product at once, 16 MiB
GATHERED = 2048  # pairs gathered at once


class Templates(NamedTuple):
    """Features of templates.

    Attributes:
        ids: (T,) int64, ascending.
        features: (T,D) float32, of unit length.
    """

    ids: np.ndarray
    features: np.ndarray


@dataclass(frozen=True)
class Pooling:
    """How embeddings of images become the feature of a template.

    Args:
        norm: whether an embedding keeps its length, which says how good the image is; false: all count alike.
        detector_weight: whether an embedding is multiplied by the score that the face detector gave its image.
        pooling: ``media``: the mean within a media (the frames of a video, or a still image by itself), and the sum of
            those; ``images``: the mean of all images, so that a long video outweighs the rest.

    Raises:
        ValueError: an unknown pooling.
    """

    norm: bool
    detector_weight: bool
    pooling: str

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(f"benchmark.pooling is {self.pooling!r}: give one of {', '.join(POOLINGS)}")

    @property
    def stamp(self) -> dict[str, Any]:
        """As it stands in a protocol stamp."""
        return {
            "norm": "kept" if self.norm else "removed",
            "detector_weight": self.detector_weight,
            "pooling": "mean within a media, sum over media" if self.pooling == "media" else "mean over images",
        }

    def __call__(
        self,
        embeddings: np.ndarray,
        template: np.ndarray,
        media: np.ndarray,
        detector: np.ndarray | None,
        what: str,
        name: Callable[[int], str],
    ) -> Templates:
        """Pools. All of it is linear, so an image has one weight and a template is one weighted sum.

        Sums are in float64, a few hundred rows at a time: no second copy of the embeddings is made.

        Args:
            embeddings: (M,D).
            template: (M,) int, whose image it is.
            media: (M,) int; a number means the same media only within a template.
            detector: (M,) scores, where they weigh.
            what: is measured, for messages.
            name: image number → its name, for messages.

        Raises:
            ValueError: another number of rows, embeddings that are zero or not finite (counted, the first named), or a
                template whose embeddings cancel out.
        """
        lengths = lengths_of(embeddings, len(template), what, name)
        weight = np.ones(len(template)) if self.norm else 1 / lengths
        if self.detector_weight:
            assert detector is not None, "scores of the detector weigh, and there are none"
            weight *= detector
        order = np.lexsort((media, template))
        if self.pooling == "media":
            begins = _begins(template[order], media[order])
            sizes = np.diff(begins, append=len(order))
            weight[order] /= np.repeat(sizes, sizes)
        begins = _begins(template[order])
        ids = np.asarray(template, dtype=np.int64)[order[begins]]
        return Templates(ids, _unit(_sums(embeddings, weight, order, begins), ids, what))


def lengths_of(embeddings: np.ndarray, count: int, what: str, name: Callable[[int], str]) -> np.ndarray:
    """Lengths of embeddings, (M,) float64.

    Args:
        embeddings: (M,D).
        count: M, as it has to be.
        what: is measured, for messages.
        name: image number → its name, for messages.

    Raises:
        ValueError: another number of rows, or rows that are zero or not finite (counted, the first named).
    """
    if embeddings.ndim != 2 or len(embeddings) != count:
        raise ValueError(f"{what}: embeddings of shape {embeddings.shape} for {count:,} images; one row each")
    lengths = np.empty(count)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, count, ROWS):
            rows = embeddings[start : start + ROWS].astype(np.float64)
            lengths[start : start + ROWS] = np.sqrt(np.einsum("md,md->m", rows, rows))
    for kind, bad in (("not finite", ~np.isfinite(lengths)), ("zero", lengths == 0)):
        if bad.any():
            raise ValueError(
                f"{what}: {int(bad.sum()):,} of {count:,} embeddings are {kind}, the first is that of "
                f"{name(int(np.argmax(bad)))}; check the model's weights and its precision"
            )
    return lengths


def units(embeddings: np.ndarray, count: int, what: str, name: Callable[[int], str]) -> np.ndarray:
    """Embeddings (M,D) as float32 rows of unit length; see `lengths_of`, as for what is refused."""
    lengths = lengths_of(embeddings, count, what, name)
    found = np.empty(embeddings.shape, dtype=np.float32)
    for start in range(0, count, ROWS):
        rows = slice(start, start + ROWS)
        np.divide(embeddings[rows], lengths[rows, None], out=found[rows], casting="same_kind")
    return found


def _begins(*keys: np.ndarray) -> np.ndarray:
    """Where a new combination of sorted keys begins."""
    new = np.ones(len(keys[0]), dtype=bool)
    new[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return np.flatnonzero(new)


def _sums(embeddings: np.ndarray, weight: np.ndarray, order: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """Weighted sums (T,D) float64 of the rows in ``order``, of which a group begins at each of ``begins``."""
    sums = np.zeros((len(begins), embeddings.shape[1]))
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        values = embeddings[rows].astype(np.float64)
        values *= weight[rows, None]
        # A group may have begun in an earlier block, and may end in a later one.
        first = np.searchsorted(begins, start, side="right") - 1
        last = np.searchsorted(begins, start + len(rows), side="left")
        sums[first:last] += np.add.reduceat(values, np.maximum(begins[first:last] - start, 0), axis=0)
    return sums


def _unit(sums: np.ndarray, ids: np.ndarray, what: str) -> np.ndarray:
    lengths = np.sqrt(np.einsum("td,td->t", sums, sums))
    bad = ~(lengths > 0)
    if bad.any():
        raise ValueError(
            f"{what}: the embeddings of {int(bad.sum()):,} of {len(bad):,} templates add up to nothing, the first is "
            f"template {ids[np.argmax(bad)]}; check the detector's scores, or set benchmark.detector_weight=false"
        )
    sums /= lengths[:, None]
    return sums.astype(np.float32)


def places(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each of ``wanted`` stands in ``ids``, which ascend; −1 where it does not."""
    found = np.searchsorted(ids, wanted)
    found[found == len(ids)] = 0
    return np.where(ids[found] == wanted, found, -1)


def template_scores(features: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Cosines of pairs of unit features, (N,) float32, within 1e-6 of those in float64.

    IJB compares some thousand enrolled templates with many thousand others, again and again: then a blocked product of
    the ones with the others costs a fraction of gathering 2·N rows, and its entries are picked from the cache.

    Args:
        features: (T,D) float32, of unit length.
        pairs: (N,2) int, rows of ``features``.
    """
    left, right = (_used(side, len(features)) for side in pairs.T)
    if len(left.rows) * len(right.rows) <= WORTH * len(pairs):
        return _picked(features, pairs, left, right)
    scores = np.empty(len(pairs), dtype=np.float32)
    for start in range(0, len(pairs), GATHERED):
        one, other = (features[side] for side in pairs[start : start + GATHERED].T)
        np.einsum("nd,nd->n", one, other, out=scores[start : start + GATHERED])
    return scores


class _Used(NamedTuple):
    """The templates that occur on one side of the pairs."""

    rows: np.ndarray  # ascending
    place: np.ndarray  # (T,) int32: template → number among those rows


def _used(side: np.ndarray, count: int) -> _Used:
    used = np.zeros(count, dtype=bool)
    used[side] = True
    return _Used(np.flatnonzero(used), np.cumsum(used, dtype=np.int32) - 1)


def _picked(features: np.ndarray, pairs: np.ndarray, left: _Used, right: _Used) -> np.ndarray:
    """Entries of the product of left with right, which is made some rows at a time."""
    at = left.place[pairs[:, 0]]
    if len(left.rows) <= 2**16:
        at = at.astype(np.uint16)  # which numpy sorts by counting
    order = np.argsort(at, kind="stable")
    ends = np.cumsum(np.bincount(at, minlength=len(left.rows)))
    others = np.ascontiguousarray(features[right.rows].T)
    step = max(1, ENTRIES // len(right.rows))
    scores = np.empty(len(pairs), dtype=np.float32)
    for start in range(0, len(left.rows), step):
        stop = min(start + step, len(left.rows))
        product = features[left.rows[start:stop]] @ others
        chosen = order[ends[start - 1] if start else 0 : ends[stop - 1]]
        scores[chosen] = product[at[chosen].astype(np.int64) - start, right.place[pairs[chosen, 1]]]
    return scores
