"""From which score on are two faces the same person? Thresholds out of an evaluation, kept beside the model.

A threshold is worth what it was measured on: it carries the benchmark, the number of impostor pairs, and the protocol.
A rate below one in that number cannot be stated, and is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facelab.atomic import atomic
from facelab.benchmark.pairs import short
from facelab.benchmark.scores import read_arrays
from facelab.trusted import parse

__all__ = ["SUFFIX", "Point", "Thresholds", "beside", "of_evaluation", "of_model"]

SUFFIX = ".thresholds.json"  # behind the model's whole name: model.onnx.thresholds.json
_STEPS = (5.0, 2.0, 1.0)  # of each decade of FMR
_DECADES = range(-1, -9, -1)


@dataclass(frozen=True)
class Point:
    """An operating point.

    Attributes:
        fmr: false match rate that the threshold keeps at most, as it was measured.
        threshold: cosine from which on two faces are the same person.
        fnmr: share of genuine pairs that it misses.
    """

    fmr: float
    threshold: float
    fnmr: float


@dataclass(frozen=True)
class Thresholds:
    """What an evaluation says of a model's scores.

    Attributes:
        benchmark: its name.
        impostors: I, number of impostor pairs.
        mirror: whether embeddings of mirrored images were added.
        model: SHA-256 of the file that was evaluated.
        stamp: the evaluation's protocol.
        points: by falling FMR.
    """

    benchmark: str
    impostors: int
    mirror: bool
    model: str
    stamp: Mapping[str, Any]
    points: tuple[Point, ...]

    def at(self, fmr: float) -> Point:
        """The point with the largest FMR that is not above the one that is asked for.

        Raises:
            ValueError: so few false matches cannot be stated by these pairs.
        """
        for point in self.points:
            if point.fmr <= fmr * (1 + 1e-9):
                return point
        least = f"{short(self.points[-1].fmr)} is the lowest" if self.points else "there are none"
        raise ValueError(
            f"fmr={fmr:g}: {self.benchmark} has {self.impostors:,} impostor pairs; of the rates that they can state "
            f"{least}: ask for a higher rate, or evaluate on more pairs (benchmark=frvt)"
        )

    def save(self, path: Path) -> None:
        """Writes them, whole or not at all."""
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def out_of(told: Mapping[str, Any], where: str) -> "Thresholds":
        """Reads what `save` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            points = tuple(
                Point(*(float(point[key]) for key in ("fmr", "threshold", "fnmr"))) for point in told["points"]
            )
            return Thresholds(
                str(told["benchmark"]), int(told["impostors"]), bool(told["mirror"]), str(told["model"]),
                dict(told["stamp"]), points,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{where}: holds no thresholds as facelab writes them ({error!r}): write them anew"
            ) from None


def beside(model: Path) -> Path:
    """Where the thresholds of a model's file lie."""
    return model.with_name(model.name + SUFFIX)


def of_model(model: Path, metadata: Mapping[str, Any]) -> Thresholds | None:
    """The thresholds stored with a model: beside it, in it, or, of a run's best.ckpt, in the run's own record.

    Raises:
        ValueError: a file beside it that cannot be read.
    """
    file = beside(model)
    if file.is_file():
        try:
            return Thresholds.out_of(json.loads(file.read_text(encoding="utf-8")), str(file))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}: is damaged ({error}): remove it, or write it anew") from None
    if "thresholds" in metadata:
        told = metadata["thresholds"]
        return Thresholds.out_of(json.loads(told) if isinstance(told, str) else told, str(model))
    run = model.absolute().parent.parent
    if model.name == "best.ckpt" and (run / "metrics.json").is_file():
        found = [_read(file, "") for file in sorted((run / "scores").glob("*.npz")) if _compares(file)]
        return max(found, key=lambda one: one.impostors, default=None)
    return None


def of_evaluation(evaluation: str, known: Mapping[str, str], mirror: bool) -> Thresholds:
    """The thresholds that an evaluation gives.

    Args:
        evaluation: its record, runs/evaluations/…, or one score file in it.
        known: SHA-256 of the model's file and of what it was made of → in words; one must be what was evaluated.
        mirror: whether the model's embeddings are those of image and mirrored image.

    Raises:
        FileNotFoundError: there is no such record.
        ValueError: it is of another model or of other kinds of scores, or has several score files.
    """
    path = Path(evaluation).expanduser()
    files = [path] if path.suffix == ".npz" else sorted((path / "scores").glob("*.npz"))
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"evaluation={evaluation}: has no scores; give a record of facelab.evaluate")
    record = files[0].absolute().parent.parent
    config = record / "config.yaml"
    told = parse(config.read_text(encoding="utf-8")) if config.is_file() else None
    digest = told.get("checkpoint_sha256") if isinstance(told, dict) else None
    if digest not in known:
        names = " or ".join(f"{words} ({sha[:12]}…)" for sha, words in known.items())
        told = f"evaluated {str(digest)[:12]}…" if digest else "does not say what it evaluated"
        raise ValueError(f"evaluation={evaluation}: {told}, which is not {names}: evaluate this model")
    fitting = [file for file in files if _compares(file)]
    if len(fitting) != 1:
        names = ", ".join(str(file) for file in fitting) or "none"
        raise ValueError(
            f"evaluation={evaluation}: one file of compared pairs is asked for, there are {names}: name it"
        )
    found = _read(fitting[0], str(digest))
    if found.mirror != mirror:
        raise ValueError(
            f"evaluation={evaluation}: was made with mirror={str(found.mirror).lower()}, and the model works with "
            f"mirror={str(mirror).lower()}: scores of the two do not compare; make them alike"
        )
    return found


def _compares(file: Path) -> bool:
    """Whether it holds a DET curve of plain cosines."""
    try:
        stamp = read_arrays(file, ["det_fmr"])["stamp"]
    except ValueError:
        return False
    return stamp.get("score") in _TO_COSINE and "impostor" in stamp and not {"quality", "groups"} & set(stamp)


_TO_COSINE = {
    "minus squared L2 distance": lambda score: 1 + score / 2,  # of unit vectors: ‖a − b‖² = 2 − 2·cosθ
    "cosine similarity": lambda score: score,
}


def _read(file: Path, digest: str) -> Thresholds:
    found = read_arrays(file, ["det_threshold", "det_fmr", "det_fnmr"])
    stamp = found["stamp"]
    impostors = int(stamp["impostor"])
    cosine = _TO_COSINE[stamp["score"]](np.asarray(found["det_threshold"], np.float64))
    fmr, fnmr = found["det_fmr"], found["det_fnmr"]
    points = []
    for decade in _DECADES:
        for step in _STEPS:
            target = float(f"{step:g}e{decade}")
            if target * impostors < 1 - 1e-9:
                break
            place = int(np.searchsorted(fmr, target * (1 + 1e-9), side="right")) - 1
            if place >= 0 and np.isfinite(cosine[place]):
                points.append(Point(target, float(cosine[place]), float(fnmr[place])))
    return Thresholds(found["name"], impostors, bool(stamp["mirror"]), digest, stamp, tuple(points))
