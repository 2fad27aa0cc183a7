"""A score carries its protocol: what a verification benchmark returns, and its file (.npz, atomic, no pickle)."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from facelab.atomic import atomic
from facelab.benchmark.operating_points import Det


@dataclass(frozen=True)
class PairResult:
    """The outcome of a pair benchmark.

    Attributes:
        name: the benchmark's name, the first part of the metric keys.
        metrics: flat numbers, ``{"lfw/accuracy": 0.9917, "lfw/tar@far=1e-3": …}``.
        scores: (N,) float64, higher is more alike: minus the squared L2 distance.
        same: (N,) bool, genuine or impostor.
        fold: (N,) int64.
        stamp: the protocol, JSON-able; two results are compared only where the stamps agree (`compare_stamps`).
        det: the DET curve.
        notes: what has to be said beside a number, by the same key (``"zero false accepts, N=3,000"``).
        parts: further results of the same benchmark, each with a name, a stamp and a score file of its own.
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

    def all_metrics(self) -> dict[str, float]:
        """The numbers of the result and of its parts."""
        return {key: value for one in (self, *self.parts) for key, value in one.metrics.items()}

    def all_notes(self) -> dict[str, str]:
        """The notes of the result and of its parts."""
        return {key: note for one in (self, *self.parts) for key, note in one.notes.items()}


def save_all(folder: Path, result: PairResult) -> list[Path]:
    """Writes a result and its parts to ``<folder>/<name>.npz`` each."""
    return [save_scores(folder / f"{one.name}.npz", one) for one in (result, *result.parts)]


def save_scores(path: str | os.PathLike[str], result: PairResult) -> Path:
    """Writes a result without its parts to ``path`` (.npz), whole or not at all.

    Arrays: ``scores``, ``same``, ``fold``, ``det_threshold``, ``det_fmr``, ``det_fnmr``; ``name`` and, as JSON text,
    ``stamp``, ``metrics``, ``notes``.
    """
    path = Path(path)
    arrays: dict[str, Any] = {
        "name": np.array(result.name),
        "scores": np.asarray(result.scores),
        "same": np.asarray(result.same, dtype=bool),
        "fold": np.asarray(result.fold),
        **{f"det_{key}": values for key, values in result.det._asdict().items()},
        **{key: np.array(json.dumps(getattr(result, key), sort_keys=True)) for key in ("stamp", "metrics", "notes")},
    }
    with atomic(path) as temporary:
        np.savez_compressed(temporary, **arrays)
    return path


def load_scores(path: str | os.PathLike[str]) -> PairResult:
    """Reads what `save_scores` wrote; nothing in the file is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a score file, or a damaged one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such score file; evaluate the benchmark first")
    try:
        with np.load(path, allow_pickle=False) as file:
            texts = {key: json.loads(str(file[key])) for key in ("stamp", "metrics", "notes")}
            return PairResult(
                name=str(file["name"]),
                scores=file["scores"],
                same=file["same"],
                fold=file["fold"],
                det=Det(*(file[f"det_{key}"] for key in Det._fields)),
                **texts,
            )
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a facelab score file ({error}); evaluate the benchmark again") from error


def compare_stamps(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys in which two protocol stamps differ, sorted; empty where the results may be compared."""
    absent = object()
    return sorted(key for key in {*one, *other} if one.get(key, absent) != other.get(key, absent))
