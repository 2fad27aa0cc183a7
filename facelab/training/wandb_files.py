"""The folders that W&B leaves in a run directory, one for each start, and how far each of them has come."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

_HEADER, _BLOCK = 7, 32768  # bytes: of the file and of each record in it; a block of LevelDB's log format
_WHOLE, _LAST = 1, 4  # kinds of records: whole, and the last part of one


def folders_of(run: Path, identity: str | None) -> list[Path]:
    """What earlier starts of a job have left, offline and online, the oldest first."""
    found = (run / "wandb").glob(f"*run-*-{identity}")
    return sorted((path for path in found if not path.is_symlink()), key=lambda path: path.name.split("run-", 1)[1])


def remove_unsent(folders: Iterable[Path]) -> None:
    """Takes away offline folders that were never synced: their rows are sent in another way."""
    for folder in folders:
        if folder.name.startswith("offline-") and not any(folder.glob("*.synced")):
            shutil.rmtree(folder, ignore_errors=True)


def last_step(folder: Path) -> int:
    """The last step of whose history a folder holds a row; −1 where it has none.

    What a kill has left of a last record is no row.
    """
    from wandb.proto import wandb_internal_pb2 as protocol

    last = -1
    for file in folder.glob("*.wandb"):
        for content in _records(file.read_bytes()):
            record = protocol.Record()  # type: ignore[attr-defined]
            record.ParseFromString(content)
            if record.HasField("history"):
                last = max(last, record.history.step.num)
    return last


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: blocks of LevelDB's log format behind a header."""
    at, parts = _HEADER, b""
    while at + _HEADER <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:  # too little of a block for a record's header is left empty
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if at + _HEADER + length > len(data):
            return
        parts += data[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind in (_WHOLE, _LAST):
            yield parts
            parts = b""
