"""Which images of a list have become templates, and the scores of those that are compared one by one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from facelab.benchmark.comparisons import Comparisons
from facelab.benchmark.identification import Searches, search
from facelab.benchmark.image_list import ImageList
from facelab.benchmark.streaming import Progress, pair_scores, unit
from facelab.benchmark.verification import Genuine


@dataclass(frozen=True)
class Enrolled:
    """Images with an embedding, and those without.

    Attributes:
        images: all of them, M.
        enrol: (E,D) float32 unit vectors.
        verify: (V,D) likewise; None: a single list.
        sides: image numbers of these rows.
        failed: (M,) bool.
        reasons: of each failed image, its name and why.
    """

    images: ImageList
    enrol: np.ndarray
    verify: np.ndarray | None
    sides: tuple[np.ndarray, np.ndarray]
    failed: np.ndarray
    reasons: list[dict[str, str]]

    def genuine(self) -> Genuine:
        """All comparisons of people with themselves; −inf where an image has failed."""
        images = self.images
        rows = compare(images, (images.enrol, images.probes), "all", None).genuine()
        pairs = np.stack([images.enrol[rows[:, 0]], images.probes[rows[:, 1]]], axis=1)
        scores = np.full(len(pairs), -np.inf)
        there = ~self.failed[pairs].any(axis=1)
        places = [np.zeros(len(self.failed), np.int64) for _ in self.sides]
        for place, side in zip(places, self.sides, strict=True):
            place[side] = np.arange(len(side))
        chosen = np.stack([place[image] for place, image in zip(places, pairs[there].T, strict=True)], axis=1)
        scores[there] = pair_scores(self.enrol, self.enrol if self.verify is None else self.verify, chosen)
        return Genuine(scores, pairs[:, 0], pairs[:, 1], images.person[pairs[:, 0]], len(images.people))

    def morphs(self, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Morphs (n,), contributors (n,) and scores (n,) of every morph with every probe of its contributors."""
        images = self.images
        assert images.morphs is not None, "there are morphs"
        morph = np.repeat(np.arange(len(images.morphs.images)), [len(who) for who in images.morphs.contributors])
        person = np.concatenate(images.morphs.contributors)
        found = Comparisons(person, images.person[images.probes]).genuine()  # which contributor, which of its probes
        pairs = np.stack([images.morphs.images[morph[found[:, 0]]], images.probes[found[:, 1]]], axis=1)
        there = ~self.failed[pairs].any(axis=1)
        scores = np.full(len(pairs), -np.inf)
        numbers, place = np.unique(pairs[there], return_inverse=True)
        rows = unit(embeddings[numbers])
        scores[there] = pair_scores(rows, rows, place.reshape(-1, 2))
        return morph[found[:, 0]], person[found[:, 0]], scores

    def searches(self, embeddings: np.ndarray, device: str, progress: Progress | None) -> tuple[Searches, np.ndarray]:
        """Every verification image, searched among the first image of each enrolled person; and whose they are.

        Of a single list, all images but those first ones are searched.

        Raises:
            ValueError: no search has a mate.
        """
        images = self.images
        gallery = images.enrol[np.unique(images.person[images.enrol], return_index=True)[1]]
        probes = np.setdiff1d(images.enrol, gallery) if images.verify is None else images.verify
        searches = search(
            unit(embeddings[probes]),
            unit(embeddings[gallery]),
            images.person[probes],
            images.person[gallery],
            self.failed[probes],
            self.failed[gallery],
            device=device,
            progress=progress,
        )
        if not searches.mated.any():
            raise ValueError(
                f"{images.source}: no search has a mate in the gallery; set benchmark.fpir=[] for 1:1 alone"
            )
        return searches, images.person[probes]


def compare(images: ImageList, sides: tuple[np.ndarray, np.ndarray], rule: str, group: str | None) -> Comparisons:
    """All comparisons of some images of a list.

    Args:
        images: the list.
        sides: enrolment and verification image numbers; of a single list the same twice.
        rule: which impostor comparisons count, see `facelab.benchmark.comparisons`.
        group: the column of the groups of that rule.
    """
    people = [images.person[side] for side in sides]
    groups = [images.groups[group].code[side] if group else None for side in sides]
    if images.verify is None:
        return Comparisons(people[0], None, rule, groups[0], None)
    return Comparisons(people[0], people[1], rule, groups[0], groups[1])


def enrol(embeddings: np.ndarray, images: ImageList, accept_zero: bool) -> Enrolled:
    """Sorts out which images have an embedding.

    Args:
        embeddings: (M,D), rows of failed images mean nothing.
        images: already loaded, so that unreadable ones are known.
        accept_zero: whether a zero embedding is a failure to enrol, and not an error.

    Raises:
        ValueError: another number of rows; rows that are zero or not finite, counted and named.
    """
    if embeddings.ndim != 2 or len(embeddings) != len(images):
        raise ValueError(
            f"{images.name}: embeddings of shape {embeddings.shape} for {len(images)} images; one row each"
        )
    unreadable = np.zeros(len(images), bool)
    unreadable[sorted(images.unreadable)] = True
    failed = images.listed | unreadable
    length = np.sqrt(np.einsum("md,md->m", embeddings, embeddings, dtype=np.float64))
    bad = ~np.isfinite(length) & ~failed
    zero = (length == 0) & ~failed
    for what, those in (("not finite", bad), *([] if accept_zero else [("zero", zero)])):
        if those.any():
            named = ", ".join(images.names[i] for i in np.flatnonzero(those)[:10])
            raise ValueError(
                f"{images.name}: {int(those.sum()):,} of {len(those):,} embeddings are {what}, those of {named}"
                f"{', …' if those.sum() > 10 else ''}; check the model's weights and its precision"
            )
    why = (("listed", images.listed), ("unreadable", unreadable & ~images.listed), ("zero", zero))
    reasons = [{"image": images.names[i], "why": word} for word, those in why for i in np.flatnonzero(those)]
    failed = failed | zero
    first = images.enrol[~failed[images.enrol]]
    second = None if images.verify is None else images.verify[~failed[images.verify]]
    rows = None if second is None else unit(embeddings[second])
    return Enrolled(
        images, unit(embeddings[first]), rows, (first, first if second is None else second), failed, reasons
    )
