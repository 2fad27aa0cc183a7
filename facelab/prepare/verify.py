"""`task=verify`: reads a whole set and says what it is, what is wrong with it, and what only looks odd."""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from facelab.atomic import UNFINISHED, atomic, unfinished
from facelab.data.inspect import UNREADABLE
from facelab.data.record_index import read_index
from facelab.data.recordio import RecordIOFaces
from facelab.prepare.existing import Faces, beside, check_found, open_set, people
from facelab.prepare.look import ALIKE, Looked, copies, look
from facelab.prepare.records import scan
from facelab.tracking import Tracker

__all__ = ["Finding", "verify"]

DAMAGE, NOTE = "damage", "note"
_NAMED = 100  # findings of a kind about a pack's files that are named one by one; the rest is counted
_TEXT: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
Tell = Callable[[int, int], None]


class Finding(NamedTuple):
    """Something that is wrong, or odd."""

    grave: str  # damage: the set should not be trained on as it is; note: its owner may want to know
    kind: str  # set, record, index, list, identities, unreadable, copy, ambiguous copy, label, leftover, …
    identity: str
    name: str  # the image, the byte or the file
    what: str


def verify(source: str, out: str | None, size: int | None, alike: str, threads: int, progress: bool) -> None:
    """Reads a set; writes verify.json (numbers) and found.csv (everything that was found, a line each).

    Args:
        source: a pack or a folder of identities.
        out: folder of what is written; null: one beside the set.
        size: pixels, H = W; null: what the set itself says.
        alike: whether copies are told by their bytes or by their pixels.
        threads: how many read images.
        progress: whether to show how far it is.

    Raises:
        FileNotFoundError: the set is not there, not finished or incomplete.
        ValueError: it is damaged; said when all is written.
    """
    if alike not in ALIKE:
        raise ValueError(f"alike is {alike!r}: give one of {', '.join(ALIKE)}")
    root = check_found(source)
    folder = beside(root, out, "verify")
    found: list[Finding] = list(_leftovers(root))
    report: dict[str, Any] = {"set": str(root), "layout": "pack" if (root / "train.rec").is_file() else "folder"}
    faces: Faces | None = None
    try:
        faces = open_set(source, size)
    except ValueError as error:
        found.append(Finding(DAMAGE, "set", "", root.name, str(error)))
    if (root / "train.rec").is_file() and (root / "train.rec").stat().st_size:
        with Tracker("reading records", progress) as tell:
            report["records"] = _check_records(root, found, tell)
    if faces is not None:
        report |= _counts(faces, found)
        with Tracker("looking at images", progress) as tell:
            looked = look(faces, alike, threads, tell)
        report |= _images(faces, looked, alike, found)
    report["found"] = dict(sorted(Counter(f"{one.grave}: {one.kind}" for one in found).items()))
    report["damaged"] = any(one.grave == DAMAGE for one in found)
    _write(folder, report, found)
    print(_in_words(report, folder), flush=True)
    if report["damaged"]:
        first = next(one for one in found if one.grave == DAMAGE)
        total = sum(one.grave == DAMAGE for one in found)
        raise ValueError(
            f"{root} is damaged: {total:,} things are wrong, the first is {first.kind} {first.name}: {first.what}; all "
            f"are named in {folder / 'found.csv'}"
        )


def _leftovers(root: Path) -> Iterator[Finding]:
    """What an interrupted program leaves in a set, or beside it."""
    begun = unfinished(root)
    if begun.exists():
        yield Finding(NOTE, "leftover", "", begun.name, "an unfinished set of this name lies beside it: remove it")
    for file in sorted(root.glob(f"{UNFINISHED}*")):
        yield Finding(NOTE, "leftover", "", file.name, "was being written when something stopped: remove it")


# A pack's files


def _check_records(root: Path, found: list[Finding], tell: Tell) -> dict[str, int]:
    """Reads train.rec from end to end, and compares it with its index and its list."""
    there = scan(root / "train.rec", tell)
    for begin, end in there.breaks[:_NAMED]:
        what = f"no whole record begins here; the next one was found at byte {end}"
        found.append(Finding(DAMAGE, "record", "", f"byte {begin}", what))
    counts = {"records": len(there.offsets), "with images": int(there.images.sum()), "breaks": len(there.breaks)}
    try:
        keys, offsets = read_index(root / "train.idx")
    except ValueError as error:
        found.append(Finding(DAMAGE, "index", "", "train.idx", str(error)))
        return counts
    nowhere = np.flatnonzero(~np.isin(offsets, there.offsets))
    for row in nowhere[:_NAMED].tolist():
        what = f"points to byte {offsets[row]}, where no whole record begins"
        found.append(Finding(DAMAGE, "index", "", f"key {keys[row]}", what))
    # An index may leave images out on purpose; whether it lost its end is the reader's to tell.
    left_out = int((there.images & ~np.isin(there.offsets, offsets)).sum())
    if left_out:
        found.append(Finding(NOTE, "index", "", "train.idx", f"{left_out:,} images of train.rec are not in the index"))
    return counts | {"in the index": len(offsets), "index points nowhere": len(nowhere), "not in the index": left_out}


def _check_list(faces: RecordIOFaces, found: list[Finding]) -> None:
    """Compares train.lst, InsightFace's (1, path, label) or im2rec's (key, label, path), with the records."""
    file = faces.root / "train.lst"
    if not file.is_file():
        return
    listed: list[int] = []
    with open(file, **_TEXT) as lines:
        for number, line in enumerate(lines, start=1):
            fields = line.rstrip("\r\n").split("\t")
            label = _label(fields)
            if label is None:
                what = f"line {number} is neither '1, path, label' nor 'key, label, path', separated by tabs"
                found.append(Finding(DAMAGE, "list", "", file.name, what))
                return
            listed.append(label)
    if len(listed) != len(faces):
        what = f"lists {len(listed):,} images, but train.rec has {len(faces):,}"
        found.append(Finding(DAMAGE, "list", "", file.name, what))
        return
    held = np.array([int(name) for name in faces.identity_names])[faces.labels]
    if not np.array_equal(np.sort(held), np.sort(listed)):
        found.append(
            Finding(DAMAGE, "list", "", file.name, "has other numbers of images for its labels than train.rec")
        )
        return
    differing = np.flatnonzero(held != listed)
    if len(differing):  # im2rec writes its lists shuffled
        what = f"has its images in another order; the first that differs is in line {differing[0] + 1}"
        found.append(Finding(NOTE, "list", "", file.name, what))


def _label(fields: list[str]) -> int | None:
    for place in (2, 1):
        try:
            number = float(fields[place])
        except (IndexError, ValueError):
            continue
        return int(number) if len(fields) >= 3 and number >= 0 and number.is_integer() else None
    return None


def _check_identities(faces: RecordIOFaces, counts: np.ndarray, found: list[Finding]) -> None:
    """Compares identities.csv, which our own packs have, with the records."""
    file = faces.root / "identities.csv"
    if not file.is_file():
        return
    with open(file, **_TEXT) as lines:
        said = {row.get("label") or "": row.get("images") or "" for row in csv.DictReader(lines)}
    held = dict(zip(faces.identity_names, map(str, counts.tolist()), strict=True))
    for label in sorted(said.keys() | held.keys()):
        if said.get(label) != held.get(label):
            what = f"says {said.get(label, 0)} images of label {label}, train.rec has {held.get(label, 0)}"
            found.append(Finding(DAMAGE, "identities", label, file.name, what))


# What is in it


def _counts(faces: Faces, found: list[Finding]) -> dict[str, Any]:
    counts = np.bincount(faces.labels, minlength=faces.num_classes)
    report = {
        "identities": faces.num_classes,
        "images": len(faces),
        "images per identity": {
            "fewest": int(counts.min()),
            "median": float(np.median(counts)),
            "most": int(counts.max()),
            "identities with one image": int((counts == 1).sum()),
        },
    }
    if isinstance(faces, RecordIOFaces):
        said = int((faces.root / "property").read_text().split(",")[0])
        missing = np.setdiff1d(np.arange(said), np.array([int(name) for name in faces.identity_names]))
        report["labels"] = {"highest": int(faces.identity_names[-1]), "property": said, "without images": len(missing)}
        if len(missing):
            first = ", ".join(map(str, missing[:5].tolist())) + (" …" if len(missing) > 5 else "")
            what = f"{len(missing):,} of {said:,} labels have no image: {first}; training numbers the others anew"
            found.append(Finding(NOTE, "label", "", "property", what))
        _check_list(faces, found)
        _check_identities(faces, counts, found)
    return report


def _images(faces: Faces, looked: Looked, alike: str, found: list[Finding]) -> dict[str, Any]:
    """What was seen of the images."""
    names = people(faces)
    label_of = {name: label for label, name in enumerate(faces.identity_names)}
    for odd in looked.odd:
        grave = DAMAGE if odd.kind == UNREADABLE else NOTE
        identity = names[label_of[odd.identity]] if odd.identity in label_of else odd.identity
        found.append(Finding(grave, odd.kind, identity, odd.name, odd.why or odd.done))
    shapes = Counter(map(tuple, looked.shapes[looked.sound].tolist()))
    report: dict[str, Any] = {
        "sizes": {f"{height}×{width}": count for (height, width), count in shapes.most_common()},
        "unreadable": int((~looked.sound).sum()),
        "copies": {"told by": alike, "within identities": 0, "across identities": 0},
    }
    for group in copies(faces, looked, alike):
        first: dict[int, int] = {}  # label → its first image of the group
        for index, label in zip(group, faces.labels[group].tolist(), strict=True):
            like = first.setdefault(label, index)
            if index == group[0]:
                continue
            within = like != index
            what = (
                f"is the image {faces.name(like)}"
                if within
                else (f"is the image {faces.name(group[0])} of {names[faces.labels[group[0]]]}")
            )
            report["copies"]["within identities" if within else "across identities"] += 1
            kind = "copy" if within else "ambiguous copy"
            found.append(Finding(NOTE, kind, names[label], faces.name(index), what))
    return report


# What is said


def _write(folder: Path, report: dict[str, Any], found: list[Finding]) -> None:
    with atomic(folder / "verify.json") as temporary:
        temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", **{**_TEXT, "newline": "\n"})
    with atomic(folder / "found.csv") as temporary, open(temporary, "w", **_TEXT) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Finding._fields)
        writer.writerows(found)


def _in_words(report: dict[str, Any], folder: Path) -> str:
    lines = [f"{report['set']}: {report['layout']}"]
    if "images" in report:
        each = report["images per identity"]
        sizes = list(report["sizes"].items())
        shown = ", ".join(f"{count:,} of {size}" for size, count in sizes[:3]) + (" …" if len(sizes) > 3 else "")
        lines += [
            f"images      {report['images']:,} of {report['identities']:,} identities, {each['fewest']:,} to "
            f"{each['most']:,} each, median {each['median']:g}",
            f"sizes       {shown}",
            f"copies      {report['copies']['within identities']:,} within identities, "
            f"{report['copies']['across identities']:,} across, told by {report['copies']['told by']}",
        ]
    lines += [f"{count:>10,}  {kind}" for kind, count in report["found"].items()]
    return "\n".join([*lines, f"written to  {folder}"])
