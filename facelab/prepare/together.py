"""Several sets as one, people in the place of labels."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facelab.data.recordio import RecordIOFaces
from facelab.pixels import decode, fit
from facelab.prepare.existing import Faces, people
from facelab.prepare.pack import check_name

__all__ = ["IDENTITIES", "Together"]

IDENTITIES = ("separate", "by_name")


class _Part(NamedTuple):
    tag: str  # the set's name, which no other has
    faces: Faces
    names: list[str]  # of its identities, by label


class Together:
    """The images of all sets, those of a person together; people come in the order of the sets and their labels.

    Attributes:
        identities: names, by label.
        labels: (N,) int64, not decreasing.
        size: pixels of a loaded image, H = W.

    Args:
        sets: each is a pack or a folder.
        size: pixels.
        identities: `separate` (nobody is in two sets) or `by_name` (who has one name in two sets is one person).
        prefix: whether every name begins with that of its set; else only those that occur in several sets.

    Raises:
        ValueError: another choice, names that cannot be written, or packs that have no names to go by.
    """

    resizes = True

    def __init__(self, sets: Sequence[Faces], size: int, identities: str, prefix: bool):
        if identities not in IDENTITIES:
            raise ValueError(f"identities is {identities!r}: give one of {', '.join(IDENTITIES)}")
        self.size = size
        self._parts = [_Part(tag, faces, people(faces)) for tag, faces in zip(_tags(sets), sets, strict=True)]
        number = self._separate(prefix) if identities == "separate" else self._by_name(prefix)
        labels = np.concatenate([of[part.faces.labels] for of, part in zip(number, self._parts, strict=True)])
        counts = [len(part.faces) for part in self._parts]
        order = np.argsort(labels, kind="stable")
        self.labels: np.ndarray = labels[order]
        self._part = np.repeat(np.arange(len(counts)), counts)[order]
        self._index = np.concatenate([np.arange(count) for count in counts])[order]
        for name in self.identities:
            check_name(name, "identity")

    @property
    def identity_names(self) -> list[str]:
        """The same as `identities`, for who looks at images."""
        return self.identities

    def _separate(self, prefix: bool) -> list[np.ndarray]:
        """Label of each set's own labels: everybody is somebody else."""
        clashing = Counter(_key(name) for part in self._parts for name in {_key(name) for name in part.names})
        self.identities = [
            f"{part.tag}_{name}" if prefix or clashing[_key(name)] > 1 else name
            for part in self._parts
            for name in part.names
        ]
        twice = [name for name, count in Counter(self.identities).items() if count > 1]
        if twice:
            raise ValueError(f"two identities would be named {twice[0]!r}: rename a set's folder, or give prefix=true")
        bounds = np.cumsum([0, *(len(part.names) for part in self._parts)])
        return [np.arange(begin, end) for begin, end in pairwise(bounds.tolist())]

    def _by_name(self, prefix: bool) -> list[np.ndarray]:
        """The same where who has one name is one person."""
        if prefix:
            raise ValueError("prefix=true tells apart people whom identities=by_name makes one: leave one of them out")
        for part in self._parts:
            unnamed = isinstance(part.faces, RecordIOFaces) and not (part.faces.root / "identities.csv").is_file()
            if unnamed and len(self._parts) > 1:
                raise ValueError(
                    f"{part.faces.root}: numbers its identities and has no identities.csv (label, identity) that names "
                    "them: give identities=separate"
                )
        numbers: dict[str, int] = {}
        self.identities = []
        found = []
        for part in self._parts:
            own = []
            for name in part.names:
                if _key(name) not in numbers:
                    self.identities.append(name)
                own.append(numbers.setdefault(_key(name), len(numbers)))
            found.append(np.array(own))
        return found

    def __len__(self) -> int:
        return len(self.labels)

    def tag(self, index: int) -> str:
        """The name of an image's set."""
        return self._parts[self._part[index]].tag

    def name(self, index: int) -> str:
        """What an image is called in its own set."""
        part = self._parts[self._part[index]]
        return part.faces.name(int(self._index[index]))

    def file(self, index: int) -> str:
        """What it is to be called in the new one; no two of a person are called the same."""
        part = self._parts[self._part[index]]
        name = part.faces.name(int(self._index[index])).rsplit("/", 1)[-1]
        if name.startswith("key "):
            name = f"{name.removeprefix('key '):0>8}.jpg"
        return f"{part.tag}_{name}" if len(self._parts) > 1 else name

    def encoded(self, index: int) -> np.ndarray:
        """Bytes of an image file (n,) uint8."""
        return self._parts[self._part[index]].faces.encoded(int(self._index[index]))

    def load(self, index: int, out: np.ndarray | None = None) -> np.ndarray:
        """Image (size,size,3) uint8 RGB.

        Raises:
            ValueError: it cannot be read, or is not square.
        """
        image = decode(self.encoded(index), out)
        if image is None:
            raise ValueError(f"{self.tag(index)}, {self.name(index)}: is not a readable image")
        return fit(image, self.size, f"{self.tag(index)}, {self.name(index)}")


def _key(name: str) -> str:
    """What two names have in common that differ in nothing but case, or in how an accent is encoded."""
    return unicodedata.normalize("NFKC", name).casefold()


def _tags(sets: Sequence[Faces]) -> list[str]:
    """Folders' names, and a number behind those that occurred before."""
    seen: Counter[str] = Counter()
    tags = []
    for faces in sets:
        name = Path(faces.root).absolute().name
        seen[name] += 1
        tags.append(name if seen[name] == 1 else f"{name}{seen[name]}")
    return tags
