"""Where photographs come from: a folder of identities, a list, or a set in InsightFace's format.

All three give the same: identities with names, and images in a fixed order, those of an identity together, each with a
name of its own in the set that will be made of them.
"""

import csv
import hashlib
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facelab.data.recordio import RecordIOFaces
from facelab.prepare.existing import open_set, people
from facelab.prepare.pack import check_name

__all__ = ["LINKS", "Failure", "Photographs", "Records", "open_source"]

LINKS = ("refuse", "follow")
SHEETS = ("sheet.png", "failures.png")  # which facelab.prepare lays beside its folders
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_LAYOUTS = "a folder with one folder for each identity, a list of path and identity, or a set with train.rec"
_LONGEST_NAME = 200  # bytes of a packed image's name
_HEADINGS = (["path", "identity"], ["file", "identity"])


class Failure(NamedTuple):
    """A photograph of which no face came into the set."""

    identity: str
    photograph: str
    reason: str
    detail: str


class _File(NamedTuple):
    path: str  # of the photograph, from the source's folder
    size: int  # bytes; -1 where it is not there
    changed: int  # nanoseconds


class Photographs:
    """Image files.

    Attributes:
        identities: names, in the order of their labels.
        labels: (N,) int64, not decreasing.
        refused: what lies among the photographs and is none by its name.
        digest: of all paths, sizes and times of change.

    Args:
        root: from which paths go.
        groups: identity → its files, in their order; none is empty.
        refused: what was left out.
    """

    def __init__(self, root: Path, groups: dict[str, list[_File]], refused: Sequence[Failure]):
        self.root, self.identities, self.refused = root, list(groups), list(refused)
        self.labels = np.repeat(np.arange(len(groups)), [len(files) for files in groups.values()])
        self._paths = [file.path for files in groups.values() for file in files]
        self._names = [name for files in groups.values() for name in _packed_names([file.path for file in files])]
        seen = hashlib.sha256()
        for identity, files in groups.items():
            for file in files:
                seen.update("\0".join([identity, *map(str, file), ""]).encode("utf-8", "surrogateescape"))
        self.digest = seen.hexdigest()

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        """What an image is called in the set, <something>.jpg."""
        return self._names[index]

    def photograph(self, index: int) -> str:
        """Where it comes from, for its owner."""
        return self._paths[index]

    def encoded(self, index: int) -> np.ndarray:
        """Bytes of an image file (n,) uint8."""
        return np.fromfile(self.root / self._paths[index], np.uint8)


class Records:
    """The images of a set in InsightFace's format; attributes as those of `Photographs`.

    Identities have the names that an identities.csv beside it gives them, else their numbers.

    Args:
        root: folder with train.rec, train.idx and property.
    """

    def __init__(self, root: Path):
        faces = open_set(str(root), None)
        assert isinstance(faces, RecordIOFaces)
        self.root, self.refused, self._faces = root, list[Failure](), faces
        self._order = np.argsort(faces.labels, kind="stable")
        self.labels = faces.labels[self._order]
        self.identities = people(faces)
        seen = hashlib.sha256()
        for file in ("train.rec", "train.idx", "property"):
            stat = (root / file).stat()
            seen.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
        self.digest = seen.hexdigest()

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """What an image is called in the set: its key in the old one."""
        return self._faces.name(self._order[index]).removeprefix("key ") + ".jpg"

    def photograph(self, index: int) -> str:
        """Its key."""
        return self._faces.name(self._order[index])

    def encoded(self, index: int) -> np.ndarray:
        """Bytes of an image file (n,) uint8."""
        return self._faces.encoded(self._order[index])


def open_source(source: str, links: str) -> Photographs | Records:
    """The images of `source=`.

    Args:
        source: a folder of identities, a list, or a folder with train.rec (or that file).
        links: what becomes of symbolic links that lead out of a folder of identities: refuse, follow.

    Raises:
        FileNotFoundError: when it is not there.
        ValueError: when it holds nothing usable, or two identities of one name, or links that are refused.
    """
    path = Path(source).expanduser()
    if links not in LINKS:
        raise ValueError(f"links is {links!r}: give one of {', '.join(LINKS)}")
    if not path.exists():
        raise FileNotFoundError(f"source={source}: there is no such file or folder; expected {_LAYOUTS}")
    if path.suffix == ".rec":
        path = path.parent
    if (path / "train.rec").is_file():
        records = Records(path)
        _check_identities(records.identities, path)
        return records
    groups, refused = _walk(path, links) if path.is_dir() else _read_list(path)
    _check_identities(groups, path)
    return Photographs(path if path.is_dir() else path.parent, groups, refused)


def _walk(root: Path, links: str) -> tuple[dict[str, list[_File]], list[Failure]]:
    """The photographs of <root>/<identity>/, by identity in the order of names; and what else lies there."""
    groups: dict[str, list[_File]] = {}
    refused: list[Failure] = []
    for person in _entries(root):
        if not _is_in_place(person, root, links) or not person.is_dir():
            if person.name.lower().endswith(ENDINGS) and person.name not in SHEETS:
                refused.append(Failure("", person.name, "not in an identity's folder", ""))
            continue
        files = []
        for entry in _entries(person.path):
            why = _no_photograph(entry, root, links)
            if why:
                refused.append(Failure(person.name, f"{person.name}/{entry.name}", why, ""))
            else:
                stat = entry.stat()
                files.append(_File(f"{person.name}/{entry.name}", stat.st_size, stat.st_mtime_ns))
        if files:
            groups[person.name] = files
        else:
            refused.append(Failure(person.name, person.name, "a folder without images", ""))
    if not groups:
        raise ValueError(f"source={root}: has no images in folders; expected {_LAYOUTS}")
    return groups, refused


def _is_in_place(entry: os.DirEntry, root: Path, links: str) -> bool:
    """Whether there is something; a link out of the source is refused unless links are followed."""
    if not entry.is_symlink():
        return True
    target = Path(entry.path).resolve()
    if links == "refuse" and not target.is_relative_to(root.resolve()):
        raise ValueError(
            f"{entry.path} is a link that leads out of {root}, to {target}: give links=follow to take what lies "
            "there, or remove the link"
        )
    return target.exists()


def _no_photograph(entry: os.DirEntry, root: Path, links: str) -> str:
    """Why what lies in an identity's folder is none; nothing where it is one."""
    if not _is_in_place(entry, root, links):
        return "a link that leads nowhere"
    if entry.is_dir():
        return "a folder in an identity's folder"
    return "" if entry.name.lower().endswith(ENDINGS) else "no image by its name"


def _entries(folder: Path | str) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _read_list(path: Path) -> tuple[dict[str, list[_File]], list[Failure]]:
    """The photographs of a list, by identity; numbers come in their order, names in that of the alphabet."""
    owners: dict[str, str] = {}
    for number, where, identity in _lines(path):
        where = os.path.normpath(where)
        if where in owners:
            whom = "twice" if owners[where] == identity else f"for {owners[where]!r} and for {identity!r}"
            raise ValueError(f"{path}, line {number}: {where} is listed {whom}; take one of the two away")
        owners[where] = identity
    groups: dict[str, list[_File]] = {identity: [] for identity in sorted(set(owners.values()), key=_rank)}
    for where, identity in owners.items():
        try:
            stat = os.stat(path.parent / where)
            groups[identity].append(_File(where, stat.st_size, stat.st_mtime_ns))
        except OSError:  # told when it is to be read, among the failures
            groups[identity].append(_File(where, -1, 0))
    if all(file.size < 0 for files in groups.values() for file in files):
        raise ValueError(f"{path}: no file that it names is there; paths are taken from {path.parent.absolute()}")
    return groups, []


def _lines(path: Path) -> Iterable[tuple[int, str, str]]:
    """Number, path and identity of each line, separated by a tab or, in a CSV, by a comma."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        tabs = "\t" in file.readline()
        file.seek(0)
        # In a list with tabs, quotes and commas belong to the names.
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(file)
        empty = True
        try:
            for row in rows:
                fields = [field.strip() for field in row]
                if not any(fields) or (rows.line_num == 1 and [field.lower() for field in fields] in _HEADINGS):
                    continue
                if len(fields) != 2 or not all(fields):
                    raise ValueError(
                        f"{path}, line {rows.line_num}: has {len(fields)} fields; a list has a path and an identity in "
                        "each line, separated by a tab or a comma"
                    )
                empty = False
                yield rows.line_num, fields[0], fields[1]
        except csv.Error as error:
            raise ValueError(f"{path}, line {rows.line_num}: is no line of a list ({error})") from None
    if empty:
        raise ValueError(f"{path}: is empty; a list has a path and an identity in each line")


def _rank(identity: str) -> tuple[int, int, str]:
    return (0, int(identity), identity) if identity.isascii() and identity.isdecimal() else (1, 0, identity)


def _check_identities(identities: Iterable[str], where: Path) -> None:
    """Each name is one that a folder can have; no two differ in nothing but case, or in how an accent is encoded."""
    seen: dict[str, str] = {}
    for name in identities:
        check_name(name, f"{where}: identity")
        key = unicodedata.normalize("NFKC", name).casefold()
        other = seen.get(key)
        seen[key] = name
        if other is not None:
            raise ValueError(
                f"{where}: the identities {other!r} and {name!r} have one name, but for case or the encoding of "
                "accents: make one of the two, or rename one"
            )


def _packed_names(paths: Sequence[str]) -> list[str]:
    """A short name ending in .jpg for each photograph of an identity, no two alike even where case does not count."""
    taken: set[str] = set()
    names = []
    for path in paths:
        stem, ending = os.path.splitext(os.path.basename(path))
        if ending.lower() not in (".jpg", ".jpeg"):
            stem += ending
        stem = "".join("_" if ord(letter) < 32 or ord(letter) == 127 else letter for letter in stem)
        mark = "-" + hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        raw = stem.encode("utf-8", "surrogateescape")
        name = f"{stem}.jpg"
        if len(raw) > _LONGEST_NAME:
            name = raw[:_LONGEST_NAME].decode("utf-8", "ignore") + mark + ".jpg"
        elif name.casefold() in taken:
            name = stem + mark + ".jpg"
        taken.add(name.casefold())
        names.append(name)
    return names
