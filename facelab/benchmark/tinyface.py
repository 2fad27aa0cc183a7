"""Closed-set identification among distractors: TinyFace, and the same of any folder of people, at any resolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from facelab.benchmark.crops import Crop
from facelab.benchmark.low_resolution import BOTH, pixel_sizes
from facelab.benchmark.scores import CountedResult
from facelab.benchmark.search_files import Lists, SearchSet, TinyFaceLayout, read_people
from facelab.benchmark.searching import LONGEST, Progress, check_bootstrap, check_ranks, cmc, look_up, shares
from facelab.benchmark.templates import units
from facelab.resampling import check_kernels, down_and_up, resample_image

PROBES = "probes"


class Identification:
    """Everybody's first image is enrolled, the others are looked for: rank-k and mAP.

    ``<path>/<person>/<image>``. The score is the cosine; the rank of a probe is 1 + the number of others in the gallery
    that score at least as high as its best mate, so that equal scores count against it. mAP is that of TinyFace's own
    script (`facelab.benchmark.searching.average_precision`).

    At resolutions below the image's, images are shrunk and enlarged again, as those of `LowResolutionBenchmark`: both
    sides or the probes alone. Each resolution has keys and a score file of its own, ``lfw_14px/rank1``.

    Args:
        name: first part of the metric keys; null: the folder's name.
        path: the folder.
        distractors: a folder of further images that nobody is looked for in; null: none.
        mirror: whether the caller adds the mirrored image's embedding; part of the stamp.
        ranks: k of rank-k.
        size: image size handed to the network, pixels.
        crop: ``keep``, ``shape`` and ``alignment`` of `Crop`.
        resolutions: sizes in pixels, or words as ``1x``, ``2x``.
        sides: what is degraded: ``both``, or ``probes``.
        kernel: what shrinks: ``bicubic``, ``bilinear`` (both antialiased), ``area`` or ``nearest``.
        enlarge: what enlarges again: ``bicubic``, ``bilinear`` or ``nearest``.
        bootstrap: replicates of the 95 % intervals over people; 0: no intervals.
        seed: of these.

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
        name: str | None,
        path: str | None,
        distractors: str | None,
        mirror: bool,
        ranks: Sequence[int],
        size: int,
        crop: Mapping[str, Any],
        resolutions: Sequence[int | str],
        sides: str,
        kernel: str,
        enlarge: str,
        bootstrap: int,
        seed: int,
    ):
        self.path = None if path is None else Path(path).expanduser()
        self.distractors = None if distractors is None else Path(distractors).expanduser()
        self.crop, self.mirror, self.ranks = Crop(size, **crop), bool(mirror), check_ranks(ranks)
        self.resolutions = pixel_sizes(resolutions, size)
        if sides not in (BOTH, PROBES):
            raise ValueError(f"benchmark.sides is {sides!r}: give {BOTH} or {PROBES}")
        check_kernels("benchmark.", kernel, enlarge)
        self.sides, self.kernel, self.enlarge = sides, kernel, enlarge
        self.bootstrap = check_bootstrap(bootstrap, seed)
        self.name = name or ("people" if self.path is None else self._derived_name(self.path))

    def _derived_name(self, path: Path) -> str:
        """LFW's images lie in lfw/images."""
        path = path.absolute()
        return path.parent.name if path.name == "images" else path.name

    def _lists(self) -> Lists:
        if self.path is None:
            raise ValueError("benchmark.path is null: give a folder that holds one for each person")
        return read_people(self.path, self.distractors)

    def open(self, own: Any) -> SearchSet:
        """Finds the images, at every resolution.

        Args:
            own: ignored.

        Raises:
            FileNotFoundError: something is missing.
            ValueError: no path, or probes without a mate.
        """
        lists = self._lists()
        probe, gallery = np.split(lists.identity, [lists.probes])
        lonely = ~np.isin(probe, gallery)
        if lonely.any():
            raise ValueError(
                f"{self.name}: {int(lonely.sum()):,} of {len(probe):,} probes have no mate in the gallery, the first "
                f"is {lists.files[int(np.argmax(lonely))]}; check the lists"
            )
        size = self.crop.size
        degraded = [one for one in self.resolutions if one != size]
        whole = len(degraded) < len(self.resolutions) or self.sides == PROBES
        sizes = (*[size] * whole, *degraded)
        matrices = list(zip(*down_and_up(size, sizes, self.kernel, self.enlarge), strict=True))

        def load(index: int, out: np.ndarray | None = None) -> np.ndarray:
            number, image = divmod(index, len(lists.files))
            pixels = self.crop.load(lists.files[image], out)
            if sizes[number] == size:
                return pixels
            down, up = matrices[number]
            return resample_image(resample_image(pixels, down), up)

        return SearchSet(self.name, lists, sizes, load)

    def evaluate(self, embeddings: np.ndarray, images: SearchSet, progress: Progress | None = None) -> CountedResult:
        """Searches, at every resolution, one result each: the first has the others as its ``parts``.

        Metrics: ``<name>/rank1`` for each k, and ``<name>/map``, as fractions, each with ``_low`` and ``_high``, the
        95 % interval over people.

        Args:
            embeddings: (len(images),D), in order; need not be normalised.
            images: what `open` gave.
            progress: told of comparisons, (done, all).

        Raises:
            ValueError: another number of rows, or rows that are zero or not finite (counted, the first named).
        """
        lists = images.lists
        count = len(lists.files)
        features = units(embeddings, len(images), images.name, lambda i: str(lists.files[i % count]))
        first, *rest = [self._at(size, features, images, progress) for size in self.resolutions]
        return replace(first, parts=tuple(rest))

    def _at(self, size: int, features: np.ndarray, images: SearchSet, progress: Progress | None) -> CountedResult:
        lists, whole = images.lists, self.crop.size
        count = len(lists.files)
        low = images.sizes.index(size) * count
        high = images.sizes.index(whole) * count if self.sides == PROBES else low
        probes, gallery = np.split(lists.identity, [lists.probes])
        rows = features[low : low + lists.probes], features[high + lists.probes : high + count]
        found = look_up(*rows, probes, gallery, progress=progress)
        name = images.name if size == whole else f"{images.name}_{size}px" + f"_{PROBES}" * (self.sides == PROBES)
        hits = {f"{name}/rank{k}": found.rank <= k for k in self.ranks} | {f"{name}/map": found.precision}
        metrics, notes = shares(hits, np.ones(lists.probes), probes, **self.bootstrap)
        kept = {
            "cmc": cmc(found.rank, max(LONGEST, *self.ranks)),
            "rank": found.rank,
            "precision": found.precision,
            "mate_score": found.score,
            "other_score": found.other,
            "identity": probes,
        }
        stamp = self._stamp(images)
        if size != whole:
            degraded = {"degraded": self.sides, "degraded_size": size}
            stamp |= {**degraded, "kernel": self.kernel, "enlarge": self.enlarge}
        return CountedResult(name, metrics, kept, stamp, f"{name}/rank{self.ranks[0]}", notes=notes)

    def _stamp(self, images: SearchSet) -> dict[str, Any]:
        lists = images.lists
        return {
            "protocol": "closed-set identification",
            "mirror": self.mirror,
            "score": "cosine similarity",
            "ties": "against the mate",
            "map": "area under joined precision and recall",
            "probes": lists.probes,
            "gallery": len(lists.files) - lists.probes,
            "distractors": lists.distractors,
            **self.crop.stamp,
            "color": "rgb",
            "source": f"{lists.source} sha256:{lists.digest}",
        }


class TinyFace(Identification):
    """TinyFace (Cheng, Zhu and Gong, ACCV 2018): 3,728 probes among 4,443 mates and 153,428 distractors.

    The layout is that of `TinyFaceLayout`; all else is as in `Identification`, as are all other arguments.

    Args:
        name: first part of the metric keys.
        path: the folder with ``Probe``, ``Gallery_Match`` and ``Gallery_Distractor``: the data set's ``Testing_Set``,
            or an aligned copy of it.
        lists: the folder of the two .mat lists; null: path.
        mirror: see `Identification`, as for all that follows.
        ranks: see there.
        size: see there.
        crop: see there.
        resolutions: see there.
        sides: see there.
        kernel: see there.
        enlarge: see there.
        bootstrap: see there.
        seed: see there.
        known: published counts, ``probes``, ``mates`` and ``distractors``, which `check` compares.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(
        self,
        name: str | None,
        path: str | None,
        lists: str | None,
        mirror: bool,
        ranks: Sequence[int],
        size: int,
        crop: Mapping[str, Any],
        resolutions: Sequence[int | str],
        sides: str,
        kernel: str,
        enlarge: str,
        bootstrap: int,
        seed: int,
        known: Mapping[str, int],
    ):
        super().__init__(
            name, path, None, mirror, ranks, size, crop, resolutions, sides, kernel, enlarge, bootstrap, seed
        )
        self.lists, self.known = None if lists is None else Path(lists).expanduser(), dict(known)

    def _layout(self) -> TinyFaceLayout:
        if self.path is None:
            raise ValueError("benchmark.path is null: give TinyFace's Testing_Set, or an aligned copy of it")
        return TinyFaceLayout(self.path, self.lists)

    def _lists(self) -> Lists:
        return self._layout().read()

    def check(self) -> list[str]:
        """The doctor: what is missing, and counts other than the published ones; empty where all is there."""
        layout = self._layout()
        found = layout.missing()
        try:
            if not found:
                layout.read()
            there = layout.counts()
        except (ValueError, FileNotFoundError) as error:
            return [*found, str(error)]
        return found + [
            f"{layout.root}: {there[key]:,} {key}, published are {count:,}"
            for key, count in self.known.items()
            if key in there and there[key] != count
        ]
