"""Images, the people on them and their groups: a folder and a CSV file, as FRVT-like protocols are fed.

The first line names the columns:

    image,person,set,sex,age,failed
    0001/a.jpg,anna,enrol,female,30,
    0001/b.jpg,anna,verify,female,34,1

``image`` (below the folder) and ``person`` are needed. ``set``: enrolment images are compared with verification images;
without that column every image with every later one. ``failed``: 1, yes or true where no template was made. Any other
column is a group that can be reported on.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from facelab.pixels import decode, fit

OWN = ("image", "person", "set", "failed")
SETS = ("enrol", "verify")
FAILED = {"": False, "0": False, "no": False, "false": False, "1": True, "yes": True, "true": True}
SHOWN = 10  # of what is wrong, named in a message


@dataclass(frozen=True)
class Groups:
    """What a column says of the images."""

    code: np.ndarray  # (M,) int64
    names: list[str]  # of the K groups; an empty cell is the group "unknown"


@dataclass(frozen=True)
class Morphs:
    """Which images are morphs, and of whom."""

    images: np.ndarray  # (m,) image numbers
    contributors: list[np.ndarray]  # of each morph, people


@dataclass(frozen=True)
class ImageList:
    """Images of people; those of morphs stand behind them.

    Attributes:
        name: first part of the metric keys.
        names: of the images, M.
        root: the folder that they lie in.
        person: (M,) int64; −1 of a morph.
        people: their names, S.
        enrol: (E,) int64 image numbers.
        verify: (V,) int64; None: a single list.
        groups: by column.
        listed: (M,) bool, said to have failed; these are not read.
        morphs: None where there are none.
        size: H = W in pixels.
        source: for the stamp.
        digest: sha256 of the lists.
        accept_unreadable: whether an image that cannot be read is a failure to enrol, and not an error.
        unreadable: numbers of those that were met; filled by `load`.
    """

    name: str
    names: list[str]
    root: Path
    person: np.ndarray
    people: list[str]
    enrol: np.ndarray
    verify: np.ndarray | None
    groups: dict[str, Groups]
    listed: np.ndarray
    morphs: Morphs | None
    size: int
    source: str
    digest: str
    accept_unreadable: bool
    unreadable: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def probes(self) -> np.ndarray:
        """(V,) image numbers of what is compared with the enrolment images: of a single list all."""
        return self.enrol if self.verify is None else self.verify

    @property
    def about(self) -> str:
        """In words, for a summary."""
        sets = f"{len(self.enrol):,} images"
        if self.verify is not None:
            sets = f"{len(self.enrol):,} enrolment and {len(self.verify):,} verification images"
        morphs = "" if self.morphs is None else f", {len(self.morphs.images):,} morphs"
        return f"{sets} of {len(self.people):,} people{morphs}"

    def load(self, i: int, out: np.ndarray | None = None) -> np.ndarray:
        """Uint8 (size, size, 3) RGB; black where an image has failed."""
        image = None
        if not self.listed[i]:
            file = self.root / self.names[i]
            image = decode(np.fromfile(file, np.uint8), out)
            if image is None and not self.accept_unreadable:
                raise ValueError(
                    f"{file}: is not a readable image; get it again, or count it as a failure to enrol "
                    "(benchmark.failures)"
                )
            if image is not None:
                return fit(image, self.size, str(file))
            self.unreadable.add(i)
        return np.zeros((self.size, self.size, 3), np.uint8)


def read_list(
    root: Path,
    path: Path,
    morphs: Path | None,
    columns: Sequence[str],
    *,
    name: str,
    size: int,
    accept_unreadable: bool,
) -> ImageList:
    """Reads a list of images, and one of morphs.

    Args:
        root: the folder of all images.
        path: the CSV file.
        morphs: a CSV file with columns image and person, a line for each contributor of a morph; None: no morphs.
        columns: groups that will be asked for.
        name: see `ImageList`, as for the others.
        size: see there.
        accept_unreadable: see there.

    Raises:
        FileNotFoundError: the folder, a list, or images are not there: these are counted, and the first ten named.
        ValueError: columns that are missing, cells that say nothing, images that stand there twice, people of morphs
            who are in no list.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"benchmark.path={root}: no such folder of images")
    rows, found = _read(path, "image", "person")
    names = [row["image"] for row in rows]
    _check_columns(path, columns, found, names)
    people = sorted({row["person"] for row in rows})
    number = {person: index for index, person in enumerate(people)}
    listed = np.array([_flag(row.get("failed") or "", path) for row in rows], bool)
    made, contributors = _morphs(morphs, number, set(names))
    names += made
    _check_files(
        root, [image for image, failed in zip(names, [*listed, *[False] * len(made)], strict=True) if not failed]
    )
    enrol, verify = _sets(rows, path, "set" in found)
    return ImageList(
        name,
        names,
        root,
        np.array([number[row["person"]] for row in rows] + [-1] * len(made), np.int64),
        people,
        enrol,
        verify,
        {column: _groups([row[column] for row in rows], len(made)) for column in columns},
        np.concatenate([listed, np.zeros(len(made), bool)]),
        None if morphs is None else Morphs(np.arange(len(rows), len(names)), contributors),
        size,
        path.name,
        _digest([path, *([] if morphs is None else [morphs])]),
        accept_unreadable,
    )


def _check_columns(path: Path, asked: Sequence[str], found: list[str], names: list[str]) -> None:
    """Refuses groups that are not there, and images that stand in two lines."""
    unknown = [column for column in asked if column not in found or column in OWN]
    if unknown:
        groups = [column for column in found if column not in OWN]
        raise ValueError(
            f"{path}: has no group {', '.join(unknown)}; its groups are {', '.join(groups) or 'none'}: mend "
            "benchmark.group and benchmark.by, or the list"
        )
    twice = [image for image, times in Counter(names).items() if times > 1]
    if twice:
        raise ValueError(f"{path}: {len(twice):,} images stand there twice: {_named(twice)}")


def _read(path: Path, *needed: str) -> tuple[list[dict[str, str]], list[str]]:
    """Lines and columns; cells without blanks at their ends."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such list; give a CSV file with the columns {' and '.join(needed)} (benchmark.list)"
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [column.strip() for column in reader.fieldnames or []]
            reader.fieldnames = columns
            rows = [{key: (cell or "").strip() for key, cell in row.items() if key is not None} for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is no CSV file in UTF-8 ({error}); write it anew") from error
    missing = [column for column in needed if column not in columns]
    if missing:
        raise ValueError(
            f"{path}: its first line must name the columns {' and '.join(needed)}; it names "
            f"{', '.join(columns) or 'none'}"
        )
    empty = [str(line) for line, row in enumerate(rows, 2) if not all(row[column] for column in needed)]
    if empty:
        raise ValueError(f"{path}: {len(empty):,} lines have no {' or no '.join(needed)}: {_named(empty)}")
    if not rows:
        raise ValueError(f"{path}: names no image")
    return rows, columns


def _sets(rows: list[dict[str, str]], path: Path, has_sets: bool) -> tuple[np.ndarray, np.ndarray | None]:
    if not has_sets:
        return np.arange(len(rows)), None
    wrong = sorted({row["set"] for row in rows} - set(SETS))
    if wrong:
        raise ValueError(
            f"{path}: the column set says enrol or verify, here also {_named([repr(one) for one in wrong])}"
        )
    enrol, verify = (np.flatnonzero([row["set"] == one for row in rows]) for one in SETS)
    if not len(enrol) or not len(verify):
        raise ValueError(f"{path}: {len(enrol)} enrolment and {len(verify)} verification images; both are needed")
    return enrol, verify


def _groups(cells: list[str], behind: int) -> Groups:
    cells = [cell or "unknown" for cell in cells]
    names = sorted(set(cells))
    number = {name: index for index, name in enumerate(names)}
    return Groups(np.array([number[cell] for cell in cells] + [-1] * behind, np.int64), names)


def _morphs(path: Path | None, number: dict[str, int], images: set[str]) -> tuple[list[str], list[np.ndarray]]:
    """Names of the morphs, and the people of each."""
    if path is None:
        return [], []
    rows, _ = _read(path, "image", "person")
    strangers = sorted({row["person"] for row in rows} - number.keys())
    if strangers:
        raise ValueError(f"{path}: {len(strangers):,} contributors are not in the list of images: {_named(strangers)}")
    of: dict[str, list[int]] = {}
    for row in rows:
        of.setdefault(row["image"], []).append(number[row["person"]])
    known = sorted(images & of.keys())
    if known:
        raise ValueError(f"{path}: {len(known):,} morphs are in the list of images too: {_named(known)}")
    alone = [image for image, people in of.items() if len(set(people)) < 2]
    if alone:
        raise ValueError(f"{path}: {len(alone):,} morphs have fewer than two contributors: {_named(alone)}")
    return list(of), [np.unique(people) for people in of.values()]


def _check_files(root: Path, names: list[str]) -> None:
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{root}: {len(missing):,} of {len(names):,} listed images are missing: {_named(missing)}; check "
            "benchmark.path, or mark them in the column failed"
        )


def _flag(cell: str, path: Path) -> bool:
    if cell.lower() not in FAILED:
        raise ValueError(f"{path}: the column failed says 1, yes or true, or nothing; here also {cell!r}")
    return FAILED[cell.lower()]


def _named(things: Sequence[str]) -> str:
    return ", ".join(things[:SHOWN]) + (", …" if len(things) > SHOWN else "")


def _digest(paths: list[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
