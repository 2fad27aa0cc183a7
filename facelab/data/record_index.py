"""The index of a `.rec`, and what was learnt of a large set when it was opened first, kept for the next time.

To read 42 million lines of text and as many headers takes a minute and more. What comes of it, the offset and the label
of every image, is kept in one file (safetensors) beside the index, or in the user's cache where that folder cannot be
written, and is memory-mapped from then on: opening costs neither time nor memory. The file is used only while index and
records are those that it was made from, by their sizes, times and ends; else it is made anew.
"""

import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from facelab.atomic import atomic

__all__ = ["Known", "keep", "read_index", "recall"]

WORTH = 1_000_000  # records from which on it is kept: below, a set opens in about a second anyway
_VERSION = 1  # of the kept file: whatever changes its meaning counts this up
_ENDS = 1 << 16  # bytes of a file's beginning and of its end that are compared
_SUFFIX = ".safetensors"
_TYPES = {"I64": np.int64}


class Known(NamedTuple):
    """What a set is known to hold.

    A row is a place in the order of the keys.
    """

    keys: range | np.ndarray  # (n,) of the records, increasing; a range where none is missing
    offsets: np.ndarray  # (n,) int64, bytes
    first: int  # row of the first image; they lie together
    last: int  # row of the record that ends the file
    labels: np.ndarray  # (N,) int64 of the images, 0…C-1
    names: np.ndarray  # (C,) int64, the label that each identity has in the file


def read_index(path: Path) -> tuple[range | np.ndarray, np.ndarray]:
    """Keys, increasing (a range where none is missing), and byte offsets (n,), from lines `key<tab>offset`.

    Raises:
        ValueError: when the file is empty, has other lines, or names a key twice.
    """
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # NumPy 1's way to say that a number is malformed
        for lines in _whole_lines(file):
            try:
                numbers = np.fromstring(lines, dtype=np.int64, sep=" ")
            except (ValueError, DeprecationWarning):
                numbers = np.empty(0, np.int64)
            if len(numbers) != 2 * (lines.count(b"\n") + 1):
                raise ValueError(f"{path}: has lines that are not 'key<tab>offset', whole numbers: it is not an index")
            parts.append((numbers[0::2].copy(), numbers[1::2].copy()))
    if not parts:
        raise ValueError(f"{path}: is empty")
    keys, offsets = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    if (keys[1:] <= keys[:-1]).any():
        order = np.argsort(keys, kind="stable")
        keys, offsets = keys[order], offsets[order]
        twice = keys[1:] == keys[:-1]
        if twice.any():
            raise ValueError(f"{path}: names key {keys[np.argmax(twice)]} twice")
    first, last = int(keys[0]), int(keys[-1])
    return range(first, last + 1) if last - first == len(keys) - 1 else keys, offsets


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    while lines := file.read(1 << 26) + file.readline():
        if lines := lines.rstrip():
            yield lines


def recall(rec: Path, idx: Path) -> Known | None:
    """What is known of a set from an earlier opening, memory-mapped; None where nothing is, or it no longer fits."""
    if not any(place.is_file() for place in _places(idx)):
        return None
    identity = _identity(rec, idx)
    for place in _places(idx):
        try:
            arrays, about = _mapped(place)
            if about["of"] == identity:
                keys = arrays.get("keys", range(int(about["key"]), int(about["key"]) + len(arrays["offsets"])))
                first, last = int(about["first"]), int(about["last"])
                known = Known(keys, arrays["offsets"], first, last, arrays["labels"], arrays["names"])
                _check(known)
                return known
        except (OSError, ValueError, KeyError, TypeError):  # nobody's fault: it is made anew
            continue
    return None


def keep(rec: Path, idx: Path, known: Known) -> None:
    """Keeps what is known of a large set where there is a place for it; elsewhere, and of a small one, nothing is."""
    if len(known.offsets) < WORTH or recall(rec, idx) is not None:  # another process of the run was faster
        return
    arrays = {"offsets": known.offsets, "labels": known.labels, "names": known.names}
    about = {"of": _identity(rec, idx), "first": str(known.first), "last": str(known.last)}
    if isinstance(known.keys, range):
        about["key"] = str(known.keys.start)
    else:
        arrays["keys"] = known.keys
        about["key"] = str(known.keys[0])
    for place in _places(idx):
        try:
            with atomic(place) as temporary:
                save_file(arrays, temporary, about)
            return
        except Exception:  # no right to write, no room: safetensors has an error of its own for these
            continue


def _places(idx: Path) -> tuple[Path, Path]:
    """Beside the index, and in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "facelab"
    name = hashlib.sha256(os.fsencode(idx.absolute())).hexdigest()[:16]
    return idx.with_name(idx.name + _SUFFIX), cache / f"{idx.name}-{name}{_SUFFIX}"


def _identity(rec: Path, idx: Path) -> str:
    """Of what a file is kept: other sizes, times or ends are another set."""
    found: list[object] = [_VERSION]
    for path in (rec, idx):
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            ends = file.read(_ENDS)
            file.seek(max(0, status.st_size - _ENDS))
            digest = hashlib.sha256(ends + file.read(_ENDS)).hexdigest()
        found.append([status.st_size, status.st_mtime_ns, digest])
    return json.dumps(found)


def _mapped(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays of a safetensors file, mapped (its own reader would copy them), and its metadata.

    Raises:
        OSError, ValueError, KeyError, TypeError: where it is no such file.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= 1 << 20:
            raise ValueError("is no safetensors file")
        header = json.loads(file.read(length))
        about = header.pop("__metadata__")
        arrays = {}
        for name, entry in header.items():
            kind, (begin, end) = np.dtype(_TYPES[entry["dtype"]]), entry["data_offsets"]
            if end - begin != kind.itemsize * math.prod(entry["shape"]):
                raise ValueError("contradicts itself")
            arrays[name] = np.asarray(np.memmap(file, kind, "r", 8 + length + begin, tuple(entry["shape"])))
    return arrays, about


def _check(known: Known) -> None:
    """Refuses what is no index at all: rows that are not there would be read."""
    count, images = len(known.offsets), len(known.labels)
    inside = 0 <= known.first <= known.first + images <= count and 0 <= known.last < count
    if not inside or len(known.keys) != count or not 0 < len(known.names) <= images:
        raise ValueError("contradicts itself")
