"""A named data set lies where its user has put it, in one of two layouts; what lies there tells which."""

from os import PathLike
from pathlib import Path

from facelab.data.folder import FolderFaces
from facelab.data.recordio import RecordIOFaces

__all__ = ["open_faces"]

_RECORDS = ("train.rec", "train.idx", "property")
_LAYOUTS = (
    "InsightFace's pack (train.rec, train.idx and property) or one folder of aligned images for each identity "
    "(<root>/<identity>/<image>.jpg)"
)


def open_faces(root: str | PathLike, size: int) -> FolderFaces | RecordIOFaces:
    """A training set in InsightFace's format, or as one folder for each identity.

    Args:
        root: the folder that holds it.
        size: height and width of the images in pixels.

    Raises:
        FileNotFoundError: when the folder, or a file of the pack, is missing.
        ValueError: when neither layout is there (what is there is named), or the set cannot be read.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"data.root={root}: no such folder; expected {_LAYOUTS}")
    if any((folder / name).is_file() for name in _RECORDS):
        return RecordIOFaces(folder, size)
    # Archives are often unpacked into a folder of their own name.
    packs = sorted(folder.glob("*/train.rec"))
    if packs:
        raise ValueError(f"data.root={root}: the pack lies one folder further: give data.root={packs[0].parent}")
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir() if entry.name[0] != ".")
    if not any(entry.endswith("/") for entry in entries):
        there = f"there are {len(entries):,} entries: {', '.join(entries[:5])} …" if entries else "it is empty"
        raise ValueError(f"data.root={root}: expected {_LAYOUTS}; {there}")
    return FolderFaces(folder, size)
