"""A score file as a comparison needs it: its numbers, its protocol, its curve, and the outcomes to be drawn anew."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from facelab.benchmark.operating_points import fold_accuracy
from facelab.benchmark.scores import DAMAGED
from facelab.compare.results import Scores, Trials

NOTHING = np.empty(0)
TALLIES = (("subject_errors", "subject_trials"), ("subject_accepted", "subject_genuine"))  # of FRVT, of IJB


def read_scores(path: Path, arrays: dict[bytes, np.ndarray]) -> Scores:
    """Reads a score file, whatever kind of benchmark has written it.

    Args:
        path: the file.
        arrays: arrays that were read before, by their bytes; one that is there already is not kept twice.

    Raises:
        ValueError: it is damaged, or no score file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            texts: dict[str, Any] = {key: json.loads(str(file[key])) for key in ("stamp", "metrics", "notes")}
            name, curve = str(file["name"]), ("det_fmr", "det_fnmr", "cmc")
            drawn = {key: file.get(key, NOTHING) for key in curve}
            kind, main, error = _kind(file, name, texts["metrics"])
            trials = {"pairs": _pairs, "named": _named, "counted": _counted}[kind](file, main, texts["metrics"], arrays)
    except DAMAGED as broken:
        raise ValueError(f"{path.name} is no score file ({broken}): evaluate the benchmark again") from broken
    return Scores(name=name, kind=kind, main=main, error=error, trials=trials, **texts, **drawn)


def _kind(file: Any, name: str, metrics: Mapping[str, float]) -> tuple[str, str, bool]:
    """Kind, key of the main number, and whether that is an error rate."""
    if "predictions" in file:
        ranks = [int(key.rsplit("/top", 1)[1]) for key in metrics if key.rsplit("/top", 1)[-1].isdecimal()]
        return "named", f"{name}/top{min(ranks)}", False
    if "main" in file:
        return "counted", str(file["main"]), bool(file["error"])
    return "pairs", f"{name}/accuracy", False


def _pairs(file: Any, main: str, metrics: Mapping[str, float], arrays: dict[bytes, np.ndarray]) -> Trials:
    """Of ten folds: whether each pair is right at the threshold that was chosen on the other folds, as it was."""
    same, fold = file["same"].astype(bool), file["fold"]
    distance = -file["scores"].astype(np.float64)
    _, thresholds = fold_accuracy(distance, same, fold)
    right = (distance < thresholds[fold]) == same
    sizes = np.bincount(fold)
    weight = (len(fold) / len(sizes) / sizes)[fold]  # the mean over folds counts each fold alike
    if "people" in file:
        (one, other), unit = file["people"].T, str(file["people_from"])
        unit = "subjects" if unit == "names" else unit
    else:
        one = other = np.arange(len(same))
        unit = "pairs"
    return _trials(right, weight, one, other, same, unit, arrays)


def _named(file: Any, main: str, metrics: Mapping[str, float], arrays: dict[bytes, np.ndarray]) -> Trials:
    """Of a classification: whether each image's class is among the first k."""
    k = int(main.rsplit("/top", 1)[1])
    right = (file["predictions"][:, :k] == file["labels"][:, None]).any(axis=1)
    alone = np.arange(len(right))
    return _trials(right, np.ones(len(right)), alone, alone, np.zeros(len(right)), "images", arrays)


def _counted(file: Any, main: str, metrics: Mapping[str, float], arrays: dict[bytes, np.ndarray]) -> Trials | None:
    """Of a protocol that counts: each person's share, from the summaries that it has kept; None where it has none."""
    if "rank" in file and "identity" in file and main.rsplit("/rank", 1)[-1].isdecimal():
        right = file["rank"] <= int(main.rsplit("/rank", 1)[1])
        who = file["identity"]
        return _trials(right, np.ones(len(right)), who, who, np.zeros(len(right)), "subjects", arrays)
    for counts, trials in TALLIES:
        if counts in file:
            hits, weight = file[counts].astype(np.float64), file[trials].astype(np.float64)
            # Of several operating points the main number's is the one that gives it.
            (columns,) = np.nonzero(np.isclose(hits.sum(axis=0) / weight.sum(), metrics[main], rtol=0, atol=1e-9))
            if not len(columns):
                return None
            there = weight > 0
            share, who = hits[there, columns[0]] / weight[there], np.flatnonzero(there)
            return _trials(share, weight[there], who, who, np.zeros(len(who)), "subjects", arrays)
    return None


def _trials(
    value: np.ndarray,
    weight: np.ndarray,
    one: np.ndarray,
    other: np.ndarray,
    stratum: np.ndarray,
    unit: str,
    arrays: dict[bytes, np.ndarray],
) -> Trials:
    def shared(values: np.ndarray, kind: Any) -> np.ndarray:
        values = np.ascontiguousarray(values, kind)
        return arrays.setdefault(values.dtype.str.encode() + values.tobytes(), values)

    sides = shared(one, np.int32), shared(other, np.int32)
    return Trials(value.astype(np.float32), shared(weight, np.float32), *sides, shared(stratum, np.int8), unit)
