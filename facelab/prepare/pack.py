"""Writes a training set: InsightFace's pack of `train.rec`, `train.idx`, `train.lst` and `property`, or a folder.

The pack is what `facelab.data.recordio` reads: record 0 has no image and the labels [first identity record, end); the
images have the keys 1 to N, those of an identity together; then one record without image for each identity, with the
labels [first image, end). A payload that contains the magic word at a multiple of four bytes is written in parts
without it, as dmlc's RecordIO has it, so that a reader that looks for the next record by the magic word finds records.

`train.lst` has InsightFace's columns, separated by tabs: 1 (aligned already), path, label. `identities.csv` says who
has which label.
"""

import csv
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from facelab.atomic import atomic_folder

__all__ = ["LAYOUTS", "Record", "check_name", "fill_folder", "fill_pack", "frame", "write_pack"]

# An image of a set: its identity's number, a name (….jpg) that no other image of the identity has, its JPEG.
Record = tuple[int, str, bytes]

_MAGIC = struct.pack("<I", 0xCED7230A)
_HEADER = struct.Struct("<IfQQ")  # flag (number of labels behind it), label, key, 0
_LONGEST = 2**29  # bytes of a record: the upper three bits of the length word say which part it is
_EXACT = 2**24  # labels are float32
_LONGEST_NAME = 255  # bytes, of a file
# File names may hold bytes that are no UTF-8: they are written as they are.
_TEXT: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}


def write_pack(out: Path, records: Iterable[Record], identities: Sequence[str], size: int) -> int:
    """Writes a set in InsightFace's format; the folder appears when it is complete.

    Args:
        out: the folder, which must not be there yet.
        records: the images, by label; every identity has some.
        identities: their names, by label.
        size: height and width of the images in pixels.

    Returns:
        The number of images.

    Raises:
        FileExistsError: `out` is there already.
        ValueError: records are out of order, an identity has none or a name that cannot be written.
    """
    with atomic_folder(out) as folder:
        return fill_pack(folder, records, identities, size)


def fill_pack(folder: Path, records: Iterable[Record], identities: Sequence[str], size: int) -> int:
    """The files of `write_pack`, in a folder that is there."""
    _check_identities(identities)
    firsts: list[int] = []  # key of each identity's first image
    key, position = 0, 0
    with (
        open(folder / "train.rec", "wb", buffering=1 << 20) as rec,
        open(folder / "train.idx", "w", newline="", encoding="ascii") as idx,
        open(folder / "train.lst", "w", **_TEXT) as lst,
    ):

        def append(number: int, payload: bytes) -> None:
            nonlocal position
            idx.write(f"{number}\t{position}\n")
            position += rec.write(frame(payload))

        append(0, _bounds(0, 0, 0))  # a place for what is known at the end
        for label, name, jpeg in _in_order(records, identities):
            key += 1
            if label == len(firsts):
                firsts.append(key)
            append(key, _HEADER.pack(0, label, key, 0) + jpeg)
            lst.write(f"1\t{identities[label]}/{name}\t{label}\n")
        ends = [*firsts[1:], key + 1]
        for number, (first, end) in enumerate(zip(firsts, ends, strict=True), start=key + 1):
            append(number, _bounds(number, first, end))
        rec.seek(0)
        rec.write(frame(_bounds(0, key + 1, key + 1 + len(firsts))))
    (folder / "property").write_text(f"{len(identities)},{size},{size}")
    _write_identities(folder, identities, [end - first for first, end in zip(firsts, ends, strict=True)])
    return key


def fill_folder(folder: Path, records: Iterable[Record], identities: Sequence[str], size: int) -> int:
    """The images as <folder>/<identity>/<name>, which `facelab.data.folder` reads.

    Raises:
        ValueError: records are out of order, an identity has none, or a name cannot be written.
    """
    _check_identities(identities)
    counts = [0] * len(identities)
    for label, name, jpeg in _in_order(records, identities):
        person = folder / identities[label]
        if not counts[label]:
            try:
                person.mkdir()
            except FileExistsError:
                raise ValueError(f"two identities are named {identities[label]!r} here: rename one of them") from None
        try:
            with open(person / name, "xb") as file:
                file.write(jpeg)
        except FileExistsError:
            raise ValueError(f"two images of {identities[label]!r} are named {name!r}: rename one of them") from None
        counts[label] += 1
    _write_identities(folder, identities, counts)
    return sum(counts)


LAYOUTS: dict[str, Callable[[Path, Iterable[Record], Sequence[str], int], int]] = {
    "pack": fill_pack,
    "folder": fill_folder,
}


def frame(payload: bytes) -> bytes:
    """A payload as it lies in a file: magic word, length, content, padding to four bytes; in parts where it must be.

    Raises:
        ValueError: it is too long for the format (512 MiB).
    """
    if len(payload) >= _LONGEST:
        raise ValueError(f"an image of {len(payload):,} bytes is too long for RecordIO: {_LONGEST:,} are too many")
    cuts = list(_aligned_magics(payload))
    parts = []
    begin = 0
    for cut in cuts:
        parts.append(_part(2 if begin else 1, payload[begin:cut]))
        begin = cut + 4
    parts.append(_part(3 if cuts else 0, payload[begin:]))
    return b"".join(parts)


def check_name(name: str, what: str) -> None:
    """Refuses a name that a file, or a line of `train.lst`, cannot have.

    Raises:
        ValueError: with one line that begins with `what`.
    """
    where = f"{what} {name[:80]!r}" + ("…" if len(name) > 80 else "")
    if not name or name.startswith(".") or "/" in name:
        raise ValueError(f"{where} cannot be a folder's name: it may neither be empty, begin with a dot nor hold a /")
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        raise ValueError(f"{where} holds a tab, a new line or another control character: rename it")
    if len(name.encode("utf-8", "surrogateescape")) > _LONGEST_NAME:
        raise ValueError(f"{where} is longer than the {_LONGEST_NAME} bytes that a file's name may have: shorten it")


def _aligned_magics(payload: bytes) -> Iterator[int]:
    """Where the magic word begins at a multiple of four bytes."""
    found = payload.find(_MAGIC)
    while found >= 0:
        if found % 4:
            found = payload.find(_MAGIC, found + 1)
        else:
            yield found
            found = payload.find(_MAGIC, found + 4)


def _part(kind: int, content: bytes) -> bytes:
    return _MAGIC + struct.pack("<I", kind << 29 | len(content)) + content + bytes(-len(content) % 4)


def _bounds(key: int, first: int, end: int) -> bytes:
    """A record without image, whose labels are a range of keys."""
    return _HEADER.pack(2, 0, key, 0) + struct.pack("<2f", first, end)


def _in_order(records: Iterable[Record], identities: Sequence[str]) -> Iterator[Record]:
    """The records, with labels 0, 1, … that never go back and leave no identity out."""
    last = -1
    for label, name, jpeg in records:
        if label not in (last, last + 1):
            raise ValueError(f"{name}: has the label {label} behind {last}: images must come by label, none left out")
        if label == len(identities):
            raise ValueError(f"{name}: has the label {label}, but there are {len(identities)} identities")
        last = label
        yield label, name, bytes(jpeg)
    if last + 1 < len(identities):
        raise ValueError(f"identity {identities[last + 1]!r} has no image: leave it out")


def _check_identities(identities: Sequence[str]) -> None:
    if not 0 < len(identities) < _EXACT:
        raise ValueError(f"there are {len(identities):,} identities: a set has between 1 and {_EXACT - 1:,}")
    for name in identities:
        check_name(name, "identity")
    twice = [name for name, count in Counter(identities).items() if count > 1]
    if twice:
        raise ValueError(f"two identities are named {twice[0]!r}: rename one of them")


def _write_identities(folder: Path, identities: Sequence[str], counts: Sequence[int]) -> None:
    with open(folder / "identities.csv", "w", **_TEXT) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("label", "identity", "images"))
        writer.writerows(zip(range(len(identities)), identities, counts, strict=True))
