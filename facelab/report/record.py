"""Reads a run directory's files, as many as there are; nothing of it is executed and no model is needed."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facelab.benchmark.scores import DAMAGED
from facelab.report.spread import Spread
from facelab.trusted import parse


@dataclass(frozen=True)
class Scores:
    """One benchmark's score file.

    Attributes:
        name: of the benchmark.
        genuine: (G,) scores, higher is more alike.
        impostor: (I,) scores.
        fmr: (P,) of the DET curve, ascending.
        fnmr: (P,) of the DET curve.
        metrics: by full key, ``lfw/accuracy``.
        notes: by the same keys.
        axis: what the scores are, a label for an axis.
        impostors: how many there are: of a protocol that counts, ``impostor`` is a sample of them.
        counts: whether it is such a protocol.
    """

    name: str
    genuine: np.ndarray
    impostor: np.ndarray
    fmr: np.ndarray
    fnmr: np.ndarray
    metrics: dict[str, float]
    notes: dict[str, str]
    axis: str
    impostors: int
    counts: bool = False


@dataclass(frozen=True)
class Ranked:
    """The score file of a protocol of searches alone.

    Attributes:
        name: of the benchmark.
        cmc: (R,) share of searches with a mate among the first 1 … R.
        metrics: by full key.
        notes: by the same keys.
    """

    name: str
    cmc: np.ndarray
    metrics: dict[str, float]
    notes: dict[str, str]


@dataclass(frozen=True)
class Named:
    """One classification's score file.

    Attributes:
        name: of the benchmark.
        truth: (M,) class of each image.
        predictions: (M,k) classes, the most similar first.
        classes: the names of all C classes.
        metrics: by full key, ``heldout/top1``.
        notes: by the same keys.
    """

    name: str
    truth: np.ndarray
    predictions: np.ndarray
    classes: list[str]
    metrics: dict[str, float]
    notes: dict[str, str]


@dataclass(frozen=True)
class Record:
    """What a run left behind.

    Attributes:
        path: the run directory.
        history: column of metrics.csv → (rows,) float64, NaN where the cell is empty.
        metrics: metrics.json; empty while the run is unfinished.
        scores: the score files of pairs, that of the reported benchmark first.
        named: those of classifications, the same.
        ranked: those of searches, the same.
        config: config.yaml, or empty.
        spreads: of histograms.npz, by kind: angle (degrees), norm, group (of a GroupFace head, by number); those that
            were counted.
    """

    path: Path
    history: dict[str, np.ndarray]
    metrics: dict[str, Any]
    scores: list[Scores]
    named: list[Named]
    ranked: list[Ranked]
    config: dict[str, Any]
    spreads: dict[str, Spread]

    def curve(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Images seen and the values of a column where it has some, both (rows,)."""
        values = self.history.get(key, np.empty(0))
        known = np.isfinite(values)
        return self.history.get("images", np.full(len(values), np.nan))[known], values[known]


def read_record(path: Path) -> Record:
    """Reads a run directory.

    Raises:
        FileNotFoundError: no such directory, or one that holds nothing of a run.
        ValueError: a file of it is damaged.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such run directory; give the folder that holds metrics.csv")
    files = sorted((path / "scores").glob("*.npz"))
    if not files and not any((path / name).is_file() for name in ("metrics.csv", "metrics.json")):
        raise FileNotFoundError(
            f"{path}: not a run directory, there is neither metrics.csv nor metrics.json nor scores/"
        )
    metrics = _parsed(path / "metrics.json", json.loads)
    found = [_read_scores(file) for file in files]
    # Benchmarks that were evaluated later lie beside what the run itself reports, and that stands in metrics in order.
    order = list(metrics)
    found.sort(key=lambda one: min((order.index(key) for key in one.metrics if key in metrics), default=len(order)))
    return Record(
        path,
        read_columns(path / "metrics.csv"),
        metrics,
        [one for one in found if isinstance(one, Scores)],
        [one for one in found if isinstance(one, Named)],
        [one for one in found if isinstance(one, Ranked)],
        _parsed(path / "config.yaml", parse),
        _read_spreads(path / "histograms.npz"),
    )


def _parsed(path: Path, parse: Any) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({str(error).splitlines()[0]}); delete it to draw without") from error
    return content if isinstance(content, dict) else {}


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of a metrics.csv, each (rows,) float64, NaN where a cell is empty; none where there is no file."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))  # a kill can cut the last line short
    return {key: np.array([_number(row.get(key)) for row in rows]) for key in (rows[0] if rows else ()) if key}


def _number(cell: str | None) -> float:
    try:
        return float(cell) if cell else np.nan
    except ValueError:
        return np.nan


def _read_spreads(path: Path) -> dict[str, Spread]:
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            kinds = [key for key in ("angle", "norm", "group") if key in file]
            return {kind: Spread(file["images"], file[f"{kind}_edges"], file[kind]) for kind in kinds}
    except DAMAGED as error:
        raise ValueError(f"{path}: no file of histograms ({error}); delete it to draw without") from error


def _read_scores(path: Path) -> Scores | Named | Ranked:
    try:
        with np.load(path, allow_pickle=False) as file:
            stamp, metrics, notes = (json.loads(str(file[key])) for key in ("stamp", "metrics", "notes"))
            if "predictions" in file:
                classes = file["classes"].tolist()
                return Named(str(file["name"]), file["labels"], file["predictions"], classes, metrics, notes)
            if "main" in file:
                return _counted(file, stamp, metrics, notes)
            values, same = file["scores"].astype(np.float64), file["same"].astype(bool)
            curve = file["det_fmr"], file["det_fnmr"]
            name = str(file["name"])
    except DAMAGED as error:
        raise ValueError(f"{path}: not a score file ({error}); evaluate the benchmark again") from error
    axis = str(stamp.get("score", "score"))
    if axis == "minus squared L2 distance":  # of unit vectors: the cosine, which everybody can read
        values, axis = 1 + values / 2, "cosine similarity"
    impostors = int(np.count_nonzero(~same))
    return Scores(name, values[same], values[~same], *curve, metrics, notes, axis, impostors)


def _counted(file: Any, stamp: dict[str, Any], metrics: dict[str, float], notes: dict[str, str]) -> Scores | Ranked:
    """Of a protocol that counts: a DET curve with what was kept of the scores, or the curve of its searches alone."""
    name = str(file["name"])
    if "det_fmr" not in file:
        return Ranked(name, file["cmc"] if "cmc" in file else np.empty(0), metrics, notes)
    genuine, impostor = (file[key].astype(np.float64) for key in ("genuine", "impostor_sample"))
    genuine, axis = genuine[np.isfinite(genuine)], str(stamp.get("score", "score"))  # failures have no score
    impostors = int(stamp.get("impostor", len(impostor)))
    return Scores(name, genuine, impostor, file["det_fmr"], file["det_fnmr"], metrics, notes, axis, impostors, True)
