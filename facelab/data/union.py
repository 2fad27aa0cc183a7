"""Several data sets as one: photographs of here and there, packed or in folders."""

import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from facelab.data.folder import FolderFaces
from facelab.data.open import open_faces

__all__ = ["UnionFaces"]

CHOICES = ("separate", "by_name")


class UnionFaces:
    """The images of several sets, one set behind the other.

    Image i of the union is image i − n of a set, n being the images of the sets before it. Nothing is copied. A set has
    a name, the last part of its folder's path (of other sources their class), with a number behind it where another set
    has it already; it stands before the names of images, folders and identities.

    Attributes:
        labels: (N,) int64, contiguous 0…num_classes-1, in the order of the sets.
        num_classes: number of identities.
        identity_names: `<set>/<identity>`; where identities are joined by name, that name.
        size: height and width of the loaded images in pixels.
        empty: the folders without an image, which are left out.
        resizes: whether all sets do.
        encoded: (index) → bytes of an image file (n,) uint8; there only where all sets have files.

    Args:
        roots: folders, each with InsightFace's pack or one folder for each identity.
        sets: further sources, behind those: anything with a source's `labels`, `num_classes`, `size`, `load`.
        size: height and width of all images in pixels. Folders resize, packs must have it.
        identities: `separate`, everybody of one set is another person than everybody of the others; `by_name`, folders
            of one name are one person in all sets (for which all must be in folders: packs number their people).

    Raises:
        FileNotFoundError: folders are missing; all of them are named.
        ValueError: there is no set, one comes twice or cannot be read, sets have another size, or cannot be joined.
    """

    def __init__(self, roots: Sequence[str], sets: Sequence[Any], size: int, identities: str) -> None:
        if identities not in CHOICES:
            raise ValueError(f"data.identities is {identities!r}: give one of {', '.join(CHOICES)}")
        self.size = size
        self._sets = [*_opened(list(roots), size), *sets]
        if not self._sets:
            raise ValueError("data=union has no sets: name their folders, data.roots=[data/casia,data/mine]")
        self._names = _numbered([*(Path(root).expanduser().absolute().name for root in roots), *map(_kind, sets)])
        self._check(identities)
        counts = [len(one.labels) for one in self._sets]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).tolist()
        self.empty = [
            f"{name}/{folder}"
            for name, one in zip(self._names, self._sets, strict=True)
            for folder in getattr(one, "empty", ())
        ]
        self.resizes = all(getattr(one, "resizes", False) for one in self._sets)
        self.identity_names, numbers = self._separate() if identities == "separate" else self._by_name()
        self.num_classes = len(self.identity_names)
        self.labels = np.concatenate([own[one.labels] for own, one in zip(numbers, self._sets, strict=True)])
        if all(hasattr(one, "encoded") for one in self._sets):
            self.encoded: Callable[[int], np.ndarray] = self._encoded  # who looks for it learns that there are files

    def _check(self, identities: str) -> None:
        for name, one in zip(self._names, self._sets, strict=True):
            if one.size != self.size:
                raise ValueError(
                    f"data=union: images of {name} have {one.size}×{one.size} pixels, but data.size is {self.size}: "
                    "make them equal"
                )
            if getattr(one, "closed_set", False):
                raise ValueError(
                    f"data=union: {name} is divided into parts of its own, which others do not have: train on it alone"
                )
            if identities == "by_name" and not isinstance(one, FolderFaces):
                raise ValueError(
                    f"data.identities=by_name: {name} has no folders whose names are names of people: set "
                    "data.identities=separate, or give all sets as folders"
                )

    def _separate(self) -> tuple[list[str], list[np.ndarray]]:
        """Names of all identities, and for each set (C_set,) int64: which of them its own are."""
        names: list[str] = []
        numbers = []
        for name, one in zip(self._names, self._sets, strict=True):
            numbers.append(np.arange(len(names), len(names) + one.num_classes, dtype=np.int64))
            own = getattr(one, "identity_names", None) or range(one.num_classes)
            names += [f"{name}/{identity}" for identity in own]
        return names, numbers

    def _by_name(self) -> tuple[list[str], list[np.ndarray]]:
        """The same, where one name is one person."""
        found: dict[str, int] = {}
        numbers = []
        for one in self._sets:
            # Some systems write accents, and Korean letters, in another way than others: NFC is one for all.
            own = [unicodedata.normalize("NFC", name) for name in one.identity_names]
            numbers.append(np.array([found.setdefault(name, len(found)) for name in own], dtype=np.int64))
        return list(found), numbers

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, index: int) -> tuple[Any, int]:
        """The set that an image is of, and its number there."""
        place = self._place(index)
        return self._sets[place], index - self._starts[place]

    def name(self, index: int) -> str:
        """An image's name within the union, `<set>/<name within the set>`."""
        one, number = self.of(index)
        own = one.name(number) if hasattr(one, "name") else f"image {number}"
        return f"{self._names[self._place(index)]}/{own}"

    def load(self, index: int, out: np.ndarray | None = None) -> np.ndarray:
        """Image (size,size,3), uint8, RGB, as its set loads it; may be called from several threads.

        Raises:
            ValueError: as its set.
        """
        one, number = self.of(index)
        image: np.ndarray = one.load(number, out)
        return image

    def _encoded(self, index: int) -> np.ndarray:
        one, number = self.of(index)
        encoded: np.ndarray = one.encoded(number)
        return encoded

    def _place(self, index: int) -> int:
        if not 0 <= index < len(self.labels):
            raise IndexError(f"image {index} of {len(self.labels)}")
        return bisect_right(self._starts, index) - 1


def _opened(roots: Sequence[str], size: int) -> list[Any]:
    """The sets of folders; that a folder is missing is said before one of them is opened, which may take a while."""
    folders = [Path(root).expanduser() for root in roots]
    missing = [root for root, folder in zip(roots, folders, strict=True) if not folder.is_dir()]
    if missing:
        raise FileNotFoundError(
            f"data.roots: no such folder: {', '.join(missing)}; each is InsightFace's pack or has one folder for each "
            "identity"
        )
    where = [folder.resolve() for folder in folders]
    for number, folder in enumerate(where):
        if folder in where[:number]:
            other = roots[where.index(folder)]
            same = f"{roots[number]} twice" if other == roots[number] else f"{other} and {roots[number]}, one folder"
            raise ValueError(f"data.roots names {same}: its images would count twice; name it once")
    sets = []
    for root in roots:
        try:
            sets.append(open_faces(root, size))
        except (ValueError, FileNotFoundError) as error:
            text = str(error).replace("data.root=", "")
            raise type(error)(f"data.roots: {text}") from error
    return sets


def _kind(source: Any) -> str:
    return type(source).__name__


def _numbered(names: Sequence[str]) -> list[str]:
    """The same names, with a number behind those that have occurred before."""
    counts: dict[str, int] = {}
    told = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        told.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return told
