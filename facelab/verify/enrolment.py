"""From a folder of people to a gallery; what could not be used is named, never left out in silence."""

import csv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from facelab.atomic import atomic, refuse_existing
from facelab.kinds import check_kind
from facelab.tracking import Tracker
from facelab.verify.gallery import Gallery, calibrate, make
from facelab.verify.recogniser import Recogniser
from facelab.verify.verification import open_recogniser

__all__ = ["PHOTOGRAPHS", "Enrolled", "embed_files", "enrol", "people_of", "stamp_of"]

PHOTOGRAPHS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class Enrolled(NamedTuple):
    """What became of some files.

    Attributes:
        embeddings: (M,D) float32 of those with a face.
        used: (M,) int64, which they are.
        failures: file and reason of the others.
    """

    embeddings: np.ndarray
    used: np.ndarray
    failures: list[tuple[str, str]]


def enrol(config: dict[str, Any]) -> Gallery:
    """Makes a gallery of a folder: a folder of photographs for each person, or one photograph each, by its name.

    Args:
        config: conf/enrol.yaml, plain values.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: something is wrong, or of nobody there is a face; nothing was
            written.
    """
    check_kind("people", config["people"], list[str])
    for key, kind in (("out", str), ("readers", int), ("index", str), ("strangers", str | None), ("progress", bool)):
        check_kind(key, config[key], kind)
    if len(config["people"]) != 1:
        raise ValueError(
            f"one folder of people is enrolled, {len(config['people'])} were given: python -m facelab.enrol people/ …"
        )
    if config["readers"] < 1:
        raise ValueError(f"readers is {config['readers']}: give a number above 0")
    out = Path(config["out"]).expanduser()
    refuse_existing(out)
    names, files, person = people_of(config["people"][0], "people")
    others = None if config["strangers"] is None else people_of(config["strangers"], "strangers")[1]
    recogniser = open_recogniser(config)
    readers, progress = config["readers"], config["progress"]
    found = embed_files(recogniser, files, readers, progress, "enrolling")
    if not len(found.used):
        raise ValueError(f"people={config['people'][0]}: of nobody there is a face; the first: {found.failures[0][1]}")
    kept, owner = np.unique(person[found.used], return_inverse=True)
    gallery = make([names[i] for i in kept], found.embeddings, owner, stamp_of(recogniser), config["index"])
    strange, failures = None, found.failures
    if others is not None:
        searched = embed_files(recogniser, others, readers, progress, "strangers")
        strange, failures = searched.embeddings, failures + searched.failures
    scores, how = calibrate(gallery, found.embeddings, owner, strange)
    gallery = replace(gallery, strangers=scores, stamp={**gallery.stamp, "searches": how})
    gallery.save(out)
    missing = sorted(set(range(len(names))) - set(kept.tolist()))
    _tell(out, gallery, failures, [names[i] for i in missing])
    return gallery


def people_of(folder: str, key: str) -> tuple[list[str], list[Path], np.ndarray]:
    """Names of N people, all photographs (M), and (M,) whose each is.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no photographs.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{key}={folder}: no such folder; give one with a folder for each person")
    of: dict[str, list[Path]] = {}
    for file in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
        if file.suffix.lower() in PHOTOGRAPHS and file.is_file() and not hidden:
            inside = file.relative_to(root).parts
            of.setdefault(inside[0] if len(inside) > 1 else file.stem, []).append(file)
    if not of:
        raise ValueError(f"{key}={folder}: has no photographs ({', '.join(PHOTOGRAPHS)})")
    names = sorted(of)
    files = [file for name in names for file in of[name]]
    return names, files, np.repeat(np.arange(len(names)), [len(of[name]) for name in names])


def embed_files(recogniser: Recogniser, files: Sequence[Path], readers: int, progress: bool, what: str) -> Enrolled:
    """Embeds the files of which there is a face, batch by batch.

    Args:
        recogniser: the model.
        files: photographs.
        readers: threads that read and detect.
        progress: whether to show how far it is.
        what: is being done, for the bar.

    Raises:
        ValueError, FileNotFoundError: the detector's file cannot be had or used.
    """
    if recogniser.finder.detect == "yunet":
        recogniser.finder.prepare()
    rows, used, failures = [], [], []

    def aligned(file: Path) -> np.ndarray | str:
        try:
            return recogniser.finder(file).pixels
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(readers) as pool, Tracker(what, progress) as tell:
        for start in range(0, len(files), recogniser.batch_size):
            batch = files[start : start + recogniser.batch_size]
            found = list(pool.map(aligned, batch))
            faces = [one for one in found if not isinstance(one, str)]
            if faces:
                rows.append(recogniser.embed_faces(np.stack(faces)))
            used += [start + i for i, one in enumerate(found) if not isinstance(one, str)]
            failures += [(str(file), one) for file, one in zip(batch, found, strict=True) if isinstance(one, str)]
            tell(start + len(batch), len(files))
    embeddings = np.concatenate(rows) if rows else np.empty((0, 0), np.float32)
    return Enrolled(embeddings, np.array(used, np.int64), failures)


def stamp_of(recogniser: Recogniser) -> dict[str, Any]:
    """What embeddings must have in common to be compared."""
    digest = next(iter(recogniser.known))
    return {
        "model": str(recogniser.path.absolute()),
        "sha256": digest,
        "checkpoint_sha256": recogniser.metadata.get("checkpoint_sha256", digest),
        "size": recogniser.size,
        "mirror": recogniser.mirror,
    }


def _tell(out: Path, gallery: Gallery, failures: list[tuple[str, str]], missing: list[str]) -> None:
    how = f"an index of {len(gallery.index):,} bytes" if len(gallery.index) else "exact search"
    print(
        f"{len(gallery.names):,} people, {int(gallery.images.sum()):,} photographs, "
        f"D={gallery.templates.shape[1]}, {how}\n"
        f"thresholds from {gallery.stamp['searches']}\nwritten to {out}"
    )
    if failures:
        listed = out.with_name(f"{out.name}.failures.csv")
        with atomic(listed) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([("photograph", "reason"), *failures])
        print(f"{len(failures):,} photographs were not used, listed in {listed}; the first: {failures[0][1]}")
    if missing:
        more = f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
        print(f"NOT ENROLLED, since no photograph of theirs can be used: {', '.join(missing[:5])}{more}")
