"""Reading checkpoints: nothing is taken from a file before its checksum has been compared.

safetensors notices a file that was cut short, but not a bit that has flipped in its tensors. So the metadata have a
second entry, `crc32`: for each tensor the CRC-32 of its type, shape and bytes, and one for the JSON text. Each tensor
is checked when it is first read, by blocks; who reads the backbone alone checks the backbone alone. Of a shard of which
only some rows are read, whole tensors are. Files that are older than the checksums are read as they are.

CRC-32 finds every single flipped bit and every damage of up to 32 bits in a row, and misses one of 4·10⁹ others. It is
no protection against somebody who means harm, and need not be: what a checkpoint says is never run.
"""

import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

FORMAT = 1
ENTRY = "facelab"  # of the metadata: the JSON text
CHECKSUMS = "crc32"  # the checksums, also JSON; and in the text, that they are there
_SHARD = re.compile(r"[^/\0]+\.shard-[\w.-]+")  # beside the main file, never elsewhere
_TEXT = ""  # stands for the text among the names of tensors
_BLOCK = 1 << 26  # bytes that are looked at in one piece
_THREADS = min(4, os.cpu_count() or 1)  # zlib works without Python's lock


class Damaged(ValueError):
    """A file that is not what was written.

    Attributes:
        why: in a few words, for messages that say it in their own way.
    """

    def __init__(self, path: Path, why: str, words: str | None = None):
        super().__init__(words or f"checkpoint {path} cannot be read ({why}): delete it, or take the other one")
        self.why = f"{path.name}: {why}"


class Start(NamedTuple):
    """Where a run goes on.

    Attributes:
        path: the main file, last.ckpt or the one before it.
        meta: its JSON part.
        told: why it is not last.ckpt, in one line; empty where it is.
    """

    path: Path
    meta: dict[str, Any]
    told: str


def described(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a file: the JSON text, and the checksums of it and of all tensors, which lie on the CPU."""
    text = json.dumps({**meta, CHECKSUMS: True})
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = list(pool.map(lambda tensor: _checksum(tensor.shape, [tensor]), tensors.values()))
    found = {_TEXT: zlib.crc32(text.encode()), **dict(zip(tensors, sums, strict=True))}
    return {ENTRY: text, CHECKSUMS: json.dumps(found)}


def _checksum(shape: Any, blocks: Any) -> int:
    total = None
    for block in blocks:
        if total is None:
            total = zlib.crc32(f"{block.dtype} {list(shape)}".encode())
        total = zlib.crc32(block.reshape(-1).view(torch.uint8).numpy(), total)
    assert total is not None
    return total


class File:
    """One file of a checkpoint.

    Args:
        path: of the main file or a shard.

    Raises:
        Damaged: it cannot be opened, its text is not what its checksum says, or facelab did not write it.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = safe_open(path, "pt")
        except (SafetensorError, OSError) as error:
            raise Damaged(path, f"{error!s:.200}") from None  # which may say the whole header
        metadata = self._file.metadata() or {}
        text = metadata.get(ENTRY)
        if text is None:
            why = f"its metadata has no {ENTRY!r} entry"
            raise Damaged(path, why, f"checkpoint {path} was not written by facelab: {why}")
        try:
            self.meta: dict[str, Any] = json.loads(text)
            has = CHECKSUMS in metadata or CHECKSUMS in self.meta  # both: a name may be damaged as well
            self._sums = json.loads(metadata[CHECKSUMS]) if has else None
            whole = self._sums is None or self._sums.pop(_TEXT) == zlib.crc32(text.encode())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            whole = False
        if not whole:
            raise Damaged(path, "its text is not what its checksum says")
        if not isinstance(self.meta, dict) or type(self.meta.get("start", 0)) is not int:
            raise Damaged(path, "what it says of itself is not what checkpoints say")
        self.keys: list[str] = list(self._file.keys())
        if self._sums is not None and self._sums.keys() != set(self.keys):
            raise Damaged(path, "its tensors are not those of its checksums")
        self._checked: set[str] = set()

    def shape(self, key: str) -> list[int]:
        """Of a tensor."""
        return self._file.get_slice(key).get_shape()

    def read(self, key: str, rows: slice | None = None) -> Tensor:
        """A tensor or some of its rows, once all of it has been checked.

        Raises:
            Damaged: it is not what its checksum says.
        """
        self.check(key)
        return self._file.get_tensor(key) if rows is None else self._file.get_slice(key)[rows]

    def check(self, key: str) -> None:
        """Compares a tensor with its checksum, where the file has checksums.

        Raises:
            Damaged: it is not what that says.
        """
        if self._sums is not None and key not in self._checked:
            if _checksum(self.shape(key), self._blocks(key)) != self._sums[key]:
                raise Damaged(self.path, f"{key} is not what its checksum says")
            self._checked.add(key)

    def _blocks(self, key: str) -> Iterator[Tensor]:
        view = self._file.get_slice(key)
        shape = view.get_shape()
        if not shape or 0 in shape:
            yield self._file.get_tensor(key)
            return
        rows = max(1, _BLOCK // (view[0:1].numel() * view[0:1].element_size()))
        for first in range(0, shape[0], rows):
            yield view[first : first + rows].contiguous()


def read_meta(path: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where the file is damaged, or no checkpoint of facelab.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} is not there: give the path of a last.ckpt or best.ckpt")
    meta = File(path).meta
    if "format" not in meta:
        raise ValueError(f"checkpoint {path} is one shard of several: give the main file, the name before '.shard-'")
    if meta["format"] != FORMAT:
        raise ValueError(f"checkpoint {path} has format {meta['format']}, this facelab reads {FORMAT}: use its version")
    shards = meta.get("shards")
    names = shards if isinstance(shards, list) else [None]
    if not all(isinstance(name, str) and _SHARD.fullmatch(name) for name in names):
        raise ValueError(f"checkpoint {path}: its shards are {shards!r:.80}, no names of files; get it again")
    return meta


def files_of(path: Path) -> list[Path]:
    """The main file of a checkpoint and its shards.

    Raises:
        FileNotFoundError, ValueError: as `read_meta`.
    """
    return [path, *(path.with_name(name) for name in read_meta(path)["shards"])]


class Tensors:
    """Reads tensors out of the main file and the shards, by rows where a name is sharded; all checked.

    Args:
        paths: the main file, then its shards; or some of them.

    Raises:
        FileNotFoundError: one of them is missing.
        Damaged: one of them is; or a shard is of another saving than the main file.
    """

    def __init__(self, paths: list[Path]):
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"checkpoint {paths[0]} needs its shard {path.name}, which is missing")
        self.files = [File(path) for path in paths]
        saving = self.files[0].meta.get("saving")
        self.where: dict[str, list[tuple[int, File]]] = {}
        for file in self.files:
            if file.meta.get("saving") != saving and "format" not in file.meta:
                raise Damaged(file.path, f"it is of another saving than {paths[0].name}")
            for key in file.keys:
                self.where.setdefault(key, []).append((file.meta.get("start", 0), file))

    def keys(self) -> list[str]:
        """Names of all tensors."""
        return list(self.where)

    def rows(self, key: str) -> int:
        """Number of rows over all shards."""
        return sum(file.shape(key)[0] for _, file in self.where[key])

    def shape(self, key: str) -> list[int]:
        """Of the tensor, or of its first shard."""
        return self.where[key][0][1].shape(key)

    def read(self, key: str, rows: tuple[int, int] | None) -> Tensor:
        """The tensor, or its rows start…stop of all shards' rows; scalars are not cut.

        Raises:
            Damaged: it is not what its checksum says.
        """
        parts = sorted(self.where[key], key=lambda part: part[0])
        if rows is None or not parts[0][1].shape(key):
            return parts[0][1].read(key)
        start, stop = rows
        pieces = []
        for first, file in parts:
            low, high = max(start, first), min(stop, first + file.shape(key)[0])
            if low < high:
                pieces.append(file.read(key, slice(low - first, high - first)))
        return torch.cat(pieces)


def verify(path: Path) -> dict[str, Any]:
    """Checks every tensor of a checkpoint and of its shards; gives the JSON part.

    It reads all of it, at some 2 GB/s a core where the disk gives as much.

    Raises:
        FileNotFoundError: the checkpoint or a shard is missing.
        Damaged: one of the files is.
        ValueError: it is of another format, or a shard itself.
    """
    meta = read_meta(path)
    stored = Tensors(files_of(path))
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda one: one[0].check(one[1]), [(file, key) for file in stored.files for key in file.keys]))
    return meta


def choose(last: Path, previous: Path) -> Start | None:
    """The checkpoint that a run goes on from: the last one, or where that is damaged or gone the one before it.

    Every rank reads all files, and so finds the same; None where there is neither.

    Raises:
        ValueError: there are some, and all are damaged.
    """
    if not last.is_file() and not previous.is_file():
        return None
    faults = []
    for path in (last, previous):
        try:
            meta = verify(path)
        except Damaged as error:
            faults.append(error.why)
        except FileNotFoundError:
            faults.append(f"{_missing(path)} is missing")
        else:
            on = f"going on from {path.name}, of step {meta['step']:,}"
            return Start(path, meta, f"checkpoint {last} is damaged ({faults[0]}); {on}" if faults else "")
    raise ValueError(
        f"no checkpoint in {last.parent} is whole ({'; '.join(faults)}): put back a copy of one, or delete that "
        "folder, and the run begins anew"
    )


def _missing(path: Path) -> str:
    """Which file: the main one, or a shard that it names."""
    return next((file.name for file in (files_of(path) if path.is_file() else ()) if not file.is_file()), path.name)
