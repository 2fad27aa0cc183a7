"""Pair sets and where they come from: a `.bin`, a folder with a pairs.txt, or the identities of any labelled data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facelab.benchmark.pair_sampling import sample_pairs
from facelab.benchmark.safe_pickle import read_pickle
from facelab.pixels import decode, fit

SUFFIXES = (".jpg", ".png", ".jpeg")


@dataclass(frozen=True)
class PairSet:
    """Pairs of face images, each distinct image held once.

    Attributes:
        name: first part of the metric keys.
        images: M, the number of distinct images, also ``len(pair_set)``.
        load: image number → uint8 (size, size, 3) RGB; thread-safe. Pixels may go to a second argument.
        pairs: (N, 2) int64 image numbers.
        same: (N,) bool, genuine or impostor.
        fold: (N,) int64, 0 … K−1.
        size: H = W in pixels.
        source: where it came from, for the protocol stamp (a file name, not a path).
        digest: sha256 of the pair list, and of the images where the file holds them.
        people: (N, 2) int64, whose images a pair has, 0 … S−1: who is drawn anew in a bootstrap; None: nobody knows.
        people_from: ``names``, or ``linked images``: a file without names, whose people are told by genuine pairs.
    """

    name: str
    images: int
    load: Callable[..., np.ndarray]
    pairs: np.ndarray
    same: np.ndarray
    fold: np.ndarray
    size: int
    source: str
    digest: str
    people: np.ndarray | None = None
    people_from: str = ""

    def __post_init__(self) -> None:
        count = len(self.pairs)
        if not 0 < self.same.sum() < count:
            raise ValueError(
                f"{self.name}: {int(self.same.sum())} genuine of {count} pairs; both kinds are needed, check the list"
            )
        assert self.pairs.shape == (count, 2), "pairs are (N, 2)"
        assert self.same.shape == (count,), "same is (N,)"
        assert self.fold.shape == (count,), "fold is (N,)"
        assert self.people is None or self.people.shape == (count, 2), "people are (N, 2)"
        assert 0 <= self.pairs.min() <= self.pairs.max() < self.images, "pairs are image numbers"

    def __len__(self) -> int:
        return self.images

    @property
    def about(self) -> str:
        """In words, for a summary."""
        return f"{len(self.pairs):,} pairs of {len(self):,} images"

    @property
    def folds(self) -> int:
        """K, the number of folds."""
        return int(self.fold.max()) + 1


@dataclass(frozen=True)
class FacePairs:
    """Labelled faces from which pairs can be drawn, such as the held-out identities of the training data.

    Attributes:
        labels: (M,) int identity of each image.
        load: image number → uint8 (H, W, 3) RGB; thread-safe. Pixels may go to a second argument.
    """

    labels: np.ndarray
    load: Callable[..., np.ndarray]

    def draw(self, name: str, count: int, folds: int, seed: int, size: int) -> PairSet:
        """A pair set of at most ``count`` pairs by `sample_pairs`; only the images that occur in a pair are in it."""
        labels = np.asarray(self.labels, dtype=np.int64)
        pairs, same, fold = sample_pairs(labels, count, folds, seed)
        used, numbers = np.unique(pairs, return_inverse=True)
        return PairSet(
            name=name,
            images=len(used),
            load=lambda i, out=None: fit(self.load(int(used[i]), out), size, f"{name}, image {used[i]}"),
            pairs=numbers.reshape(pairs.shape).astype(np.int64),
            same=same,
            fold=fold,
            size=size,
            source=f"identities, seed {seed}",
            digest=_digest([labels.tobytes(), pairs.tobytes(), same.tobytes(), fold.tobytes()]),
            **by_name(labels[pairs]),
        )


def read(encoded: bytes | np.ndarray, size: int, what: str, out: np.ndarray | None = None) -> np.ndarray:
    """JPEG or PNG bytes → uint8 (size, size, 3) RGB. ValueError where they are no image or not square."""
    image = decode(np.frombuffer(encoded, np.uint8), out)
    if image is None:
        raise ValueError(f"{what}: is not a readable image; get the file again")
    return fit(image, size, what)


def contiguous_folds(count: int, folds: int) -> np.ndarray:
    """(count,) int64 fold numbers, in order; the first ``count % folds`` folds are one longer, as in scikit-learn."""
    return np.repeat(np.arange(folds), [len(part) for part in np.array_split(np.empty(count), folds)])


def read_bin(path: Path, name: str, folds: int, size: int) -> PairSet:
    """A `.bin`: pickle of (2·N encoded images, pairs interleaved; N bools); contiguous folds, nothing shuffled.

    The images stay encoded in memory, each distinct one once (LFW: 7,701 of 12,000), so that nothing is embedded twice.

    Raises:
        ValueError: a pickle that asks for more than images and bools, or one that does not hold these.
    """
    content = read_pickle(path)
    if not isinstance(content, list) or len(content) != 2:
        raise ValueError(f"{path}: holds no (images, labels); a pair .bin is a pickle of two lists")
    images, labels = content
    if not isinstance(images, list) or not _is_list(labels) or len(images) != 2 * len(labels):
        raise ValueError(
            f"{path}: {_count(images)} images for {_count(labels)} pairs; a pair has two images: get the file again, "
            "or write it anew"
        )
    wrong = next((i for i, label in enumerate(labels) if not _is_flag(label)), None)
    if wrong is not None:
        raise ValueError(f"{path}: label {wrong} is neither true nor false; a pair is genuine or impostor")
    number: dict[bytes, int] = {}
    order = [number.setdefault(_encoded(image, i, path), len(number)) for i, image in enumerate(images)]
    encoded = list(number)
    places = np.unique(order, return_index=True)[1]  # where each distinct image stands first, for messages
    same = np.array([bool(label) for label in labels], dtype=bool)
    pairs = np.array(order, dtype=np.int64).reshape(-1, 2)
    return PairSet(
        name=name,
        images=len(encoded),
        load=lambda i, out=None: read(encoded[i], size, f"{path}, image {places[i]}", out),
        pairs=pairs,
        same=same,
        fold=contiguous_folds(len(same), folds),
        size=size,
        source=path.name,
        digest=_digest([same.tobytes(), *(hashlib.sha256(encoded[i]).digest() for i in order)]),
        people=linked_images(pairs[same], len(encoded))[pairs],
        people_from="linked images",
    )


def linked_images(genuine: np.ndarray, images: int) -> np.ndarray:
    """(images,) int64, 0 … S−1: images that genuine pairs (G, 2) join, directly or by others, are of one person.

    A file without names tells no more: who has images that no genuine pair joins counts as several people.
    """
    person = np.arange(images)
    while True:  # the smallest number of a neighbour, and of that one's, until nothing changes: a few rounds
        lower = person.copy()
        np.minimum.at(lower, genuine[:, 0], person[genuine[:, 1]])
        np.minimum.at(lower, genuine[:, 1], person[genuine[:, 0]])
        lower = lower[lower]
        if (lower == person).all():
            return np.unique(person, return_inverse=True)[1].astype(np.int64)
        person = lower


def by_name(people: np.ndarray) -> dict[str, Any]:
    """The fields of a `PairSet` whose people are known, (N, 2) of any numbers or names."""
    numbers = np.unique(people, return_inverse=True)[1].reshape(people.shape)
    return {"people": numbers.astype(np.int64), "people_from": "names"}


def read_folder(root: Path, pairs_file: Path, name: str, folds: int, size: int) -> PairSet:
    """A folder ``<root>/<name>/<name>_0001.jpg`` (or .png, .jpeg) with a pairs.txt as LFW writes it.

    First line ``10 300``: folds and pairs of each kind per fold (View 2); every fold's genuine pairs ``name 1 4`` stand
    before its impostor pairs ``name 1 other 3``. Or a single number ``1100`` (View 1): so many genuine pairs, then as
    many impostor pairs. Such a file has no folds, and cutting it in ten as it stands would give folds of one kind: its
    genuine and its impostor pairs are each cut into ``folds`` contiguous, equal parts.

    Raises:
        FileNotFoundError: people have no folder (all are named), or images are missing (their number, and the first
            ten).
        ValueError: a line that cannot be read, or other counts than the first line promises.
    """
    rows, same, fold = read_pairs_file(pairs_file, folds)
    number: dict[tuple[str, int], int] = {}
    order = [number.setdefault(face, len(number)) for row in rows for face in row]
    files = find_images(root, number, pairs_file, 10)
    lines = [f"{a} {i} {b} {j} {fold[k]}\n".encode() for k, ((a, i), (b, j)) in enumerate(rows)]
    return PairSet(
        name=name,
        images=len(files),
        load=lambda i, out=None: read(np.fromfile(files[i], np.uint8), size, str(files[i]), out),
        pairs=np.array(order, dtype=np.int64).reshape(-1, 2),
        same=same,
        fold=fold,
        size=size,
        source=pairs_file.name,
        digest=_digest(lines),
        **by_name(np.array([[person for person, _ in row] for row in rows])),
    )


Row = tuple[tuple[str, int], tuple[str, int]]


def read_pairs_file(path: Path, folds: int) -> tuple[list[Row], np.ndarray, np.ndarray]:
    """The pairs as ((name, number), (name, number)), whether each is genuine (N,), and its fold (N,).

    Raises:
        ValueError: a line that cannot be read, or other counts than the first line promises.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no text in UTF-8 ({error}); get the file again") from error
    header = lines[0].split() if lines else []
    if len(header) not in (1, 2) or not all(part.isdigit() and int(part) for part in header):
        raise ValueError(
            f'{path}: the first line must be "folds pairs" (10 300) or the number of pairs of a kind (1100)'
        )
    each, stated = int(header[-1]), int(header[0]) if len(header) == 2 else None
    if stated is not None and stated != folds:
        raise ValueError(f"{path}: has {stated} folds, folds={folds} was asked for; set folds={stated}")
    rows, same = [], np.zeros(len(lines) - 1, dtype=bool)
    for index, line in enumerate(lines[1:]):
        part = line.split("\t") if "\t" in line else line.split()
        try:
            same[index] = len(part) == 3
            first, one, second, two = (part[0], part[1], part[0], part[2]) if len(part) == 3 else part
            rows.append(((first.strip(), int(one)), (second.strip(), int(two))))
        except ValueError as error:
            raise ValueError(f'{path}, pair {index + 1}: {line!r} is neither "name n m" nor "name n name m"') from error
    blocks = stated or 1
    if len(rows) != 2 * each * blocks or (same.reshape(blocks, 2, each) != [[[True], [False]]]).any():
        raise ValueError(
            f"{path}: the first line promises {blocks} × {each} genuine and as many impostor pairs, in this order; "
            f"there are {int(same.sum())} and {int((~same).sum())}, check the file"
        )
    if stated is not None:
        return rows, same, contiguous_folds(len(rows), folds)
    return rows, same, np.tile(contiguous_folds(each, folds), 2)


def _check_people(root: Path, named: Iterable[str], pairs_file: Path) -> None:
    """All who are named and have no folder are told at once: one look is enough to mend the list or the folder."""
    people = sorted(set(named))
    unknown = [person for person in people if not (root / person).is_dir()]
    if not unknown:
        return
    if len(unknown) == len(people):
        shown = ", ".join(people[:3])
        raise FileNotFoundError(
            f"{root}: has a folder for none of the {len(people):,} people that {pairs_file.name} names ({shown} …); "
            "check benchmark.path and benchmark.pairs"
        )
    raise FileNotFoundError(
        f"{root}: {len(unknown):,} of the {len(people):,} people that {pairs_file.name} names have no folder there: "
        f"{', '.join(unknown)}; check benchmark.path, or take their pairs out of {pairs_file.name}"
    )


def find_images(root: Path, faces: Iterable[tuple[str, int]], pairs_file: Path, named: int) -> list[Path]:
    """The file of each face, <root>/<name>/<name>_0001.jpg.

    Args:
        root: folder of people.
        faces: name and number of each.
        pairs_file: that names them, for messages.
        named: how many of the missing ones are named; all are counted.

    Raises:
        FileNotFoundError: people have no folder, or images are missing.
    """
    faces = list(faces)
    _check_people(root, [person for person, _ in faces], pairs_file)
    files, missing = [], []
    for person, number in faces:
        stem = root / person / f"{person}_{number:04d}"
        found = next((file for suffix in SUFFIXES if (file := stem.with_name(stem.name + suffix)).is_file()), None)
        if found is None:
            missing.append(f"{person}/{stem.name}")
        else:
            files.append(found)
    if missing:
        raise FileNotFoundError(
            f"{root}: {len(missing):,} images that {pairs_file.name} names are missing (.jpg, .png, .jpeg tried): "
            f"{', '.join(missing[:named])}{', …' if len(missing) > named else ''}; check benchmark.path"
        )
    return files


def _encoded(image: Any, index: int, path: Path) -> bytes:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 1:
        return image.tobytes()
    if isinstance(image, (bytes, bytearray)):
        return bytes(image)
    raise ValueError(f"{path}: image {index} is not encoded as JPEG or PNG bytes; write the .bin with encoded images")


def _is_flag(label: Any) -> bool:
    return isinstance(label, (bool, int, np.bool_, np.integer)) and label in (0, 1)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, np.ndarray) and value.ndim == 1)


def _count(value: Any) -> str:
    return f"{len(value):,}" if _is_list(value) else f"no list of ({type(value).__name__})"


def _digest(parts: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()
