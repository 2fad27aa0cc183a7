"""A score carries its protocol: what a benchmark returns, and its file (.npz, atomic, no pickle)."""

from __future__ import annotations

import csv
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from facelab.atomic import atomic
from facelab.benchmark.operating_points import Det

# What reading an .npz raises where it is damaged or forged: numpy's, the archive's and JSON's own ways to say it.
DAMAGED = (
    *(ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError, EOFError, OSError, SyntaxError),
    *(RuntimeError, zipfile.BadZipFile, zlib.error, struct.error),
)


class Result:
    """What every benchmark returns; each kind adds the arrays that its numbers were counted from.

    Attributes:
        name: the benchmark's name, the first part of the metric keys.
        metrics: flat numbers, ``{"lfw/accuracy": 0.9917, "lfw/tar@far=1e-3": …}``.
        stamp: the protocol, JSON-able; two results are compared only where the stamps agree (`compare_stamps`).
        notes: what has to be said beside a number, by the same key (``"zero false accepts, N=3,000"``).
        parts: further results of the same benchmark, each with a name, a stamp and a score file of its own.
        tables: rows that are rather read as tables, by name; none of most.
    """

    name: Any
    metrics: Any
    stamp: Any
    notes: Any
    parts: Any
    tables: Any = MappingProxyType({})

    def all_metrics(self) -> dict[str, float]:
        """The numbers of the result and of its parts."""
        return {key: value for one in (self, *self.parts) for key, value in one.metrics.items()}

    def all_notes(self) -> dict[str, str]:
        """The notes of the result and of its parts."""
        return {key: note for one in (self, *self.parts) for key, note in one.notes.items()}

    @property
    def headline(self) -> float:
        """The number that is looked at first, a share."""
        raise NotImplementedError

    @property
    def choosing(self) -> float:
        """The number by which the best checkpoint is chosen, higher is better: the headline, and an order of equals."""
        raise NotImplementedError

    def arrays(self) -> dict[str, np.ndarray]:
        """What the score file holds beside name, stamp, metrics and notes."""
        raise NotImplementedError


@dataclass(frozen=True)
class PairResult(Result):
    """The outcome of a pair benchmark.

    Attributes:
        name: see `Result`, as for metrics, stamp, notes and parts.
        metrics: flat numbers.
        scores: (N,) float64, higher is more alike: minus the squared L2 distance.
        same: (N,) bool, genuine or impostor.
        fold: (N,) int64.
        stamp: the protocol.
        det: the DET curve.
        notes: beside a number.
        parts: further results.
        people: (N,2) int64, whose images a pair has; None where nobody knows.
        people_from: what tells them apart: ``names``, or ``linked images`` where there are none.
    """

    name: str
    metrics: dict[str, float]
    scores: np.ndarray
    same: np.ndarray
    fold: np.ndarray
    stamp: dict[str, Any]
    det: Det
    notes: dict[str, str] = field(default_factory=dict)
    parts: tuple[PairResult, ...] = ()
    people: np.ndarray | None = None
    people_from: str = ""

    @property
    def headline(self) -> float:
        """The accuracy."""
        return self.metrics[f"{self.name}/accuracy"]

    @property
    def choosing(self) -> float:
        """The accuracy; on a few thousand pairs it comes in steps, and the area orders what falls on the same step."""
        return self.headline + 1e-6 * self.metrics[f"{self.name}/auc"]

    def arrays(self) -> dict[str, np.ndarray]:
        """Scores, kinds and folds of the pairs, and the DET curve."""
        known = {} if self.people is None else {"people": self.people, "people_from": np.array(self.people_from)}
        return {
            **known,
            "scores": np.asarray(self.scores),
            "same": np.asarray(self.same, dtype=bool),
            "fold": np.asarray(self.fold),
            **{f"det_{key}": values for key, values in self.det._asdict().items()},
        }


@dataclass(frozen=True)
class CountedResult(Result):
    """The outcome of a protocol with too many scores to keep them all: counts, curves and tails in their place.

    Attributes:
        name: see `Result`, as for metrics, stamp, notes and parts.
        metrics: flat numbers.
        kept: what the score file holds, by name. ``det_threshold``, ``det_fmr``, ``det_fnmr`` (P,) are a DET curve,
            ``cmc`` (R,) the share of searches with a mate among the first 1 … R; other names are the protocol's own.
        stamp: the protocol.
        main: the key of the number that is looked at first.
        error: whether that is an error rate, lower is better.
        notes: beside a number.
        parts: further results.
        tables: what is rather read as a table, by name: rows, all with the same columns.
    """

    name: str
    metrics: dict[str, float]
    kept: dict[str, np.ndarray]
    stamp: dict[str, Any]
    main: str
    error: bool = False
    notes: dict[str, str] = field(default_factory=dict)
    parts: tuple[CountedResult, ...] = ()
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def headline(self) -> float:
        """The number under `main`."""
        return self.metrics[self.main]

    @property
    def choosing(self) -> float:
        """The headline; of an error rate, its negative."""
        return -self.headline if self.error else self.headline

    def arrays(self) -> dict[str, np.ndarray]:
        """What was kept, the key of the headline, and whether that is an error rate."""
        return {**self.kept, "main": np.array(self.main), "error": np.array(self.error)}


def save_all(folder: Path, result: Result) -> list[Path]:
    """Writes a result and its parts to ``<folder>/<name>.npz`` each, and tables to ``<folder>/<name>_<table>.csv``."""
    written = []
    for one in (result, *result.parts):
        written.append(save_scores(folder / f"{one.name}.npz", one))
        for table, rows in one.tables.items():
            if rows:
                written.append(save_table(folder / f"{one.name}_{table}.csv", rows))
    return written


def save_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes rows, all with the columns of the first, as CSV, whole or not at all."""
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:  # numpy's numbers are written as they are read
            writer.writerow({key: cell.item() if isinstance(cell, np.generic) else cell for key, cell in row.items()})
    return path


def save_scores(path: str | os.PathLike[str], result: Result) -> Path:
    """Writes a result without its parts to ``path`` (.npz), whole or not at all.

    Arrays: of pairs ``scores``, ``same``, ``fold``, ``det_threshold``, ``det_fmr``, ``det_fnmr`` and, where they are
    known, ``people`` and ``people_from``, of a classification ``labels``, ``predictions``, ``similarities``,
    ``classes``, of a protocol that counts what it has kept, ``main`` and ``error``; ``name`` and, as JSON text,
    ``stamp``, ``metrics``, ``notes``.
    """
    path = Path(path)
    arrays: dict[str, Any] = {
        "name": np.array(result.name),
        **result.arrays(),
        **{key: np.array(json.dumps(getattr(result, key), sort_keys=True)) for key in ("stamp", "metrics", "notes")},
    }
    with atomic(path) as temporary:
        np.savez_compressed(temporary, **arrays)
    return path


def read_arrays(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, Any]:
    """Some arrays of a score file, and its ``name``, ``stamp``, ``metrics`` and ``notes``; nothing in it is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a score file, one of another kind, or a damaged one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such score file; evaluate the benchmark first")
    try:
        with np.load(path, allow_pickle=False) as file:
            texts = {key: json.loads(str(file[key])) for key in ("stamp", "metrics", "notes")}
            return {"name": str(file["name"]), **{name: file[name] for name in names}, **texts}
    except DAMAGED as error:
        raise ValueError(f"{path}: not a facelab score file ({error}); evaluate the benchmark again") from error


def load_scores(path: str | os.PathLike[str]) -> PairResult:
    """Reads what `save_scores` wrote of pairs.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a score file of pairs, or a damaged one.
    """
    curve = [f"det_{key}" for key in Det._fields]
    found = read_arrays(path, ["scores", "same", "fold", *curve])
    with np.load(path, allow_pickle=False) as file:  # records of older versions say nothing of people
        known = {"people": file["people"], "people_from": str(file["people_from"])} if "people" in file else {}
    return PairResult(det=Det(*(found.pop(key) for key in curve)), **found, **known)


def load_counted(path: str | os.PathLike[str]) -> CountedResult:
    """Reads what `save_scores` wrote of a protocol that counts.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a score file of such a protocol, or a damaged one.
    """
    found = read_arrays(path, ["main", "error"])
    texts = {"name", "stamp", "metrics", "notes", "main", "error"}
    with np.load(path, allow_pickle=False) as file:
        kept = {name: file[name] for name in file.files if name not in texts}
    found |= {"main": str(found["main"]), "error": bool(found["error"])}
    return CountedResult(kept=kept, **found)


def compare_stamps(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys in which two protocol stamps differ, sorted; empty where the results may be compared."""
    absent = object()
    return sorted(key for key in {*one, *other} if one.get(key, absent) != other.get(key, absent))
