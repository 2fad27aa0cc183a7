"""From photographs to a training set: detect, align, pack; resumable at any moment, and complete or not there."""

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from facelab.atomic import atomic, held, publish_folder, refuse_existing, unfinished
from facelab.prepare.detect import CHOICES
from facelab.prepare.faces import WAYS
from facelab.prepare.pack import LAYOUTS, Record
from facelab.prepare.parts import Outcome, Part, work
from facelab.prepare.sheets import faces_sheet, failures_sheet, save
from facelab.prepare.sources import SHEETS, Failure, Photographs, Records, open_source
from facelab.tracking import Tracker
from facelab.training.preemption import Interrupted, StopRequest

__all__ = ["prepare"]

_FORMAT = 1  # of the parts, and of what is made of them
# File names may hold bytes that are no UTF-8: they are written as they are.
_TEXT: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}


def prepare(
    source: str,
    out: str,
    layout: str,
    size: int,
    quality: int,
    detect: str,
    detector: Mapping[str, Any],
    face: str,
    min_size: int,
    links: str,
    threads: int,
    part: int,
    shown: int,
    seed: int,
    progress: bool,
) -> None:
    """Makes a set of aligned faces; each argument is explained in conf/task/photos.yaml.

    The set's folder also has faces.csv (a row for each face: where it comes from, box, points, score), failures.csv (a
    row for each photograph without one, and why), sheet.png and failures.png, and report.json.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: an argument is wrong, or no face is found.
        Interrupted: a signal asked to stop; the same call goes on.
    """
    _check(layout, detect, face, size=size, quality=quality, threads=threads, part=part, shown=shown)
    photographs = open_source(source, links)
    if len(photographs.identities) < 2:
        raise ValueError(f"source={source}: has one identity only, {photographs.identities[0]!r}; a set needs 2")
    with _quiet_opencv():
        make, told = WAYS[detect](detector, face, min_size=min_size, size=size, quality=quality)
    place, origin = Path(out).expanduser().absolute(), Path(source).expanduser().absolute()
    if origin.is_dir() and place.resolve().is_relative_to(origin.resolve()):
        raise ValueError(f"out={out} lies inside of source={source}, and would be part of it: give another place")
    job = {"source": str(origin), "files": photographs.digest, "layout": layout, **told}
    job |= {"size": size, "quality": quality, "detect": detect, "min_size": min_size, "part": part, "shown": shown}
    job |= {"seed": seed, "opencv": cv2.__version__, "format": _FORMAT}
    job = json.loads(json.dumps(job))  # as it will be read again
    hidden = unfinished(place)
    if _is_finished(place, job):
        shutil.rmtree(hidden, ignore_errors=True)  # of a start that was killed just after its last word
        print(f"{place} is finished already, of the same photographs with the same choices")
        return
    with held(hidden), StopRequest() as request, _quiet_opencv():
        _begin(hidden, job)
        begun = len(list((hidden / "parts").glob("[0-9]*.part")))
        if begun:
            print(f"going on: {begun:,} parts of {part:,} photographs are done", flush=True)
        stop = partial(_stop_where_asked, request, len(photographs))
        with Tracker("faces", progress) as tell:
            parts = work(photographs, make, hidden / "parts", part, threads, tell, stop)
        with Tracker("packing", progress) as tell:
            report = _assemble(hidden, photographs, parts, LAYOUTS[layout], job, tell, stop)
        publish_folder(hidden / "set", place)
        shutil.rmtree(hidden, ignore_errors=True)
    print(_summary(report, place))


def _stop_where_asked(request: StopRequest, total: int, kept: int) -> None:
    if request.received:
        raise Interrupted(
            f"stopped by {request.received}; {kept:,} of {total:,} photographs are done, and the same command goes on "
            "from there"
        )


def _check(layout: str, detect: str, face: str, **numbers: int) -> None:
    for name, value, known in (("layout", layout, LAYOUTS), ("detect", detect, WAYS), ("face", face, CHOICES)):
        if value not in known:
            raise ValueError(f"{name} is {value!r}: give one of {', '.join(known)}")
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} is {number}: give a number above 0")
    if numbers["quality"] > 100:
        raise ValueError(f"quality is {numbers['quality']}: give a number from 1 to 100")


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """One thread of its own, since ours share the photographs; no remarks on each of them, nor on each network."""
    threads, level = cv2.getNumThreads(), cv2.utils.logging.getLogLevel()
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
        cv2.utils.logging.setLogLevel(level)


def _is_finished(place: Path, job: dict[str, Any]) -> bool:
    """Whether the set is there, made by the same job.

    Raises:
        FileExistsError: something else is there.
    """
    try:
        there = json.loads((place / "report.json").read_text(encoding="utf-8"))["job"]
    except (OSError, ValueError, KeyError, TypeError):
        refuse_existing(place)
        return False
    if there != job:
        raise FileExistsError(
            f"{place} is a finished set of another job ({_differences(there, job)}): give another out="
        )
    return True


def _begin(hidden: Path, job: dict[str, Any]) -> None:
    """Makes sure that what lies in the hidden folder was begun by this very job.

    Raises:
        ValueError: it was another.
    """
    note = hidden / "job.json"
    if note.exists():
        there = json.loads(note.read_text(encoding="utf-8"))
        if there != job:
            raise ValueError(
                f"{hidden} holds an unfinished set of another job ({_differences(there, job)}): start that one again, "
                "or remove the folder, or give another out="
            )
    else:
        shutil.rmtree(hidden / "parts", ignore_errors=True)
        with atomic(note) as temporary:
            temporary.write_text(json.dumps(job, indent=2) + "\n", encoding="utf-8")
    (hidden / "parts").mkdir(exist_ok=True)


def _differences(there: Any, here: Mapping[str, Any]) -> str:
    if not isinstance(there, dict):
        return "its record cannot be read"
    keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    words = [
        "the photographs changed" if key == "files" else f"{key} was {there.get(key)}, is {here.get(key)}"
        for key in keys
    ]
    return "; ".join(words)


def _assemble(
    hidden: Path,
    source: Photographs | Records,
    parts: list[Part],
    fill: Callable[..., int],
    job: dict[str, Any],
    tell: Callable[[int, int], None],
    stop: Callable[[int], None],
) -> dict[str, Any]:
    """The finished set's folder, complete, but not yet in its place; gives its report."""
    failures = [*source.refused, *_failures(source, parts)]
    counts = np.zeros(len(source.identities), np.int64)
    for outcome in _outcomes(parts, faces=True):
        counts[source.labels[outcome.image]] += 1
    total, kept = int(counts.sum()), counts > 0
    if kept.sum() < 2:
        _write_failures(hidden / "failures.csv", failures)
        (hidden / "job.json").unlink()  # so that another choice may begin in the same place
        what = f"faces of one identity only were found among {len(source):,} photographs" if total else None
        raise ValueError(
            f"{what or f'no face was found in any of {len(source):,} photographs'}: the reasons stand in "
            f"{hidden / 'failures.csv'}"
        )
    folder = hidden / "set"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    chosen = np.random.default_rng(job["seed"]).choice(total, min(total, job["shown"]), replace=False)
    picked: dict[int, bytes] = dict.fromkeys(chosen.tolist(), b"")
    identities = [name for name, keep in zip(source.identities, kept, strict=True) if keep]
    with open(folder / "faces.csv", "w", **_TEXT) as file:
        records = _records(source, parts, np.cumsum(kept) - 1, picked, csv.writer(file))
        fill(folder, _told(records, total, tell, partial(stop, len(source))), identities, job["size"])
    save(folder / SHEETS[0], faces_sheet(list(picked.values()), job["size"]))
    _write_failures(folder / "failures.csv", failures)
    _show_failures(folder / SHEETS[1], source, parts, job)
    report = {
        "images": len(source),
        "faces": total,
        "identities": len(identities),
        "identities_left_out": len(source.identities) - len(identities),
        "failures": dict(Counter(failure.reason for failure in failures)),
        "seconds": round(sum(part.seconds for part in parts), 1),
        "job": job,
    }
    with atomic(folder / "report.json") as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def _outcomes(parts: list[Part], faces: bool) -> Iterator[Outcome]:
    """Of all images with a face, or of all without."""
    return (outcome for part in parts for outcome in part.outcomes() if (outcome.length > 0) == faces)


def _records(
    source: Photographs | Records, parts: list[Part], labels: np.ndarray, picked: dict[int, bytes], table: Any
) -> Iterator[Record]:
    """The faces in their order; writes a row about each, and keeps those that are to be shown."""
    faces = (face for part in parts for face in part.faces())
    for number, (outcome, jpeg) in enumerate(faces):
        old = int(source.labels[outcome.image])
        name = source.name(outcome.image)
        if number == 0:
            table.writerow(("identity", "name", "photograph", *outcome.about))
        table.writerow((source.identities[old], name, source.photograph(outcome.image), *outcome.about.values()))
        if number in picked:
            picked[number] = jpeg
        yield int(labels[old]), name, jpeg


def _told(
    records: Iterator[Record], total: int, tell: Callable[[int, int], None], stop: Callable[[], None]
) -> Iterator[Record]:
    """The same, while somebody is told how far it is, and may stop it."""
    for number, record in enumerate(records, start=1):
        yield record
        tell(number, total)
        stop()


def _failures(source: Photographs | Records, parts: list[Part]) -> Iterator[Failure]:
    for outcome in _outcomes(parts, faces=False):
        identity = source.identities[source.labels[outcome.image]]
        yield Failure(identity, source.photograph(outcome.image), outcome.about["reason"], outcome.about["detail"])


def _write_failures(file: Path, failures: list[Failure]) -> None:
    with atomic(file) as temporary, open(temporary, "w", **_TEXT) as opened:
        writer = csv.writer(opened)
        writer.writerow(Failure._fields)
        writer.writerows(failures)


def _show_failures(file: Path, source: Photographs | Records, parts: list[Part], job: dict[str, Any]) -> None:
    """Some of the photographs without a face; no file where there are none."""
    failed = list(_outcomes(parts, faces=False))
    if not failed:
        return
    chosen = np.random.default_rng(job["seed"]).choice(len(failed), min(len(failed), job["shown"]), replace=False)
    tiles = []
    for outcome in (failed[number] for number in chosen.tolist()):
        try:
            encoded = source.encoded(outcome.image)
        except (OSError, ValueError):
            encoded = np.empty(0, np.uint8)
        tiles.append((encoded, outcome.about["reason"], outcome.about["detail"]))
    save(file, failures_sheet(tiles))


def _summary(report: Mapping[str, Any], place: Path) -> str:
    lines = [f"{report['faces']:,} faces of {report['identities']:,} identities, of {report['images']:,} photographs"]
    if report["failures"]:
        lines[0] += "; left out: " + ", ".join(f"{count:,} {reason}" for reason, count in report["failures"].items())
        lines[0] += ", all named in failures.csv"
    if report["identities_left_out"]:
        lines.append(f"{report['identities_left_out']:,} identities have no face, and are left out")
    return "\n".join([*lines, f"look at {place / SHEETS[0]}", f"\nset  {place}"])
