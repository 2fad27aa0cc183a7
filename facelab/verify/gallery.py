"""A gallery: enrolled people, searched exactly or, where there are very many, through an index; and its thresholds.

FPIR(T) is the share of searches for people who are not enrolled whose best candidate scores ≥ T. It grows with the
gallery, so it is measured on this one: strangers are searched for in it, or, where none are given, every enrolled image
in the gallery without its own person (ISO/IEC 19795-1 calls both non-mated searches).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from facelab.atomic import atomic, refuse_existing
from facelab.benchmark.operating_points import allowed_false_accepts
from facelab.benchmark.streaming import pair_scores, rank_mates, top_k, unit

__all__ = ["EXACT_UP_TO", "Candidates", "Gallery", "calibrate", "make"]

EXACT_UP_TO = 1_000_000  # people: a search in so many takes a fifth of a second on a core
_SEEN = 64  # lists of the index that a search looks into
_KEPT = 8  # times as many candidates come out of the index as are asked for, and are scored exactly


class Candidates(NamedTuple):
    """Who comes nearest to each of P probes, the best first; −inf and −1 fill up where fewer are enrolled."""

    scores: np.ndarray  # (P,k) float64, cosines
    people: np.ndarray  # (P,k) int64


@dataclass(frozen=True)
class Gallery:
    """Enrolled people.

    Attributes:
        names: N people.
        templates: (N,D) float32, unit sums of their images' embeddings.
        images: (N,) int64, how many images each has.
        strangers: (S,) float64, falling: best scores of non-mated searches.
        stamp: of the model that made it, and how the searches were made.
        index: faiss's index, serialised (n,) uint8; empty where the search is exact.
    """

    names: Sequence[str]
    templates: np.ndarray
    images: np.ndarray
    strangers: np.ndarray
    stamp: Mapping[str, Any]
    index: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))

    def search(self, probes: np.ndarray, count: int) -> Candidates:
        """The nearest people of each probe.

        Args:
            probes: (P,D) float32, of unit length.
            count: k.

        Raises:
            ValueError: probes of another model.
        """
        if probes.shape[1] != self.templates.shape[1]:
            raise ValueError(
                f"the gallery has embeddings of {self.templates.shape[1]} numbers, the model gives {probes.shape[1]}: "
                "enrol with this model"
            )
        if not len(self.index):
            return Candidates(*top_k(probes, self.templates, count))
        return self._through_index(probes, count)

    def threshold(self, fpir: float) -> float:
        """The lowest score at which at most so large a share of searches for strangers finds anybody.

        Raises:
            ValueError: so few cannot be stated by these searches.
        """
        if not 0 < fpir < 1:
            raise ValueError(f"fpir is {fpir:g}: give a share between 0 and 1, as 0.01")
        allowed = allowed_false_accepts(fpir, len(self.strangers))
        if not allowed:
            made = len(self.strangers)
            least = f"ask for {math.ceil(1000 / made) / 1000:g} or more, or " if made else ""
            raise ValueError(
                f"fpir={fpir:g}: this gallery was searched for {made:,} strangers, too few to state it: {least}enrol "
                "with strangers=FOLDER of people who are not enrolled, or give a threshold=… of your own"
            )
        if allowed >= len(self.strangers):
            return -1.0
        return float(np.nextafter(self.strangers[allowed], math.inf))

    def save(self, path: Path) -> None:
        """Writes it into one file (safetensors), whole or not at all.

        Raises:
            FileExistsError: something has that name.
        """
        refuse_existing(path)
        arrays: dict[str, np.ndarray] = {
            "templates": np.ascontiguousarray(self.templates, np.float32), "images": np.asarray(self.images, np.int64),
            "strangers": np.asarray(self.strangers, np.float64), "index": np.asarray(self.index),
        }  # fmt: skip
        told = {"facelab_gallery": json.dumps({"names": list(self.names), "stamp": dict(self.stamp)})}
        with atomic(path) as temporary:
            save_file(arrays, temporary, metadata=told)

    @staticmethod
    def load(path: str) -> Gallery:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no gallery.
        """
        file = Path(path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"gallery={path}: no such file; make one with python -m facelab.enrol")
        try:
            with safe_open(file, "np") as opened:
                told = json.loads(opened.metadata()["facelab_gallery"])
                arrays = {key: opened.get_tensor(key) for key in ("templates", "images", "strangers", "index")}
            return Gallery(told["names"], stamp=told["stamp"], **arrays)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"gallery={path}: is no gallery of facelab ({error!s:.200}): make one with facelab.enrol"
            ) from None

    @cached_property
    def _faiss(self) -> Any:
        opened = _faiss().deserialize_index(self.index)
        if opened.ntotal != len(self.templates):
            raise ValueError(
                f"the gallery's index holds {opened.ntotal:,} of {len(self.templates):,} people: enrol anew"
            )
        opened.nprobe = min(_SEEN, opened.nlist)
        return opened

    def _through_index(self, probes: np.ndarray, count: int) -> Candidates:
        found = self._faiss.search(np.ascontiguousarray(probes, np.float32), min(count * _KEPT, len(self.templates)))[1]
        scores = np.full(found.shape, -np.inf)
        there = found >= 0
        pairs = np.stack([there.nonzero()[0], found[there]], axis=1)
        scores[there] = pair_scores(probes, self.templates, pairs)
        order = np.lexsort((found, -scores), axis=1)[:, :count]
        return Candidates(np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1))


def make(
    names: Sequence[str], embeddings: np.ndarray, person: np.ndarray, stamp: Mapping[str, Any], index: str
) -> Gallery:
    """A gallery of people with one image or more; its thresholds come from `calibrate`.

    Args:
        names: N people.
        embeddings: (M,D) unit vectors.
        person: (M,) whose each is, 0 … N−1; everybody has one at least.
        stamp: see `Gallery`.
        index: auto (an index above `EXACT_UP_TO` people), exact, faiss.

    Raises:
        ValueError: another word, or faiss is not installed where it is needed.
    """
    if index not in ("auto", "exact", "faiss"):
        raise ValueError(f"index is {index!r}: give one of auto, exact, faiss")
    sums = np.zeros((len(names), embeddings.shape[1]))
    np.add.at(sums, person, embeddings)
    templates = unit(sums).astype(np.float32)
    images = np.bincount(person, minlength=len(names))
    indexed = index == "faiss" or (index == "auto" and len(names) > EXACT_UP_TO)
    built = _built(templates) if indexed else np.empty(0, np.uint8)
    return Gallery(names, templates, images, np.empty(0), stamp, built)


def calibrate(
    gallery: Gallery, embeddings: np.ndarray, person: np.ndarray, strangers: np.ndarray | None
) -> tuple[np.ndarray, str]:
    """Best scores of non-mated searches, (S,) falling, and how they were made.

    Args:
        gallery: in which is searched.
        embeddings: (M,D) of the enrolled images.
        person: (M,) whose.
        strangers: (S,D) of people who are not enrolled; None: each enrolled image, without its own person.
    """
    if strangers is not None:
        best = gallery.search(strangers, 1).scores[:, 0]
        return np.sort(best)[::-1].copy(), f"{len(best):,} images of people who are not enrolled"
    if len(gallery.names) < 2:
        return np.empty(0), "nobody else is enrolled"
    own = np.stack([np.arange(len(person)), person], axis=1)
    best = rank_mates(np.asarray(embeddings, np.float32), gallery.templates, own).other
    return np.sort(best)[::-1].copy(), f"{len(best):,} enrolled images, each without its own person"


def _built(templates: np.ndarray) -> np.ndarray:
    """An inverted file over 4·√N cells, which keeps the vectors as they are."""
    faiss = _faiss()
    cells = max(1, min(int(4 * math.sqrt(len(templates))), len(templates) // 39 or 1))  # 39: faiss's least for training
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(templates.shape[1]), templates.shape[1], cells, faiss.METRIC_INNER_PRODUCT
    )
    chosen = np.random.default_rng(0).permutation(len(templates))[: 64 * cells]
    index.train(templates[np.sort(chosen)])
    index.add(templates)
    return faiss.serialize_index(index)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise ValueError(
            "an index of this gallery needs faiss: pip install 'facelab[mining]', or index=exact"
        ) from None
    return faiss
