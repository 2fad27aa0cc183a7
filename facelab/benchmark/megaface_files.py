"""MegaFace's challenge 1 as its kit and InsightFace's test pack lay it out: probes, distractors, and the noise lists.

``<path>/facescrub_images/<person>/<image>``   the probes, FaceScrub
``<path>/megaface_images/<…>/<…>/<image>``     the distractors
``<path>/facescrub_noises.txt``                a file name of a wrongly labelled probe on a line; # begins a remark
``<path>/megaface_noises.txt``                 a path of a distractor that shows a probe's person, or a number and it
``<lists>/facescrub_features_list.json``       {"path": […], "id": […]}
``<lists>/megaface_features_list.json_1000000_1``  {"path": […]}: so many distractors, of the first draw
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facelab.benchmark.crops import SUFFIXES, Crop

SHOWN = 5  # names in a message


@dataclass(frozen=True)
class MegaFaceSet:
    """Probes, then distractors.

    Attributes:
        name: first part of the metric keys.
        files: of all images, P + N.
        identity: (P,) int64, whose probe it is.
        noisy: (P,) bool, whose label is known to be wrong.
        drawn: size → (n,) int64, numbers of distractors; the largest draw is the first n of them, in order.
        removed: how many distractors the noise list has taken away.
        crop: how an image is read.
        digest: sha256 of all lists.
    """

    name: str
    files: Sequence[Path]
    identity: np.ndarray
    noisy: np.ndarray
    drawn: Mapping[int, np.ndarray]
    removed: int
    crop: Crop
    digest: str

    def __len__(self) -> int:
        return len(self.files)

    @property
    def about(self) -> str:
        """In words, for a summary."""
        probes = len(self.identity)
        return f"{probes:,} probes of {len(np.unique(self.identity)):,} people, {len(self) - probes:,} distractors"

    def load(self, index: int, out: np.ndarray | None = None) -> np.ndarray:
        """Image number → (size,size,3) uint8 RGB; thread-safe."""
        return self.crop.load(self.files[index], out)


class MegaFaceLayout:
    """Where everything is.

    Args:
        root: the folder of images and noise lists.
        lists: the folder of the kit's lists.
        sizes: numbers of distractors whose draws are read.
        draw: which draw of each size.
        clean: whether the noise lists are read.
    """

    def __init__(self, root: Path, lists: Path, sizes: Sequence[int], draw: int, clean: bool):
        self.root, self.clean = root, clean
        self.folders = {name: root / f"{name}_images" for name in ("facescrub", "megaface")}
        self.noises = {name: root / f"{name}_noises.txt" for name in ("facescrub", "megaface")}
        self.probes = lists / "facescrub_features_list.json"
        self.draws = {size: lists / f"megaface_features_list.json_{size}_{draw}" for size in sizes}

    @property
    def lists(self) -> list[Path]:
        """All lists."""
        return [self.probes, *self.draws.values(), *(self.noises.values() if self.clean else ())]

    def missing(self) -> list[str]:
        """Lists and folders that are not there."""
        return [
            *(f"{file} is missing" for file in self.lists if not file.is_file()),
            *(f"{folder} is missing" for folder in self.folders.values() if not folder.is_dir()),
        ]

    def read(self, name: str, crop: Crop) -> MegaFaceSet:
        """Reads the lists and finds the images.

        Raises:
            FileNotFoundError: lists, folders or images are missing; all of them are told.
            ValueError: a list that cannot be read.
        """
        lost = self.missing()
        if lost:
            raise FileNotFoundError("; ".join([*lost, "check benchmark.path and benchmark.lists"]))
        listed = _parsed(self.probes, ("path", "id"))
        bad = {kind: _noises(file) if self.clean else set() for kind, file in self.noises.items()}
        number: dict[str, int] = {}
        drawn, removed = {}, set()
        for size in sorted(self.draws, reverse=True):
            paths = list(dict.fromkeys(_parsed(self.draws[size], ("path",))["path"]))
            removed |= {path for path in paths if path in bad["megaface"]}
            kept = [path for path in paths if path not in bad["megaface"]]
            drawn[size] = np.array([number.setdefault(path, len(number)) for path in kept], np.int64)
        files: list[Path] = []
        for kind, paths in (("facescrub", listed["path"]), ("megaface", list(number))):
            found = [(path, _found(self.folders[kind] / path)) for path in paths]
            gone = [path for path, file in found if file is None]
            if gone:
                shown = ", ".join(gone[:SHOWN]) + (", …" if len(gone) > SHOWN else "")
                lost.append(f"{self.folders[kind]}: {len(gone):,} of {len(paths):,} images are missing: {shown}")
            files += [file for _, file in found if file is not None]
        if lost:
            raise FileNotFoundError("; ".join(lost))
        return MegaFaceSet(
            name=name,
            files=files,
            identity=np.unique(listed["id"], return_inverse=True)[1].astype(np.int64),
            noisy=np.array([Path(path).name in bad["facescrub"] for path in listed["path"]], dtype=bool),
            drawn=drawn,
            removed=len(removed),
            crop=crop,
            digest=hashlib.sha256(
                b"".join(hashlib.sha256(file.read_bytes()).digest() for file in self.lists)
            ).hexdigest(),
        )


def _parsed(file: Path, keys: Sequence[str]) -> dict[str, list[str]]:
    """Lists of words of one length under the keys of a JSON file."""
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        found = {key: [str(word) for word in content[key]] for key in keys}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: holds no {' and '.join(keys)} ({error}); get the file again") from error
    if len({len(words) for words in found.values()}) != 1 or not found[keys[0]]:
        raise ValueError(f"{file}: {' and '.join(keys)} are empty, or not of one length; get the file again")
    return found


def _noises(file: Path) -> set[str]:
    """What is named, a line each: the last word behind tabs."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return {line.strip().split("\t")[-1].strip() for line in lines if line.strip() and not line.startswith("#")}


def _found(file: Path) -> Path | None:
    """The image, perhaps in another format than the list has it: aligned copies often are."""
    if file.is_file():
        return file
    return next((other for suffix in SUFFIXES if (other := file.with_suffix(suffix)).is_file()), None)
