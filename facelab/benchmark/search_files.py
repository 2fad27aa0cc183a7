"""Who is looked for, and among whom: TinyFace as its authors give it, or any folder of people."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facelab.benchmark.crops import images_in
from facelab.benchmark.mat_files import read_mat_file

SHOWN = 5  # names in a message
NOBODY = -100  # identity of distractors, as TinyFace numbers them


@dataclass(frozen=True)
class Lists:
    """Images, the probes first, then the gallery.

    Attributes:
        files: of the images, M.
        identity: (M,) int64; `NOBODY` of distractors.
        probes: how many of them are probes, P.
        source: where they come from, for the stamp.
        digest: sha256 of names, identities and numbers.
    """

    files: Sequence[Path]
    identity: np.ndarray
    probes: int
    source: str

    @property
    def digest(self) -> str:
        """What the stamp knows them by."""
        names = "\n".join(f"{file.parent.name}/{file.name}" for file in self.files)
        text = f"{self.probes}\n{names}\n".encode("utf-8", "surrogateescape")
        return hashlib.sha256(text + self.identity.tobytes()).hexdigest()

    @property
    def distractors(self) -> int:
        """How many of the gallery are nobody's mate."""
        return int(np.count_nonzero(~np.isin(self.identity[self.probes :], self.identity[: self.probes])))


@dataclass(frozen=True)
class SearchSet:
    """Images that are looked for and looked among, there once for each resolution.

    Attributes:
        name: first part of the metric keys.
        lists: the M images; image i + k·M is image i at ``sizes[k]``.
        sizes: (K,) pixels.
        load: image number, of K·M → (size,size,3) uint8 RGB; thread-safe.
    """

    name: str
    lists: Lists
    sizes: tuple[int, ...]
    load: Callable[..., np.ndarray]

    def __len__(self) -> int:
        return len(self.sizes) * len(self.lists.files)

    @property
    def about(self) -> str:
        """In words, for a summary."""
        lists = self.lists
        at = f", at {', '.join(map(str, self.sizes))} pixels" if len(self.sizes) > 1 else ""
        among = len(lists.files) - lists.probes
        return f"{lists.probes:,} probes among {among:,}, {lists.distractors:,} of them distractors{at}"


def read_people(root: Path, distractors: Path | None) -> Lists:
    """A folder ``<root>/<person>/<image>``: everybody's first image is enrolled, the others are looked for.

    So whoever has one image alone is a distractor; further ones may be the images of another folder.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: nobody has two images.
    """
    lost = [f"{folder} is missing" for folder in (root, distractors) if folder is not None and not folder.is_dir()]
    if lost:
        raise FileNotFoundError("; ".join([*lost, "check benchmark.path and benchmark.distractors"]))
    people = [images_in(folder) for folder in sorted(root.iterdir()) if folder.is_dir()]
    people = [files for files in people if files]
    probes = [(file, number) for number, files in enumerate(people) for file in files[1:]]
    if not probes:
        raise ValueError(f"{root}: has no folder of a person with two images; benchmark.path holds one for each person")
    enrolled = [(files[0], number) for number, files in enumerate(people)]
    further = [] if distractors is None else sorted(_below(distractors))
    rows = [*probes, *enrolled, *((file, NOBODY) for file in further)]
    return Lists([row[0] for row in rows], np.array([row[1] for row in rows], np.int64), len(probes), root.name)


def _below(folder: Path) -> list[Path]:
    """The images of a folder and of those in it."""
    inner = [file for part in folder.iterdir() if part.is_dir() for file in images_in(part)]
    return images_in(folder) + inner


class TinyFaceLayout:
    """Where TinyFace's test set lies.

    ``probe_img_ID_pairs.mat`` and ``gallery_match_img_ID_pairs.mat`` name images (``probe_set``, ``gallery_set``) and
    whose they are (``probe_ids``, ``gallery_ids``; without these it is the number before the first ``_`` of a name);
    the folders ``Probe``, ``Gallery_Match`` and ``Gallery_Distractor`` hold them. A name's ending does not matter:
    aligned copies are often of another format.

    Args:
        root: the folder of the three folders.
        lists: the folder of the two lists; null: root.
    """

    def __init__(self, root: Path, lists: Path | None):
        self.root, at = root, lists or root
        self.probes, self.gallery = at / "probe_img_ID_pairs.mat", at / "gallery_match_img_ID_pairs.mat"
        self.folders = {name: root / name for name in ("Probe", "Gallery_Match", "Gallery_Distractor")}

    def missing(self) -> list[str]:
        """Lists and folders that are not there."""
        return [
            *(f"{file} is missing" for file in (self.probes, self.gallery) if not file.is_file()),
            *(f"{folder} is missing" for folder in self.folders.values() if not folder.is_dir()),
        ]

    def read(self) -> Lists:
        """All lists, and the distractors.

        Raises:
            FileNotFoundError: lists, folders or images are missing; all of them are told.
            ValueError: a list that cannot be read.
        """
        lost = self.missing()
        if lost:
            raise FileNotFoundError("; ".join([*lost, "benchmark.path is TinyFace's Testing_Set"]))
        files: list[Path] = []
        identity: list[int] = []
        count = 0
        for file, key, folder in ((self.probes, "probe", "Probe"), (self.gallery, "gallery", "Gallery_Match")):
            names, whose = read_mat(file, key)
            there = {image.stem: image for image in images_in(self.folders[folder])}
            gone = [name for name in names if Path(name).stem not in there]
            if gone:
                shown = ", ".join(gone[:SHOWN]) + (", …" if len(gone) > SHOWN else "")
                lost.append(f"{self.folders[folder]}: {len(gone):,} of {len(names):,} images are missing: {shown}")
                continue
            files += [there[Path(name).stem] for name in names]
            identity += whose
            count = count or len(names)
        if lost:
            raise FileNotFoundError("; ".join([*lost, f"these are what {self.probes.parent} names"]))
        distractors = images_in(self.folders["Gallery_Distractor"])
        everybody = np.array([*identity, *[NOBODY] * len(distractors)], np.int64)
        return Lists([*files, *distractors], everybody, count, "TinyFace")

    def counts(self) -> dict[str, int]:
        """How many probes, mates and distractors there are, as far as they are."""
        found = {}
        for key, file, name in (("probes", self.probes, "probe"), ("mates", self.gallery, "gallery")):
            if file.is_file():
                found[key] = len(read_mat(file, name)[0])
        folder = self.folders["Gallery_Distractor"]
        return found | ({"distractors": len(images_in(folder))} if folder.is_dir() else {})


def read_mat(file: Path, key: str) -> tuple[list[str], list[int]]:
    """Names of images, and their identities, of a .mat file.

    Args:
        file: the file.
        key: ``probe`` of ``probe_set`` and ``probe_ids``.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        content = read_mat_file(file)
        names = [_word(cell) for cell in content[f"{key}_set"].ravel()]
        listed: Any = content.get(f"{key}_ids")
        identity = (
            [int(name.split("_", 1)[0]) for name in names] if listed is None else listed.ravel().astype(int).tolist()
        )
    except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{file}: holds no {key}_set of names with identities ({_reason(error)}); get the file again"
        ) from error
    if len(names) != len(identity) or not names:
        raise ValueError(f"{file}: {len(names):,} names and {len(identity):,} identities; get the file again")
    return names, identity


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _word(cell: Any) -> str:
    """The word in a cell, which lies in arrays of one element each."""
    while isinstance(cell, np.ndarray):
        cell = cell.ravel()[0]
    return str(cell).strip()
