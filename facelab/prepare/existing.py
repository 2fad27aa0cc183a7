"""Sets that exist: found, opened with the size that they have, and told from what an interrupted pack leaves behind."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from facelab.atomic import UNFINISHED, unfinished
from facelab.data.folder import FolderFaces
from facelab.data.open import open_faces
from facelab.data.recordio import RecordIOFaces
from facelab.pixels import decode

__all__ = ["Faces", "beside", "check_found", "open_set", "people", "tried"]

Faces = FolderFaces | RecordIOFaces
_PACK = ("train.rec", "train.idx", "property")
_TRIED = 100  # images of a folder that are looked at for their size


def open_set(source: Any, size: int | None) -> Faces:
    """A set, a pack or a folder of identities.

    Args:
        source: what `source=` says.
        size: pixels, H = W; null: what a pack's property says, or the first readable image of a folder has.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: what is there is no set, or a pack that was interrupted; with what to do.
    """
    root = check_found(source)
    declared = size or _declared(root / "property")
    try:
        faces = open_faces(root, declared or 1)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(str(error).replace("data.root=", "source=")) from error
    if declared is None:
        faces.size = _first_size(faces)
    return faces


def check_found(source: Any) -> Path:
    """The folder of a set.

    Raises:
        FileNotFoundError: it is not there; if its beginning is, how to go on.
        ValueError: no path was given, or a pack lacks a file.
    """
    if not isinstance(source, str) or not source:
        raise ValueError(f"source is {source!r}: give the folder of a set")
    root = Path(source).expanduser()
    if root.suffix == ".rec" and root.is_file():
        root = root.parent
    begun = unfinished(root)
    if not root.exists() and begun.is_dir():
        raise FileNotFoundError(
            f"source={root}: is not finished: its making was interrupted, and what is done lies in {begun}; the "
            "command that began it, started again, finishes it"
        )
    if not root.is_dir():
        raise FileNotFoundError(f"source={root}: no such folder; give the folder of a set")
    there = [name for name in _PACK if (root / name).is_file()]
    if there and len(there) < len(_PACK):
        missing = next(name for name in _PACK if name not in there)
        raise FileNotFoundError(f"source={root}: has {' and '.join(there)}, but no {missing}: {_advice(root, missing)}")
    return root


def _advice(root: Path, missing: str) -> str:
    began = "the pack was interrupted, or copied in part; "
    if missing == "property":
        return f"{began}if the others are whole, write 'identities,height,width', such as 10572,112,112, into {missing}"
    halves = [file.name for file in root.iterdir() if file.name.startswith((UNFINISHED, "."))]
    seen = f" (there is {halves[0]})" if halves else ""
    return f"{began}copy that file again, or make the set anew{seen}"


def beside(root: Path, out: str | None, what: str) -> Path:
    """The folder for what is found out about a set: `out`, or one with the set's name beside it; made if need be."""
    root = root.absolute()
    folder = Path(out).expanduser() if out else root.with_name(f"{root.name}.{what}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def people(faces: Faces) -> list[str]:
    """Names of a set's identities, by label: folders, or of a pack what its identities.csv says; else the labels."""
    names: dict[str, str] = {}
    if isinstance(faces, RecordIOFaces):
        names = named_in(faces.root / "identities.csv")
    return [names.get(name, name) for name in faces.identity_names]


def named_in(file: Path) -> dict[str, str]:
    """Label (as text) → identity, of an identities.csv; empty where there is none."""
    if not file.is_file():
        return {}
    with open(file, newline="", encoding="utf-8", errors="surrogateescape") as lines:
        rows = [(row.get("label"), row.get("identity")) for row in csv.DictReader(lines)]
    return {label: identity for label, identity in rows if label and identity}


def tried(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives; None where an image cannot be read."""
    try:
        return function(*arguments)
    except (ValueError, OSError):
        return None


def _declared(described: Path) -> int | None:
    """Height that a property gives; None without one, or where it says nothing."""
    if not described.is_file():
        return None
    fields = described.read_text(encoding="utf-8", errors="replace").split(",")
    number = fields[1].strip() if len(fields) == 3 else ""
    return int(number) if number.isascii() and number.isdecimal() and 0 < len(number) < 6 else None


def _first_size(faces: Faces) -> int:
    for index in range(min(len(faces), _TRIED)):
        image: np.ndarray | None = tried(lambda number: decode(faces.encoded(number)), index)
        if image is not None:
            return max(image.shape[:2])
    raise ValueError(f"source={faces.root}: none of its first {min(len(faces), _TRIED)} images can be read")
