"""Which numbers are the columns of a comparison."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import numpy as np

from facelab.compare.results import Column, Run, Scores

# Lower is better of what begins with one of these.
ERRORS = ("eer", "fnmr", "fmr", "fnir", "fpir", "apcer", "bpcer", "d-eer", "mmpmr", "failures")
MINUTES = ("_low", "_high", "_std")  # not of their own, but of the number before


def columns_of(runs: Sequence[Run], metrics: Sequence[str] | None) -> list[Column]:
    """The columns, in the order of the runs' reports.

    Args:
        runs: that are compared.
        metrics: full keys; None: the main number of every benchmark.

    Raises:
        ValueError: a key that no run reports, or runs that report nothing.
    """
    scores: dict[str, Scores] = {}
    for run in runs:
        scores = {**run.scores, **scores}  # the first run's stands
    mains = {name: one.main for name, one in scores.items()}
    if metrics is None:
        keys = list(mains.values())
        if not keys:
            raise ValueError("no run has a score file: choose columns with metrics=[…], as metrics=[val/accuracy]")
    else:
        keys = list(dict.fromkeys(metrics))
        known = {key for run in runs for key in run.metrics}
        lost = [key for key in keys if key not in known]
        if lost:
            near = difflib.get_close_matches(lost[0], known, n=3, cutoff=0.3) or sorted(mains.values())
            raise ValueError(f"metrics has {lost[0]!r}, which no run reports: did you mean {' or '.join(near)}?")
        if not keys:
            raise ValueError("metrics is empty: give keys, as metrics=[lfw/accuracy], or null for every main number")
    return [_column(key, runs, scores) for key in keys]


def _column(key: str, runs: Sequence[Run], scores: dict[str, Scores]) -> Column:
    # A benchmark's name may have a slash in a key (IJB's galleries): the file's name decides.
    benchmark = next((name for name in scores if key.startswith(f"{name}/")), key.rsplit("/", 1)[0])
    one = scores.get(benchmark)
    word = key[len(benchmark) + 1 :] if key.startswith(f"{benchmark}/") else key
    main = one is not None and one.main == key
    trials = [run.scores[benchmark].trials for run in runs if benchmark in run.scores] if main else []
    known = next((trial for trial in trials if trial is not None), None)
    values = [run.metrics[key] for run in runs if key in run.metrics]
    stamp = {} if one is None else dict(one.stamp)
    family = re.sub(r"_\d+px(?=_|$)", "", benchmark)
    return Column(
        key=key,
        benchmark=benchmark,
        title=f"{benchmark} {word}",
        error=one.error if one is not None and main else word.split("/")[-1].startswith(ERRORS),
        share=bool(values) and all(0 <= value <= 1 for value in values),
        stamp=stamp,
        unit="" if known is None else known.unit,
        units=0 if known is None else len(np.union1d(known.one, known.other)),
        size=stamp.get("degraded_size", stamp.get("size") if _has_smaller(family, scores) else None),
        family=family,
    )


def _has_smaller(family: str, scores: dict[str, Scores]) -> bool:
    """Whether the benchmark was measured at several resolutions."""
    return any(name.startswith(f"{family}_") and "degraded_size" in one.stamp for name, one in scores.items())
