"""Closed-set classification: does a network name the class of an image that it has not seen, of a class that it has?"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from facelab.benchmark.low_resolution import pixel_sizes
from facelab.benchmark.scores import Result, read_arrays
from facelab.resampling import check_kernels, down_and_up, resample_image

_Z = 1.959963984540054  # of the normal distribution, two-sided 95 %


@dataclass(frozen=True)
class LabelledImages:
    """Images of known classes that were not trained on.

    Attributes:
        truth: (M,) int64, class of each image, in the numbers of the network's classifier.
        classes: the names of all C classes.
        names: of the images, M.
        load: image number → uint8 (H, W, 3) RGB; thread-safe. Pixels may go to a second argument.
        source: where they come from, in words, for the stamp.
    """

    truth: np.ndarray
    classes: Sequence[str]
    names: Sequence[str]
    load: Callable[..., np.ndarray]
    source: str


@dataclass(frozen=True)
class LabelledSet:
    """Images to be named, there once for each resolution: image i + k·M is image i of M at ``sizes[k]``.

    Attributes:
        name: first part of the metric keys.
        own: the M images.
        size: H = W in pixels.
        sizes: (K,) pixels; the image's own size leaves it as it is.
        load: image number, of K·M → uint8 (size, size, 3) RGB; thread-safe.
    """

    name: str
    own: LabelledImages
    size: int
    sizes: tuple[int, ...]
    load: Callable[..., np.ndarray]

    def __len__(self) -> int:
        return len(self.sizes) * len(self.own.truth)

    @property
    def about(self) -> str:
        """In words, for a summary."""
        there = len(np.unique(self.own.truth))
        at = f", at {', '.join(map(str, self.sizes))} pixels" if self.sizes != (self.size,) else ""
        return f"{len(self.own.truth):,} images of {there:,} classes{at}"

    @property
    def digest(self) -> str:
        """sha256 of classes, and of names and classes of the images."""
        text = "\n".join([*self.own.classes, "", *self.own.names])
        return hashlib.sha256(text.encode("utf-8", "surrogateescape") + self.own.truth.tobytes()).hexdigest()


@dataclass(frozen=True)
class NamedResult(Result):
    """The outcome of a classification.

    Attributes:
        name: see `Result`, as for metrics, stamp, notes and parts.
        metrics: flat numbers.
        truth: (M,) int64 class of each image.
        predictions: (M,k) int64 classes, the most similar first.
        similarities: (M,k) float32.
        classes: the names of all C classes.
        stamp: the protocol.
        notes: beside a number.
        parts: further results.
    """

    name: str
    metrics: dict[str, float]
    truth: np.ndarray
    predictions: np.ndarray
    similarities: np.ndarray
    classes: Sequence[str]
    stamp: dict[str, Any]
    notes: dict[str, str] = field(default_factory=dict)
    parts: tuple[NamedResult, ...] = ()

    @property
    def headline(self) -> float:
        """The share of images whose class comes first; where that was not asked for, the first number."""
        return next(iter(self.metrics.values()))

    @property
    def choosing(self) -> float:
        """The headline; what falls on the same image count is ordered by the mean of 1/rank of the true class."""
        right = self.predictions == self.truth[:, None]
        ranks = np.where(right.any(axis=1), right.argmax(axis=1) + 1, np.inf)
        return self.headline + 1e-6 * float(np.mean(1 / ranks))

    def arrays(self) -> dict[str, np.ndarray]:
        """Classes, what was named in their place, and the classes' names."""
        return {
            "labels": self.truth,
            "predictions": self.predictions,
            "similarities": self.similarities,
            "classes": np.array(list(self.classes), dtype=str),
        }


class TopK:
    """Top-k accuracy: the share of images whose class is among the k that the network finds most similar.

    Similar is what the loss's classifier says, without its margin: the cosine to a class centre, or x·W. Of equal
    similarities the class with the lower number comes first. An image's embedding is embed(image) + embed(mirrored
    image); the caller embeds, and adds the mirror where `mirror` says so. Each number has a 95 % interval of Wilson's
    (JASA 22, 1927): what other images of the same kind would have changed, not what another seed would.

    Resolutions are as those of `LowResolutionBenchmark`: each has keys and a score file of its own, as
    ``heldout_14px/top1``.

    Args:
        name: first part of the metric keys; null: ``heldout``.
        top: the k to report; the largest decides how many predictions are kept.
        mirror: whether the caller adds the mirrored image's embedding; part of the stamp.
        size: image size handed to the network, pixels.
        resolutions: sizes in pixels, or words as ``1x``, ``2x``.
        kernel: what shrinks: ``bicubic``, ``bilinear`` (both antialiased), ``area`` or ``nearest``.
        enlarge: what enlarges again: ``bicubic``, ``bilinear`` or ``nearest``.

    Attributes:
        closed_set: it asks for images of the classes that were trained, and for what the classifier makes of them.
        path: none; the images come from the caller.
        count: how many classes an image has to be given.

    Raises:
        ValueError: a setting out of range.
    """

    closed_set = True
    path = None

    def __init__(
        self,
        name: str | None,
        top: Sequence[int],
        mirror: bool,
        size: int,
        resolutions: Sequence[int | str],
        kernel: str,
        enlarge: str,
    ):
        if size < 1:
            raise ValueError(f"benchmark.size={size}: an image has at least one pixel; usual is 112 or 224")
        self.top = tuple(sorted(set(top)))
        if not self.top or self.top[0] < 1:
            raise ValueError(f"benchmark.top is {list(top)}: give numbers of classes from 1 on, as [1,5]")
        if name == "val":
            raise ValueError("benchmark.name=val: that is what the images are called that choose best.ckpt")
        self.name, self.mirror, self.size, self.count = name or "heldout", bool(mirror), size, self.top[-1]
        self.resolutions = pixel_sizes(resolutions, size)
        check_kernels("benchmark.", kernel, enlarge)
        self.kernel, self.enlarge = kernel, enlarge

    def open(self, own: LabelledImages) -> LabelledSet:
        """The images that are reported on, at every resolution."""
        return self._set(self.name, own, self.resolutions)

    def select(self, own: LabelledImages) -> LabelledSet:
        """The images that choose the best checkpoint, as they are."""
        return self._set("val", own, (self.size,))

    def _set(self, name: str, own: LabelledImages, sizes: tuple[int, ...]) -> LabelledSet:
        matrices = list(zip(*down_and_up(self.size, sizes, self.kernel, self.enlarge), strict=True))

        def load(i: int, out: np.ndarray | None = None) -> np.ndarray:
            number, image = divmod(i, len(own.truth))
            pixels = own.load(image, out)
            if sizes[number] == self.size:
                return pixels
            down, up = matrices[number]
            return resample_image(resample_image(pixels, down), up)

        return LabelledSet(name, own, self.size, sizes, load)

    def evaluate(self, named: tuple[np.ndarray, np.ndarray], images: LabelledSet) -> NamedResult:
        """Counts, at every resolution, one result each: the first has the others as its ``parts``.

        Metrics: ``<name>/top1``, ``<name>/top1_low`` and ``<name>/top1_high`` (the interval), and so for each k.

        Args:
            named: (len(images), k) classes, the most similar first, and their similarities.
            images: what `open` or `select` gave.

        Raises:
            ValueError: another number of rows, or similarities that are not finite.
        """
        classes, similarities = named
        if classes.shape != similarities.shape or len(classes) != len(images):
            raise ValueError(
                f"{images.name}: classes of shape {classes.shape} and similarities of shape {similarities.shape} for "
                f"{len(images)} images; one row each"
            )
        bad = ~np.isfinite(similarities).all(axis=1)
        if bad.any():
            raise ValueError(
                f"{images.name}: {int(bad.sum())} of {len(bad)} images have similarities that are not finite, the "
                f"first is image {int(np.argmax(bad))}; check the model's weights and its precision"
            )
        count = len(images.own.truth)
        parts = [slice(k * count, (k + 1) * count) for k in range(len(images.sizes))]
        first, *rest = [
            self._at(size, classes[part], similarities[part], images)
            for size, part in zip(images.sizes, parts, strict=True)
        ]
        return replace(first, parts=tuple(rest))

    def _at(self, size: int, classes: np.ndarray, similarities: np.ndarray, images: LabelledSet) -> NamedResult:
        own = images.own
        name = images.name if size == self.size else f"{images.name}_{size}px"
        right = classes == own.truth[:, None]
        metrics: dict[str, float] = {}
        notes: dict[str, str] = {}
        for k in self.top:
            hits, key = int(right[:, :k].any(axis=1).sum()), f"{name}/top{k}"
            low, high = wilson(hits, len(right))
            metrics |= {key: hits / len(right), f"{key}_low": low, f"{key}_high": high}
            notes[key] = f"95 % interval {100 * low:.2f} to {100 * high:.2f}"
            if k >= len(own.classes):
                notes[key] = f"there are {len(own.classes)} classes only"
        stamp: dict[str, Any] = {
            "protocol": "closed-set top-k",
            "mirror": self.mirror,
            "score": "similarity to a class centre",
            "ties": "lower class number",
            "images": len(own.truth),
            "classes": len(own.classes),
            "size": self.size,
            "color": "rgb",
            "source": f"{own.source} sha256:{images.digest}",
        }
        if size != self.size:
            stamp |= {"degraded_size": size, "kernel": self.kernel, "enlarge": self.enlarge}
        return NamedResult(name, metrics, own.truth, classes, similarities, own.classes, stamp, notes)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, Wilson's score interval: sensible also near 0 and 1, and for few images.

    Args:
        hits: how many were right.
        count: of how many, at least 1.
    """
    share, widening = hits / count, _Z**2 / count
    middle = (share + widening / 2) / (1 + widening)
    half = _Z * np.sqrt(share * (1 - share) / count + widening / (4 * count)) / (1 + widening)
    # The bounds at 0 and 1 are these numbers, which rounding would miss.
    return 0.0 if hits == 0 else float(middle - half), 1.0 if hits == count else float(middle + half)


def load_named(path: str | os.PathLike[str]) -> NamedResult:
    """Reads what `facelab.benchmark.scores.save_scores` wrote of a classification.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a score file of a classification, or a damaged one.
    """
    found = read_arrays(path, ["labels", "predictions", "similarities", "classes"])
    return NamedResult(truth=found.pop("labels"), classes=found.pop("classes").tolist(), **found)
