"""`task=pairs`: a `.bin` of image pairs, as InsightFace's verification sets are, out of a pairs.txt and its images."""

import pickle
from pathlib import Path

import numpy as np

from facelab.atomic import atomic
from facelab.benchmark.pair_files import find_images, read_bin, read_pairs_file
from facelab.pixels import decode
from facelab.tracking import Tracker

__all__ = ["write_bin"]

_PROTOCOL = 4  # which Python reads since 3.4
_NAMED = 50  # files that a message names at most


def write_bin(source: str, pairs: str, out: str, folds: int, progress: bool) -> None:
    """Writes a pickle of (2·N encoded images, pairs interleaved; N bools), folds one behind the other.

    An image that occurs in several pairs is written as often: so a damaged byte can spoil no other pair.

    Args:
        source: folder of people, <name>/<name>_0001.jpg (or .png, .jpeg).
        pairs: the list, see `facelab.benchmark.pair_files.read_folder`.
        out: the file.
        folds: that the list has, or that a list without folds is cut into.
        progress: whether to show how far it is.

    Raises:
        FileNotFoundError: the list, the folder or images are not there; the images are named together.
        FileExistsError: there is such a file.
        ValueError: the list cannot be read or cut into equal folds, or images are none, or not square.
    """
    root, listed, file = (Path(path).expanduser() for path in (source, pairs, out))
    if file.suffix != ".bin":
        raise ValueError(f"out={out}: give a name that ends in .bin, by which such files are known")
    if file.exists():
        raise FileExistsError(f"out={out}: is there already: remove it, or give another out=FILE.bin")
    if not listed.is_file():
        raise FileNotFoundError(f"pairs={pairs}: no such file; give the set's pairs.txt")
    if not root.is_dir():
        raise FileNotFoundError(f"source={source}: no such folder; give the folder of the aligned images")
    if folds < 2:
        raise ValueError(f"folds is {folds}: a threshold is chosen on the other folds, at least 2 are needed")
    rows, same, fold = read_pairs_file(listed, folds)
    for kind, of_kind in (("genuine", fold[same]), ("impostor", fold[~same])):
        if len(set(np.bincount(of_kind, minlength=folds).tolist())) > 1:
            raise ValueError(
                f"{listed}: its {len(of_kind):,} {kind} pairs cannot be cut into {folds} equal folds: give folds=… "
                "that divides them"
            )
    order = np.argsort(fold, kind="stable").tolist()  # of a list without folds: the parts of both kinds together
    faces = list(dict.fromkeys(face for row in rows for face in row))
    files = dict(zip(faces, find_images(root, faces, listed, _NAMED), strict=True))
    with Tracker("reading images", progress) as tell:
        content: dict[Path, bytes] = {}
        for number, path in enumerate(files.values(), start=1):
            content[path] = path.read_bytes()
            tell(number, len(files))
    _check_images(content)
    images = [bytes(bytearray(content[files[face]])) for row in order for face in rows[row]]
    with atomic(file) as temporary:
        with open(temporary, "wb") as opened:
            pickle.dump((images, [bool(same[row]) for row in order]), opened, _PROTOCOL)
        again = read_bin(temporary, file.stem, folds, 112)
        assert len(again.pairs) == len(rows)
    print(
        f"{file}: {len(rows):,} pairs of {len(files):,} images in {folds} folds; measure with benchmark.path={file}"
        + (f" benchmark.folds={folds}" if folds != 10 else ""),
        flush=True,
    )


def _check_images(content: dict[Path, bytes]) -> None:
    wrong = []
    for path, encoded in content.items():
        image = decode(np.frombuffer(encoded, np.uint8))
        if image is None:
            wrong.append(f"{path} (is no readable image)")
        elif image.shape[0] != image.shape[1]:
            wrong.append(f"{path} (is {image.shape[0]}×{image.shape[1]} pixels, not square)")
    if wrong:
        shown = ", ".join(wrong[:_NAMED]) + (", …" if len(wrong) > _NAMED else "")
        raise ValueError(f"{len(wrong):,} of {len(content):,} images are no aligned faces: {shown}; align them first")
