"""Reads lists of names and numbers out of MATLAB's files, versions 5 to 7, and nothing else of them.

Our own reader, since scipy's believes what a file states: of a damaged one it crashes with the whole process, and of
two hundred bytes that state 2^30 cells it takes gigabytes and minutes. Format: MATLAB's "MAT-File Format", level 5.
"""

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

__all__ = ["read_mat_file"]

_HEADER = 128  # bytes
_MATRIX, _COMPRESSED = 14, 15  # types of elements
_CELL, _CHAR, _NUMBERS = 1, 4, range(6, 16)  # classes of matrices
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_LETTERS = {1: "latin1", 2: "latin1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_MOST = 1 << 26  # bytes that a compressed element may grow to; TinyFace's lists have some 2 MB
_DEEPEST = 8  # cells in cells


def read_mat_file(path: Path) -> dict[str, np.ndarray]:
    """Its variables of cells, letters and numbers by name; others are left out.

    Returns:
        Arrays of the shapes that MATLAB shows: of numbers, or of objects, which are words or again such arrays. A
        matrix of letters is a column of words.

    Raises:
        ValueError: it is another format, damaged, or states what it does not hold.
    """
    content = path.read_bytes()
    if len(content) < _HEADER or content[126:128] not in (b"IM", b"MI"):
        raise ValueError("it is no MATLAB file of version 5 to 7; save it with -v7")
    order = "<" if content[126:128] == b"IM" else ">"
    found: dict[str, np.ndarray] = {}
    for kind, body in _elements(content[_HEADER:], order):
        inner = [(kind, body)]
        if kind == _COMPRESSED:
            inner = list(_elements(_unpacked(body), order))
        for of_inner, matrix in inner:
            if of_inner == _MATRIX:
                name, value = _matrix(matrix, order, 0)
                if value is not None:
                    found[name] = value
    return found


def _unpacked(body: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(body, _MOST)
    except zlib.error as error:
        raise ValueError(f"a part of it cannot be unpacked ({error})") from error
    if unpacker.unconsumed_tail:
        raise ValueError(f"it unpacks to more than {_MOST:,} bytes")
    return content


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and bytes of each element; four bytes or fewer may stand in the tag itself."""
    at = 0
    while at + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        if kind >> 16:  # the small form
            yield kind & 0xFFFF, content[at + 4 : at + 4 + min(kind >> 16, 4)]
            at += 8
            continue
        if size > len(content) - at - 8:
            raise ValueError("it is cut off, or states more bytes than it has")
        yield kind, content[at + 8 : at + 8 + size]
        at += 8 + size + (-size % 8 if kind != _COMPRESSED else 0)


def _matrix(content: bytes, order: str, depth: int) -> tuple[str, np.ndarray | None]:
    """Name and values; no values of a class that is neither cells, letters nor numbers."""
    parts = list(_elements(content, order))
    if not parts:
        return "", np.empty(0, object)  # an empty cell
    if depth > _DEEPEST or len(parts) < 3 or len(parts[0][1]) < 4 or len(parts[1][1]) % 4:
        raise ValueError("it has a matrix without a size, or cells within cells without end")
    (_, flags), (_, stated), (_, name), *values = parts
    kind = struct.unpack_from(f"{order}I", flags)[0] & 0xFF
    sides = struct.unpack(f"{order}{len(stated) // 4}i", stated)
    if kind == _CELL:
        cells = _shaped(len(values), sides)
        for place, (_, body) in zip(np.ndindex(cells.shape[::-1]), values, strict=True):  # column by column
            cells[place[::-1]] = _cell(body, order, depth)
        return name.decode("latin1"), cells
    if kind != _CHAR and kind not in _NUMBERS:
        return name.decode("latin1"), None
    if len(values) != 1:
        raise ValueError(f"it has a matrix of {len(values)} parts, where one is expected")
    if kind == _CHAR:
        return name.decode("latin1"), _words(*values[0], sides, order)
    type_, body = values[0]
    if type_ not in _TYPES or len(body) % np.dtype(_TYPES[type_]).itemsize:
        raise ValueError(f"it has numbers of type {type_}")
    numbers = np.frombuffer(body, order + _TYPES[type_])
    _shaped(len(numbers), sides)
    return name.decode("latin1"), numbers.reshape(sides, order="F")


def _cell(body: bytes, order: str, depth: int) -> np.ndarray:
    value = _matrix(body, order, depth + 1)[1]
    if value is None:
        raise ValueError("it has a cell that holds neither words nor numbers")
    return value


def _shaped(count: int, sides: Sequence[int]) -> np.ndarray:
    """Room for the values, if they are as many as the sides say."""
    if not sides or len(sides) > 8 or min(sides) < 0 or math.prod(sides) != count:
        raise ValueError(f"it states a matrix of {' × '.join(map(str, sides[:8]))}, and holds {count:,} values")
    return np.empty(sides, object)


def _words(type_: int, body: bytes, sides: Sequence[int], order: str) -> np.ndarray:
    """A word for each row of a matrix of letters."""
    if type_ not in _LETTERS:
        raise ValueError(f"it has letters of type {type_}")
    ending = {"<": "-le", ">": "-be"}[order] if _LETTERS[type_] in ("utf-16", "utf-32") else ""
    text = body.decode(_LETTERS[type_] + ending)
    if len(sides) != 2:
        raise ValueError("it has letters in more than rows and columns")
    _shaped(len(text), sides)
    words = np.empty(sides[0], object)
    words[:] = [text[row :: sides[0]] for row in range(sides[0])] if text else [""] * sides[0]
    return words
