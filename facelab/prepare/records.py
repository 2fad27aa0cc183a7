"""A `.rec` read from its first byte to its last, without its index: what is really there."""

import struct
from array import array
from collections.abc import Callable
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["Scan", "scan"]

_MAGIC = struct.pack("<I", 0xCED7230A)
_FRAME = struct.Struct("<4sI")
_HEADER = struct.Struct("<IfQQ")
_TOLD = 4096  # records between two words on how far it is


class Scan(NamedTuple):
    """The records of a file, in the order in which they lie there.

    Attributes:
        offsets: (R,) int64, bytes at which they begin.
        images: (R,) bool, whether there is more in them than a header and its labels.
        breaks: bytes at which no record begins though the last one ends there, and where the next one was found.
    """

    offsets: np.ndarray
    images: np.ndarray
    breaks: list[tuple[int, int]]


def scan(rec: Path, tell: Callable[[int, int], None]) -> Scan:
    """Follows the lengths of the records; where these lead nowhere, the next magic word is looked for.

    Args:
        rec: the file; not empty.
        tell: is told records read, and how many there may be.
    """
    offsets, images = array("q"), bytearray()
    breaks: list[tuple[int, int]] = []
    with open(rec, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        position, size = 0, len(content)
        while position < size:
            end = _end(content, position, size)
            if end is None:
                found = _next(content, position + 1)
                breaks.append((position, found))
                position = found
                continue
            flag = int.from_bytes(content[position + 8 : position + 12], "little")
            word = int.from_bytes(content[position + 4 : position + 8], "little")
            offsets.append(position)
            images.append(word >= 1 << 29 or word > _HEADER.size + 4 * flag)  # several parts, or more than labels
            position = end
            if len(offsets) % _TOLD == 0:
                tell(len(offsets), len(offsets) * size // position)
    return Scan(np.frombuffer(offsets, np.int64).copy(), np.frombuffer(bytes(images), bool).copy(), breaks)


def _end(content: mmap, position: int, size: int) -> int | None:
    """Where the record at `position` ends, its padding included; None where there is no whole one."""
    expected = (0, 1)
    while position + _FRAME.size <= size:
        magic, word = _FRAME.unpack_from(content, position)
        part, length = word >> 29, word & 0x1FFFFFFF
        end = position + _FRAME.size + length
        if magic != _MAGIC or part not in expected or end > size:
            return None
        if part == 0 and length < _HEADER.size:
            return None
        position = (end + 3) // 4 * 4
        if part in (0, 3):
            return position if position >= size or content[position : position + 4] == _MAGIC else None
        expected = (2, 3)
    return None


def _next(content: mmap, begin: int) -> int:
    """The next place at which a record may begin, or the end of the file."""
    found = content.find(_MAGIC, begin)
    while found >= 0 and found % 4:
        found = content.find(_MAGIC, found + 1)
    return found if found >= 0 else len(content)
