"""Several benchmarks as one: each image is embedded once, each set is measured by its own protocol."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from facelab.benchmark.pairs import NOWHERE


@dataclass(frozen=True)
class Sets:
    """The opened sets, one behind the other.

    Attributes:
        name: of the suite.
        opened: what each benchmark has opened.
        ends: image number at which each set ends.
    """

    name: str
    opened: Sequence[Any]
    ends: Sequence[int]

    def __len__(self) -> int:
        return self.ends[-1]

    @property
    def about(self) -> str:
        """In words, for a summary."""
        return "; ".join(f"{one.name}: {one.about}" for one in self.opened)

    def load(self, index: int, out: np.ndarray | None = None) -> np.ndarray:
        """Image number → uint8 (size,size,3) RGB; thread-safe."""
        number = bisect_right(self.ends, index)
        return self.opened[number].load(index - (self.ends[number - 1] if number else 0), out)


class Suite:
    """Sets that are reported together.

    Args:
        name: of the suite, for summaries; keys begin with the sets' own names.
        root: the folder in which the configuration has them lie; they may also have places of their own.
        mirror: whether the caller adds the mirrored image's embedding; all sets have it alike.
        sets: the benchmarks, by any names, in the order in which they are reported; one that is None is left out.

    Attributes:
        evaluates_only: a training does not report on it.
        tells_progress: `evaluate` says how far the sets are that do.
        path: none; the sets have theirs.

    Raises:
        ValueError: no sets, two of one name, or sets that have the mirror otherwise.
    """

    evaluates_only = True
    tells_progress = True
    path = None

    def __init__(self, name: str, root: str | None, mirror: bool, sets: Mapping[str, Any]):
        self.name, self.root, self.mirror = name, root, bool(mirror)
        self.sets = {key: one for key, one in sets.items() if one is not None}
        if not self.sets:
            raise ValueError("benchmark.sets is empty: give benchmarks")
        names = [one.name for one in self.sets.values()]
        twice = next((one for one in names if names.count(one) > 1), None)
        if twice is not None:
            raise ValueError(f"benchmark.sets has two sets of the name {twice}: give benchmark.sets.….name another")
        other = [key for key, one in self.sets.items() if one.mirror != self.mirror]
        if other:
            raise ValueError(
                f"benchmark.mirror is {str(self.mirror).lower()}, and of {', '.join(other)} it is not: every image is "
                "embedded once, give benchmark.mirror alone"
            )

    def _check_root(self) -> None:
        lost = [key for key, one in self.sets.items() if one.path is None or one.path.parts[0] in NOWHERE]
        if lost:
            raise ValueError(
                f"benchmark.root is null, and so nobody knows where {', '.join(lost)} lie: give the folder that holds "
                "them, or benchmark.sets.….path of each"
            )

    def check(self) -> list[str]:
        """The doctor of all sets: what is missing, and counts other than the published ones."""
        self._check_root()
        found = []
        for one in self.sets.values():
            if hasattr(one, "check"):
                found += one.check()
            elif not one.path.exists():
                found.append(f"{one.path} is missing")
        return found

    def open(self, own: Any) -> Sets:
        """Opens all sets.

        Args:
            own: ignored.

        Raises:
            FileNotFoundError: files of some set are missing; those of all sets are told together.
            ValueError: no root, or a file that cannot be read.
        """
        self._check_root()
        opened, missing = [], []
        for one in self.sets.values():
            try:
                opened.append(one.open(None))
            except FileNotFoundError as error:
                missing.append(str(error))
        if missing:
            raise FileNotFoundError("; ".join(missing))
        return Sets(self.name, opened, list(accumulate(map(len, opened))))

    def evaluate(self, embeddings: np.ndarray, images: Sets, progress: Callable[[int, int], None] | None = None) -> Any:
        """Measures each set: the first one's result has all others as its ``parts``.

        Args:
            embeddings: (len(images),D), in order.
            images: what `open` gave.
            progress: told of comparisons, (done, all), of each set anew.

        Raises:
            ValueError: another number of rows; see the benchmarks.
        """
        if len(embeddings) != len(images):
            raise ValueError(f"{self.name}: {len(embeddings):,} embeddings for {len(images):,} images; one row each")
        parts = np.split(embeddings, images.ends[:-1])
        results = []
        for one, rows, opened in zip(self.sets.values(), parts, images.opened, strict=True):
            told = {"progress": progress} if getattr(one, "tells_progress", False) else {}
            results.append(one.evaluate(rows, opened, **told))
        flat = [single for result in results for single in (result, *result.parts)]
        return replace(flat[0], parts=tuple(replace(single, parts=()) for single in flat[1:]))
