"""IJB-B and IJB-C as they are passed on with their 1:1 and 1:N lists: which image is whose, and who is compared.

``<path>/meta/ijbc_face_tid_mid.txt``         image, template, media on a line
``<path>/meta/ijbc_name_5pts_score.txt``      the same images in the same order, x, y of five points, detector's score
``<path>/meta/ijbc_template_pair_label.txt``  template, template, 1 (genuine) or 0
``<path>/meta/ijbc_1N_gallery_G1.csv``        a heading, then template, subject, … (IJB-B: S1, S2)
``<path>/meta/ijbc_1N_probe_mixed.csv``       the same
``<path>/loose_crop/``                        the images
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facelab.alignment import similarities, warp
from facelab.benchmark.templates import places
from facelab.pixels import decode

SHOWN = 5  # names in a message
LARGEST = 2**26  # number of a template, up to which a table of all numbers is small


@dataclass(frozen=True)
class Roster:
    """Templates of a 1:N list and whose they are: one row each.

    Attributes:
        name: as it stands in keys, G1.
        template: (n,) int64.
        subject: (n,) int64.
    """

    name: str
    template: np.ndarray
    subject: np.ndarray


@dataclass(frozen=True)
class TemplateSet:
    """Images of templates, and which templates are compared.

    Attributes:
        name: first part of the metric keys.
        names: of the images, M.
        folder: where they lie.
        transforms: (M,2,3), each image's to the aligned face.
        template: (M,) int64.
        media: (M,) int64.
        detector: (M,) float64.
        ids: (T,) int64, the templates, ascending.
        pairs: (N,2) int32, numbers of ``ids``.
        same: (N,) bool.
        galleries: of the 1:N protocol; may be none.
        probes: of it.
        size: H = W in pixels of an aligned face.
        digest: sha256 of all lists.
    """

    name: str
    names: Sequence[str]
    folder: Path
    transforms: np.ndarray
    template: np.ndarray
    media: np.ndarray
    detector: np.ndarray
    ids: np.ndarray
    pairs: np.ndarray
    same: np.ndarray
    galleries: tuple[Roster, ...]
    probes: Roster | None
    size: int
    digest: str

    def __len__(self) -> int:
        return len(self.names)

    @property
    def about(self) -> str:
        """In words, for a summary."""
        return f"{len(self.pairs):,} pairs of {len(self.ids):,} templates of {len(self):,} images"

    def load(self, index: int, out: np.ndarray | None = None) -> np.ndarray:
        """Image number → the aligned face (size,size,3) uint8 RGB; thread-safe."""
        file = self.folder / self.names[index]
        image = decode(np.fromfile(file, np.uint8))
        if image is None:
            raise ValueError(f"{file}: is not a readable image; get the file again")
        return warp(image, self.transforms[index], self.size, out)


class Layout:
    """Where the files of one of the sets are.

    Args:
        root: the folder with ``meta`` and ``loose_crop``.
        prefix: how the lists' names begin, ``ijbc``.
        galleries: of the 1:N protocol, G1 and G2 (of IJB-B S1 and S2); none: 1:1 alone.
    """

    def __init__(self, root: Path, prefix: str, galleries: Sequence[str]):
        self.root, meta = root, root / "meta"
        self.images = root / "loose_crop"
        self.templates = meta / f"{prefix}_face_tid_mid.txt"
        self.points = meta / f"{prefix}_name_5pts_score.txt"
        self.pairs = meta / f"{prefix}_template_pair_label.txt"
        self.galleries = {name: meta / f"{prefix}_1N_gallery_{name}.csv" for name in galleries}
        self.probes = meta / f"{prefix}_1N_probe_mixed.csv" if galleries else None

    @property
    def lists(self) -> list[Path]:
        """All files but the images."""
        return [self.templates, self.points, self.pairs, *self.galleries.values(), *filter(None, [self.probes])]

    def missing(self) -> list[str]:
        """What is not there, all of it: files, the folder of images, and images that the list names."""
        found = [f"{file} is missing" for file in self.lists if not file.is_file()]
        if not self.images.is_dir():
            return [*found, f"{self.images} is missing"]
        if self.templates.is_file():
            there = {entry.name for entry in os.scandir(self.images)}
            with self.templates.open(encoding="utf-8") as file:
                named = [line.split(None, 1)[0] for line in file if line.strip()]
            lost = [name for name in named if name not in there]
            if lost:
                shown = ", ".join(lost[:SHOWN]) + (", …" if len(lost) > SHOWN else "")
                found.append(f"{self.images}: {len(lost):,} of {len(named):,} images are missing: {shown}")
        return found


def read_templates(layout: Layout, name: str, size: int) -> TemplateSet:
    """Reads all lists.

    Raises:
        FileNotFoundError: something is missing; all of it is named.
        ValueError: a line that cannot be read, lists that do not fit each other, templates without an image.
    """
    missing = layout.missing()
    if missing:
        raise FileNotFoundError("; ".join([*missing, "benchmark.path is the folder that holds meta and loose_crop"]))
    names, numbers = _rows(layout.templates, 2)
    named, values = _rows(layout.points, 11)
    if names != named:
        differ = (i for i, (one, other) in enumerate(zip(names, named, strict=False)) if one != other)
        line = next(differ, min(len(names), len(named)))
        raise ValueError(
            f"{layout.points}, line {line + 1:,}: the images are not those of {layout.templates.name}, in that order "
            f"({len(named):,} and {len(names):,} lines); get both files from one source"
        )
    template, media = numbers.astype(np.int64).T
    ids = np.unique(template)
    listed = _read_pairs(layout.pairs)
    pairs, same = _pairs(listed, ids, layout)
    galleries = tuple(_roster(file, key, ids, layout) for key, file in layout.galleries.items())
    return TemplateSet(
        name=name,
        names=names,
        folder=layout.images,
        transforms=_transforms(values[:, :10], names, layout.points, size),
        template=template,
        media=media,
        detector=_weights(values[:, 10], names, layout.points),
        ids=ids,
        pairs=pairs,
        same=same,
        galleries=galleries,
        probes=None if layout.probes is None else _roster(layout.probes, "probe_mixed", ids, layout),
        size=size,
        digest=_digest(layout.lists),
    )


def counts(layout: Layout) -> dict[str, int]:
    """How much the lists that are there hold: images, templates, pairs, genuine."""
    found: dict[str, int] = {}
    if layout.templates.is_file():
        names, numbers = _rows(layout.templates, 2)
        found |= {"images": len(names), "templates": len(np.unique(numbers[:, 0]))}
    if layout.pairs.is_file():
        listed = _read_pairs(layout.pairs)
        found |= {"pairs": len(listed), "genuine": int(np.count_nonzero(listed[:, 2]))}
    return found


def check(layout: Layout, known: Mapping[str, int]) -> list[str]:
    """All that is missing, and all counts that are not the published ones; nothing where the set is complete."""
    found = layout.missing()
    try:
        there = counts(layout)
        for file in (*layout.galleries.values(), *filter(None, [layout.probes])):
            if file.is_file():
                _listed(file)
    except ValueError as error:
        return [*found, str(error)]
    for key, count in known.items():
        if key in there and there[key] != count:
            found.append(f"{layout.root}: {there[key]:,} {key}, published are {count:,}")
    return found


def _rows(path: Path, columns: int) -> tuple[list[str], np.ndarray]:
    """The first word of each line, and the numbers behind it, (lines, columns) float64."""
    with path.open(encoding="utf-8") as file:
        parts = [line.split(None, 1) for line in file if line.strip()]
    wrong = next((i for i, part in enumerate(parts) if len(part) != 2 or len(part[1].split()) != columns), None)
    if wrong is None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # of a word that is no number, of which some numpy only warns
                numbers = np.fromstring(" ".join([part[1] for part in parts]), sep=" ")
            return [part[0] for part in parts], numbers.reshape(-1, columns)
        except (ValueError, DeprecationWarning):
            wrong = next((i for i, part in enumerate(parts) if not _are_numbers(part[1])), 0)
    raise ValueError(f"{path}, line {wrong + 1:,}: is not a name and {columns} numbers; get the file again")


def _are_numbers(text: str) -> bool:
    try:
        return bool([float(word) for word in text.split()])
    except ValueError:
        return False


def _read_pairs(path: Path) -> np.ndarray:
    """(N,3) int32: template, template, label. numpy reads IJB-C's 15.7 million lines in a few seconds."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of an empty file, and of a number with a point, it only warns
            listed = np.loadtxt(path, dtype=np.int32, comments=None, ndmin=2)
    except (ValueError, UserWarning, DeprecationWarning) as error:
        raise ValueError(f"{path}: cannot be read as template, template, 1 or 0 ({error}); get it again") from error
    if listed.shape[1] != 3 or listed.min() < 0:
        raise ValueError(f"{path}: a line is template, template, 1 or 0, whole numbers from 0 on; get the file again")
    return listed


def _pairs(listed: np.ndarray, ids: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Pairs as numbers of ``ids`` (N,2), and whether each is genuine (N,)."""
    _check_known(listed[:, :2].ravel(), ids, layout.pairs, layout)
    if listed[:, 2].max(initial=0) > 1:
        line = int(np.argmax(listed[:, 2] > 1))
        raise ValueError(f"{layout.pairs}, pair {line + 1:,}: is labelled {listed[line, 2]}; 1 is genuine, 0 is not")
    same = listed[:, 2].astype(bool)
    if not 0 < same.sum() < len(same):
        raise ValueError(f"{layout.pairs}: {int(same.sum()):,} genuine of {len(same):,} pairs; both kinds are needed")
    if ids[-1] >= LARGEST:
        return places(ids, listed[:, :2]).astype(np.int32), same
    number = np.zeros(ids[-1] + 1, dtype=np.int32)
    number[ids] = np.arange(len(ids), dtype=np.int32)
    return number[listed[:, :2]], same


def _check_known(named: np.ndarray, ids: np.ndarray, file: Path, layout: Layout) -> None:
    """Refuses templates that have no image."""
    occurring = np.unique(named) if named.max(initial=0) >= LARGEST else np.flatnonzero(np.bincount(named))
    unknown = occurring[places(ids, occurring) < 0]
    if len(unknown):
        shown = ", ".join(map(str, unknown[:SHOWN])) + (", …" if len(unknown) > SHOWN else "")
        raise ValueError(
            f"{file}: names {len(unknown):,} templates that have no image in {layout.templates.name}: {shown}; get "
            "both files from one source"
        )


def _listed(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Templates, each once, and their subjects, of a 1:N list, whose first line is a heading."""
    with file.open(encoding="utf-8") as opened:
        rows = [line.split(",", 2)[:2] for line in opened.readlines()[1:] if line.strip()]
    try:
        table = np.array(rows, dtype=np.int64).reshape(len(rows), 2)
    except ValueError:
        raise ValueError(
            f"{file}: its lines do not begin with two whole numbers, template and subject, behind a heading; get the "
            "file again"
        ) from None
    template, first = np.unique(table[:, 0], return_index=True)
    subject = table[first, 1]
    torn = table[:, 1] != subject[np.searchsorted(template, table[:, 0])]
    if torn.any():
        raise ValueError(f"{file}: template {table[np.argmax(torn), 0]} is of two subjects; get the file again")
    return template, subject


def _roster(file: Path, name: str, ids: np.ndarray, layout: Layout) -> Roster:
    template, subject = _listed(file)
    if not len(template):
        raise ValueError(f"{file}: lists no template; get the file again")
    _check_known(template, ids, file, layout)
    return Roster(name, template, subject)


def _transforms(values: np.ndarray, names: Sequence[str], file: Path, size: int) -> np.ndarray:
    try:
        return similarities(values.reshape(-1, 5, 2), size)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _weights(scores: np.ndarray, names: Sequence[str], file: Path) -> np.ndarray:
    bad = ~(np.isfinite(scores) & (scores >= 0))
    if bad.any():
        raise ValueError(
            f"{file}: {int(bad.sum()):,} scores of the detector are negative or not finite, the first is that of "
            f"{names[int(np.argmax(bad))]}; get the file again"
        )
    return scores


def _digest(files: Sequence[Path]) -> str:
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(2**22):
                total.update(block)
    return total.hexdigest()
