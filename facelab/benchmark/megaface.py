"""MegaFace's challenge 1: one mate among up to a million distractors, and verification against all of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from facelab.benchmark.comparisons import Comparisons
from facelab.benchmark.crops import Crop
from facelab.benchmark.impostors import largest, needed
from facelab.benchmark.megaface_files import MegaFaceLayout, MegaFaceSet
from facelab.benchmark.operating_points import allowed_false_accepts
from facelab.benchmark.pairs import short
from facelab.benchmark.scores import CountedResult
from facelab.benchmark.searching import check_bootstrap, check_ranks, shares
from facelab.benchmark.streaming import Progress, pair_scores, top_k
from facelab.benchmark.templates import units

NOISES = ("replace", "remove", "keep")
NOBODY = -1


class MegaFace:
    """MegaFace challenge 1 (Kemelmacher-Shlizerman et al., CVPR 2016) with FaceScrub as probes.

    Every ordered pair of two images of one person is a search: the one is looked for in a gallery of the other, its
    mate, and the distractors. Rank-k is the share of searches in which fewer than k distractors score at least as high
    as the mate. Verification has all pairs of images of one person as genuine, and probes × distractors as impostors.

    The noise lists (ArcFace, Deng et al., 2019) name wrongly labelled probes and distractors that show a probe's
    person. Such distractors are left out. Such probes: ``replace`` puts the centre of the person's other images in
    their place, which is what InsightFace's script does (but for a noise of 0.001) and "refined" published numbers are;
    ``remove`` leaves them out too; ``keep`` uses no lists.

    Args:
        name: first part of the metric keys.
        path: the folder of images and noise lists, see `facelab.benchmark.megaface_files`.
        lists: the folder of the kit's lists; null: ``<path>/devkit/templatelists``.
        sizes: numbers of distractors; the largest gives ``<name>/rank1`` and the TAR.
        draw: which of the kit's draws of so many.
        noise: ``replace``, ``remove`` or ``keep``.
        mirror: whether the caller adds the mirrored image's embedding; part of the stamp.
        ranks: k of rank-k.
        far: false accept rates to report TAR at, never above the target.
        size: image size handed to the network, pixels.
        crop: ``keep``, ``shape`` and ``alignment`` of `Crop`.
        bootstrap: replicates of the 95 % intervals over people; 0: no intervals.
        seed: of these.
        known: published counts, ``probes`` and ``people``, which `check` compares.

    Attributes:
        evaluates_only: a training does not report on it.
        tells_progress: `evaluate` says how far it is.

    Raises:
        ValueError: a setting out of range.
    """

    evaluates_only = True
    tells_progress = True

    def __init__(
        self,
        name: str,
        path: str | None,
        lists: str | None,
        sizes: Sequence[int],
        draw: int,
        noise: str,
        mirror: bool,
        ranks: Sequence[int],
        far: Sequence[float],
        size: int,
        crop: Mapping[str, Any],
        bootstrap: int,
        seed: int,
        known: Mapping[str, int],
    ):
        if noise not in NOISES:
            raise ValueError(f"benchmark.noise is {noise!r}: give one of {', '.join(NOISES)}")
        if not sizes or min(sizes) < 1:
            raise ValueError(f"benchmark.sizes is {list(sizes)}: give numbers of distractors, as [1000000]")
        for target in far:
            allowed_false_accepts(target, 1)
        self.path = None if path is None else Path(path).expanduser()
        self.lists = None if lists is None else Path(lists).expanduser()
        self.name, self.sizes, self.draw, self.noise = name, tuple(sorted(set(sizes))), draw, noise
        self.mirror, self.ranks, self.far = bool(mirror), check_ranks(ranks), tuple(map(float, far))
        self.crop, self.known = Crop(size, **crop), dict(known)
        self.bootstrap = check_bootstrap(bootstrap, seed)

    def _layout(self) -> MegaFaceLayout:
        if self.path is None:
            raise ValueError("benchmark.path is null: give the folder of facescrub_images and megaface_images")
        lists = self.lists or self.path / "devkit" / "templatelists"
        return MegaFaceLayout(self.path, lists, self.sizes, self.draw, self.noise != "keep")

    def check(self) -> list[str]:
        """The doctor: what is missing, and counts other than the published ones; empty where all is there."""
        layout = self._layout()
        found = layout.missing()
        if found:
            return found
        try:
            images = layout.read(self.name, self.crop)
        except (ValueError, FileNotFoundError) as error:
            return [str(error)]
        there = {"probes": len(images.identity), "people": len(np.unique(images.identity))}
        return [
            f"{layout.probes}: {there[key]:,} {key}, published are {count:,}"
            for key, count in self.known.items()
            if there[key] != count
        ]

    def open(self, own: Any) -> MegaFaceSet:
        """Reads the lists and finds the images.

        Args:
            own: ignored.

        Raises:
            FileNotFoundError: lists, folders or images are missing; all of them are told.
            ValueError: no path, a list that cannot be read, or nobody with two probes.
        """
        images = self._layout().read(self.name, self.crop)
        counted = images.identity[~images.noisy] if self.noise != "keep" else images.identity
        alone = np.setdiff1d(images.identity, counted)
        if self.noise == "replace" and len(alone):
            raise ValueError(
                f"{self.name}: of {len(alone):,} people the noise list leaves no image from which a centre could be "
                "taken: set benchmark.noise=remove"
            )
        if np.bincount(counted).max(initial=0) < 2:
            raise ValueError(f"{self.name}: no person has two probes; check {self._layout().probes}")
        return images

    def evaluate(self, embeddings: np.ndarray, images: MegaFaceSet, progress: Progress | None = None) -> CountedResult:
        """Searches among each number of distractors, and verifies.

        Metrics: ``<name>/rank1`` for each k with the largest number, ``<name>/rank1@distractors=1000`` with the others,
        ``<name>/tar@1e-6`` for each target; as fractions, each with ``_low`` and ``_high``, the 95 % interval over
        people.

        Args:
            embeddings: (P+N,D), in order; need not be normalised.
            images: what `open` gave.
            progress: told of comparisons, (done, all), of each number of distractors anew.

        Raises:
            ValueError: another number of rows, or rows that are zero or not finite (counted, the first named).
        """
        name, count = images.name, len(images.identity)
        features = units(embeddings, len(images), name, lambda i: str(images.files[i]))
        probes, identity = self._probes(features[:count], images)
        distractors = features[count:]
        people = Comparisons(identity, None).genuine()
        same = pair_scores(probes, probes, people)
        searches, score = np.concatenate([people, people[:, ::-1]]), np.concatenate([same, same])
        most, full = max(self.ranks), max(images.drawn)
        above = {}
        for size, drawn in sorted(images.drawn.items(), reverse=True):
            among = distractors[slice(len(drawn)) if size == full else drawn]  # of the most, no copy
            near = top_k(probes, among, most, progress=progress)
            above[size] = (near.scores[searches[:, 0]] >= score[:, None]).sum(axis=1)
        at = {size: "" if size == full else f"@distractors={size}" for size in above}
        hits = {f"{name}/rank{k}{at[size]}": those < k for size, those in above.items() for k in self.ranks}
        metrics, notes = shares(hits, np.ones(len(score)), identity[searches[:, 0]], **self.bootstrap)
        among = distractors[: len(images.drawn[full])]
        found, words, kept = self._verify(probes, among, people, same, identity, progress)
        kept |= {
            "cmc": np.array([np.mean(above[full] < k) for k in range(1, most + 1)]),
            "searches": searches,
            "mate_score": score,
            "above": above[full],  # up to the largest k
            "identity": identity,
        }
        main = f"{name}/rank{self.ranks[0]}"
        return CountedResult(name, metrics | found, kept, self._stamp(images), main, notes=notes | words)

    def _probes(self, features: np.ndarray, images: MegaFaceSet) -> tuple[np.ndarray, np.ndarray]:
        """Features of the probes, noisy ones replaced or removed, and whose they are."""
        noisy, identity = images.noisy, images.identity
        if self.noise == "keep" or not noisy.any():
            return features, identity
        if self.noise == "remove":
            return features[~noisy], identity[~noisy]
        centres = np.zeros((identity.max() + 1, features.shape[1]))
        np.add.at(centres, identity[~noisy], features[~noisy].astype(np.float64))
        replaced = features.copy()
        replaced[noisy] = (centres / np.linalg.norm(centres, axis=1, keepdims=True))[identity[noisy]]
        return replaced, identity

    def _verify(
        self,
        probes: np.ndarray,
        distractors: np.ndarray,
        people: np.ndarray,
        same: np.ndarray,
        identity: np.ndarray,
        progress: Progress | None,
    ) -> tuple[dict[str, float], dict[str, str], dict[str, np.ndarray]]:
        """TAR at the FAR targets; what is to be said of them; and the tail of the impostors."""
        if not self.far:
            return {}, {}, {}
        against = Comparisons(identity, np.full(len(distractors), NOBODY))
        total = len(probes) * len(distractors)
        most = max(needed(far, total) for far in self.far)
        tail = largest(probes, distractors, against, most, progress=progress)
        thresholds = np.array([tail.threshold(far) for far in self.far])
        keys = [f"{self.name}/tar@{short(far)}" for far in self.far]
        hits = {key: same >= threshold for key, threshold in zip(keys, thresholds, strict=True)}
        metrics, notes = shares(hits, np.ones(len(same)), identity[people[:, 0]], **self.bootstrap)
        for key, far in zip(keys, self.far, strict=True):
            if not allowed_false_accepts(far, total):
                notes[key] = f"zero false accepts, N={total:,}"
        return (
            metrics,
            notes,
            {
                "genuine": same,
                "impostor_tail": tail.scores,
                "impostor_count": np.array(total),
                "thresholds": thresholds,
            },
        )

    def _stamp(self, images: MegaFaceSet) -> dict[str, Any]:
        return {
            "protocol": "MegaFace challenge 1, FaceScrub",
            "mirror": self.mirror,
            "score": "cosine similarity",
            "ties": "against the mate",
            "far_rule": "at_most",
            "impostors": "probes × distractors",
            "noise": self.noise,
            "noisy": f"{int(images.noisy.sum())} probes, {images.removed} distractors",
            "probes": len(images.identity),
            "distractors": {str(size): len(drawn) for size, drawn in images.drawn.items()},
            **images.crop.stamp,
            "color": "rgb",
            "source": f"MegaFace lists sha256:{images.digest}",
        }
