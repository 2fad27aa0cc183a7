"""Pair verification of faces that are only a few pixels wide: any pair set at several resolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from facelab.benchmark.pair_files import FacePairs, PairSet
from facelab.benchmark.pairs import PairBenchmark
from facelab.benchmark.scores import PairResult
from facelab.resampling import check_kernels, down_and_up, resample_image

BOTH, ONE = "both", "one"


@dataclass(frozen=True, kw_only=True)
class DegradedPairs(PairSet):
    """A pair set whose images are there once for each resolution: image i + k·M is image i of M at ``sizes[k]``.

    Its ``pairs`` are those of the first resolution; what else is compared, `LowResolutionBenchmark.evaluate` knows.

    Attributes:
        base: the pair set as it is, M images.
        sizes: (K,) pixels; the image's own size leaves it as it is.
    """

    base: PairSet
    sizes: tuple[int, ...]


class LowResolutionBenchmark(PairBenchmark):
    """The pair protocol with images that were shrunk to a few pixels and enlarged again.

    Resolutions are sizes in pixels, or ``8x`` for an eighth of the image's side. With sides ``both`` both images of a
    pair are degraded, with ``one`` the second one (probe against a gallery of good photographs); at the image's own
    size nothing is, and the result is that of the plain protocol, name and stamp included. Every image is embedded once
    at each resolution that occurs.

    Names and so the metric keys: ``lfw_14px/accuracy`` (both), ``lfw_14px_one/accuracy``, ``lfw/accuracy`` (1x).

    Args:
        name: first part of the metric keys, before the resolution; see `PairBenchmark`, as for all that follows up to
            ``quality``.
        path: a `.bin`, or a folder of images; null: pairs of held-out training identities.
        pairs: the pairs.txt that belongs to a folder.
        folds: K.
        mirror: whether the caller adds the mirrored image's embedding.
        far: the false accept rates to report TAR at.
        far_rule: ``at_most`` or ``nearest``.
        size: image size handed to the network, pixels.
        count: pairs to draw where path is null.
        seed: of that draw.
        groups: of the group-aware similarity.
        quality: of the quality-aware similarity.
        resolutions: sizes in pixels, or words as ``1x``, ``2x``.
        sides: ``both``, ``one``, or both of these words.
        kernel: what shrinks: ``bicubic``, ``bilinear`` (both antialiased), ``area`` or ``nearest``.
        enlarge: what enlarges again: ``bicubic``, ``bilinear`` or ``nearest``.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(
        self,
        name: str | None,
        path: str | None,
        pairs: str | None,
        folds: int,
        mirror: bool,
        far: Sequence[float],
        far_rule: str,
        size: int,
        count: int,
        seed: int,
        groups: Mapping[str, float],
        quality: Mapping[str, float],
        resolutions: Sequence[int | str],
        sides: Sequence[str],
        kernel: str,
        enlarge: str,
    ):
        super().__init__(name, path, pairs, folds, mirror, far, far_rule, size, count, seed, groups, quality)
        self.resolutions = pixel_sizes(resolutions, size)
        self.sides = tuple(dict.fromkeys([sides] if isinstance(sides, str) else sides))
        if not self.sides or not {*self.sides} <= {BOTH, ONE}:
            raise ValueError(f"benchmark.sides is {list(self.sides)}: give [{BOTH}], [{ONE}] or [{BOTH},{ONE}]")
        check_kernels("benchmark.", kernel, enlarge)
        self.kernel, self.enlarge = kernel, enlarge

    def open(self, own: FacePairs | PairSet | None) -> DegradedPairs:
        """The pair set with its images at every resolution; see `PairBenchmark.open`."""
        base = super().open(own)
        degraded = [size for size in self.resolutions if size != self.size]
        whole = ONE in self.sides or len(degraded) < len(self.resolutions)
        sizes = (*[self.size] * whole, *degraded)
        matrices = list(zip(*down_and_up(self.size, sizes, self.kernel, self.enlarge), strict=True))

        def load(i: int, out: np.ndarray | None = None) -> np.ndarray:
            number, image = divmod(i, len(base))
            pixels = base.load(image, out)
            if sizes[number] == self.size:
                return pixels
            down, up = matrices[number]
            return resample_image(resample_image(pixels, down), up)

        ours = ("images", "load")
        shared = {one.name: getattr(base, one.name) for one in fields(PairSet) if one.name not in ours}
        return DegradedPairs(**shared, images=len(sizes) * len(base), load=load, base=base, sizes=sizes)

    def evaluate(self, embeddings: np.ndarray, pairset: PairSet, groups: np.ndarray | None = None) -> PairResult:
        """Scores the pairs at every resolution, one result each: the first has the others as its ``parts``.

        A pair set that `open` did not give (the one that chooses a run's best checkpoint) is scored as it is.

        Args:
            embeddings: (M, D), one row per image of ``pairset``, in its order; need not be normalised.
            pairset: what `open` gave.
            groups: (M, G), see `PairBenchmark.evaluate`.

        Raises:
            ValueError: another number of rows, or rows that are zero or not finite.
        """
        if not isinstance(pairset, DegradedPairs):
            return super().evaluate(embeddings, pairset, groups)
        asked = [(size, side) for size in self.resolutions for side in self.sides if size != self.size]
        if self.size in self.resolutions:
            asked.insert(0, (self.size, BOTH))
        first, *rest = [self._at(size, side, embeddings, pairset, groups) for size, side in asked]
        return replace(first, parts=tuple(rest))

    def _at(
        self, size: int, side: str, embeddings: np.ndarray, pairset: DegradedPairs, groups: np.ndarray | None
    ) -> PairResult:
        base, count = pairset.base, len(pairset.base)
        low = pairset.sizes.index(size) * count
        offsets = [low if side == BOTH else pairset.sizes.index(self.size) * count, low]
        name = base.name if size == self.size else f"{base.name}_{size}px" + f"_{ONE}" * (side == ONE)
        shifted = replace(base, name=name, images=len(pairset), pairs=base.pairs + offsets)
        result = super().evaluate(embeddings, shifted, groups)
        if size == self.size:
            return result
        degraded = {"degraded": side, "degraded_size": size, "kernel": self.kernel, "enlarge": self.enlarge}
        return replace(result, stamp={**result.stamp, **degraded})


def pixel_sizes(resolutions: Sequence[int | str], size: int) -> tuple[int, ...]:
    """The sizes in pixels, each once."""
    given = [resolutions] if isinstance(resolutions, (int, str)) else list(resolutions)
    if not given:
        raise ValueError("benchmark.resolutions is empty: give sizes in pixels or parts, as [1x,2x,4x,8x] or [56,14]")
    found = []
    for one in given:
        word = str(one)
        number = word.removesuffix("x")
        if isinstance(one, bool) or not number.isdecimal() or int(number) < 1:
            raise ValueError(f"benchmark.resolutions has {one!r}: give pixels (14) or parts of the image's side (8x)")
        if word != number and size % int(number):
            raise ValueError(
                f"benchmark.resolutions has {word}, but {size} pixels are no multiple of {number}: give the size in "
                f"pixels, as {max(1, round(size / int(number)))}"
            )
        found.append(size // int(number) if word != number else int(number))
    if max(found) > size:
        raise ValueError(
            f"benchmark.resolutions has {max(found)}, but images have {size} pixels and only become smaller: give "
            f"sizes up to {size}"
        )
    return tuple(dict.fromkeys(found))
