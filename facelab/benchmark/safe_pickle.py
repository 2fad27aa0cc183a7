"""Reads the pickles that this field passes around as `.bin`, without letting them run anything.

Unpickling calls whatever the file names. Here a file can name a dozen things only, and those of numpy are stand-ins of
ours: no numpy object is ever built from the file's own description (a dtype with forged flags is a way to forge
pointers), just bytes that `numpy.frombuffer` looks at afterwards.
"""

from __future__ import annotations

import math
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np

_PLAIN = frozenset({"?", "b1", "u1", "i1", "i2", "i4", "i8"})  # images are uint8, labels bool or integer


class _DType:
    """Stands in for a numpy.dtype: remembers the type code and the byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any):
        self.code = code.decode("ascii") if isinstance(code, bytes) else str(code)
        self.order = "="
        if self.code not in _PLAIN:
            raise ValueError(f"it holds a numpy array of type {self.code!r}, where uint8, bool or int is expected")

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        self.order = order.decode("ascii") if isinstance(order, bytes) else str(order)

    def read(self, raw: Any, shape: tuple[int, ...], order: str) -> np.ndarray:
        """The values of ``raw`` bytes, a read-only array of ``shape`` in C or F order."""
        kind = np.dtype(self.order + self.code if self.order in "<>" else self.code)
        if not isinstance(raw, (bytes, bytearray)) or len(raw) != math.prod(shape) * kind.itemsize:
            raise ValueError(f"it holds a numpy array of shape {shape} whose bytes do not fit")
        return np.frombuffer(bytes(raw), kind).reshape(shape, order="F" if order == "F" else "C")


class _Array:
    """Stands in for a numpy.ndarray under construction; its contents arrive by __setstate__."""

    __slots__ = ("values",)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, raw = state
        self.values = _kind(kind).read(raw, shape, "F" if fortran else "C")


class _Call:
    """A function that a pickle may call. Slots: the pickle cannot hang an attribute on it."""

    __slots__ = ("function",)
    function: Any

    def __init__(self, function: Any):
        object.__setattr__(self, "function", function)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("it tries to change one of the reader's functions")

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def _kind(value: Any) -> _DType:
    if not isinstance(value, _DType):
        raise ValueError("it holds a numpy array without a plain type")
    return value


def _encode(text: Any, encoding: Any) -> bytes:
    """``_codecs.encode(text, "latin1")`` is how Python 3 writes bytes for Python 2."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise ValueError("it encodes something other than bytes")
    return text.encode("latin1")


def _allowed() -> dict[tuple[str, str], Any]:
    """What a file may name. The numpy paths are those of numpy 1 (core) and 2 (_core)."""
    allowed: dict[tuple[str, str], Any] = {("builtins", kind.__name__): kind for kind in (list, tuple, bool, int)}
    allowed["builtins", "bytes"] = _Call(lambda: b"")  # as Python 3 writes them for 2; of a number it would make zeros
    allowed["_codecs", "encode"] = _Call(_encode)
    allowed["numpy", "dtype"] = _Call(lambda code, *_: _DType(code))
    allowed["numpy", "ndarray"] = "numpy.ndarray"  # only ever an argument of _reconstruct
    for core in ("numpy.core", "numpy._core"):
        allowed[f"{core}.multiarray", "_reconstruct"] = _Call(lambda *_: _Array())
        allowed[f"{core}.multiarray", "scalar"] = _Call(lambda kind, raw: _kind(kind).read(raw, (), "C").item())
        allowed[f"{core}.numeric", "_frombuffer"] = _Call(
            lambda raw, kind, shape, order: _kind(kind).read(raw, shape, order)
        )
    return allowed


class _Reader(pickle._Unpickler):
    """An unpickler that knows the names of `_allowed` and no others.

    Python's own, not the one in C: that fills memory for as many objects as a memo's number says, and one changed bit
    can make it 2^31.
    """

    def find_class(self, module: str, name: str) -> Any:
        allowed = _allowed()
        module = "builtins" if module == "__builtin__" else module  # its name in Python 2
        if (module, name) not in allowed:
            raise ValueError(
                f"its pickle asks for {module}.{name}, which image pairs do not need; nothing was executed"
            )
        return allowed[module, name]


def read_pickle(path: Path) -> Any:
    """Reads lists, tuples, bytes, bools, ints and plain numpy arrays (as read-only arrays); Python 2's str as bytes.

    Args:
        path: the file.

    Raises:
        ValueError: the file is no pickle, is truncated, or names anything else (named in the message, never called).
    """
    with path.open("rb") as file:
        try:
            return _unwrap(_Reader(file, encoding="bytes").load())
        except ValueError as error:
            raise ValueError(f"{path}: {error}. Refused: get the file from a source that you trust") from error
        except (
            pickle.UnpicklingError, EOFError, TypeError, AttributeError, LookupError, OverflowError, MemoryError,
            ImportError, RecursionError, struct.error,
        ) as error:  # fmt: skip
            raise ValueError(f"{path}: not a readable pickle or truncated ({error}); get the file again") from error


def _unwrap(value: Any, levels: int = 2) -> Any:
    """Arrays in the place of their stand-ins and lists in that of tuples, two levels deep: (images, labels), image."""
    if isinstance(value, _Array):
        return value.values
    if isinstance(value, (list, tuple)) and levels:
        return [_unwrap(part, levels - 1) for part in value]
    return value
