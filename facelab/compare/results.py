"""What a comparison is: the runs that were read, and the table that was counted from them. Plain data, no torch.

A *row* is what differs (a loss, a backbone, s = 64 …), with one run for each seed; a *column* is a number that runs
report (LFW's accuracy). Shares and differences of shares are fractions: 0.9917, 0.0012. Where something cannot be told
(a deviation of a single seed), the number is NaN and the interval (NaN, NaN).

n seeds, N pairs, P points of a curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Interval = tuple[float, float]
UNKNOWN: Interval = (math.nan, math.nan)


@dataclass(frozen=True)
class Scores:
    """One benchmark's score file of one run.

    Attributes:
        name: of the benchmark, as ``lfw`` or ``lfw_14px``.
        kind: ``pairs``, ``named`` (a classification) or ``counted`` (a protocol that counts).
        metrics: by full key, ``lfw/accuracy``.
        notes: what has to be said beside a number, by the same keys.
        stamp: the protocol.
        main: the key of the number that is looked at first.
        error: whether that is an error rate, lower is better.
        det_fmr: (P,) of the DET curve, ascending; empty where there is none.
        det_fnmr: (P,) of the DET curve.
        cmc: (R,) share of searches with a mate among the first 1 … R; empty where there are none.
        trials: what was counted for `main`, for the bootstrap; None where the file does not hold that.
    """

    name: str
    kind: str
    metrics: Mapping[str, float]
    notes: Mapping[str, str]
    stamp: Mapping[str, Any]
    main: str
    error: bool
    det_fmr: np.ndarray
    det_fnmr: np.ndarray
    cmc: np.ndarray
    trials: Trials | None


@dataclass(frozen=True)
class Trials:
    """The single outcomes whose mean is a benchmark's main number, and the people they belong to.

    Attributes:
        value: (N,) float32, what each trial gives: 1 or 0, or counts of one person.
        weight: (N,) float32, how often it counts; 1 of pairs.
        one: (N,) int32, the person of a trial; of an impostor pair the person of its first image.
        other: (N,) int32, the person of its second image; of all trials of one person the same as `one`.
        stratum: (N,) int8, 0 impostor pairs, 1 genuine pairs: the protocol fixes how many there are of each, and so
            does a replicate. All 0 of other trials.
        unit: what is drawn anew: ``subjects``; ``linked images`` (people told by genuine pairs alone), ``images`` or
            ``pairs`` where nobody knows whose they are.
    """

    value: np.ndarray
    weight: np.ndarray
    one: np.ndarray
    other: np.ndarray
    stratum: np.ndarray
    unit: str


@dataclass(frozen=True)
class Cost:
    """What a run has cost; of a row, means over its runs (of memory, the largest).

    Attributes:
        images_per_s: in training, or NaN.
        device_hours: hours of training times devices, or NaN.
        device: the accelerator's name, or ``CPU``; empty where the record does not say.
        devices: how many.
        peak_memory: bytes of the fullest device (of a CPU run: of the process), or NaN where the record does not say.
        parameters: of backbone and head, or NaN.
    """

    images_per_s: float
    device_hours: float
    device: str
    devices: int
    peak_memory: float
    parameters: float


@dataclass(frozen=True)
class Run:
    """One run directory, read.

    Attributes:
        path: the folder.
        sweep: ``name`` of its configuration, the folder above it.
        job: ``job`` of its configuration.
        seed: of the run, or None (evaluations, published weights).
        finished: whether it has come to its end.
        config: the configuration, flat: dotted key → value.
        metrics: metrics.json, flat; empty while unfinished.
        scores: by benchmark name, in the order of the report.
        history: column of metrics.csv → (rows,) float64, NaN where a cell is empty: ``images``, ``train/loss``,
            ``val/accuracy``, …
        cost: what it has cost.
        environment: environment.json.
        wandb: its W&B id, or None.
    """

    path: Path
    sweep: str
    job: str
    seed: int | None
    finished: bool
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    scores: Mapping[str, Scores]
    history: Mapping[str, np.ndarray]
    cost: Cost
    environment: Mapping[str, Any] = field(default_factory=dict)
    wandb: str | None = None

    def curve(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Images seen and the values of a history column where it has some, both (rows,)."""
        values = self.history.get(key, np.empty(0))
        known = np.isfinite(values)
        return self.history.get("images", np.full(len(values), np.nan))[known], values[known]


@dataclass(frozen=True)
class Row:
    """What differs, and its runs.

    Attributes:
        label: in a few words, ``loss=arcface, loss.margin=0.3``; ``defaults`` where nothing differs.
        choices: swept key → value, the same keys in every row (None where a row has no such key).
        runs: one for each seed, in order of seeds.
        missing: seeds that other rows have and this one lacks (absent or unfinished).
        cost: means over the runs.
        frontier: whether no other row is at least as good in the first column and as cheap, and better in one of both;
            False where cost or number are not known.
    """

    label: str
    choices: Mapping[str, Any]
    runs: tuple[Run, ...]
    missing: tuple[int, ...]
    cost: Cost
    frontier: bool

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """(n,) of its runs."""
        return tuple(run.seed for run in self.runs)


@dataclass(frozen=True)
class Column:
    """A number that the runs report.

    Attributes:
        key: ``lfw/accuracy``.
        benchmark: ``lfw``.
        title: for a table's head, ``lfw accuracy``.
        error: whether lower is better.
        share: whether it is a share, shown in per cent.
        stamp: the protocol, the same of all runs.
        unit: what is drawn anew in its bootstrap (subjects, images, pairs), or empty.
        units: how many of these there are, or 0.
        size: pixels that images were reduced to, or None: what a resolution curve has on its x axis.
        family: of a benchmark at several resolutions, the name without them; otherwise `benchmark`.
    """

    key: str
    benchmark: str
    title: str
    error: bool
    share: bool
    stamp: Mapping[str, Any]
    unit: str
    units: int
    size: int | None
    family: str


@dataclass(frozen=True)
class Difference:
    """A row's number minus that of another row, over the seeds that both have (runs of a seed see the same images).

    Attributes:
        mean: of the differences; positive is more, which of an error rate is worse.
        std: of the differences, n−1 in the denominator; NaN of a single seed.
        count: seeds that both rows have.
        interval: paired t-interval over seeds: what training again would give, on the same test images.
        subjects: bootstrap interval over the test's people: what other people would give, with these networks.
        p: two-sided: of the paired t-test over seeds; of a single seed, of the bootstrap over people.
        test: ``seeds``, ``subjects``, or empty where neither can be told.
        corrected: p corrected for the number of comparisons (Holm).
        significant: whether ``corrected`` is below 1 − level.
        needed: seeds each that would show a difference of this size with a power of 80 %; NaN where it cannot be told.
        visible: the smallest difference that the n seeds would show with that power; NaN where it cannot be told.
    """

    mean: float
    std: float
    count: int
    interval: Interval
    subjects: Interval
    p: float
    test: str
    corrected: float
    significant: bool
    needed: float
    visible: float


@dataclass(frozen=True)
class Cell:
    """A row's number in a column.

    Attributes:
        values: seed (None where a run has none) → the number.
        mean: over seeds.
        std: over seeds, n−1 in the denominator; NaN of a single seed.
        interval: t-interval of the mean over seeds; of a single seed (NaN, NaN).
        subjects: bootstrap interval over the test's people, of the mean over seeds with these very networks.
        baseline: the difference to the baseline row; None in that row, or without a baseline.
        to_best: the difference to the best row; None in that row.
        best: whether its mean is the best of the column.
        close: whether it is not significantly worse than the best (Holm over the column's rows): True in the best row
            too; False where nothing can be told.
        notes: what has to be said beside the number, each once.
    """

    values: Mapping[int | None, float]
    mean: float
    std: float
    interval: Interval
    subjects: Interval
    baseline: Difference | None
    to_best: Difference | None
    best: bool
    close: bool
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """n, the seeds."""
        return len(self.values)


@dataclass(frozen=True)
class Line:
    """How a number depends on one numeric choice, all else being equal.

    Attributes:
        others: the row's other swept choices in words; empty where there are none.
        x: (k,) values of the choice, ascending, float64.
        mean: (k,) float64.
        low: (k,) lower bound of the t-interval over seeds, NaN of a single seed.
        high: (k,) upper bound.
        rows: (k,) the numbers of the rows.
    """

    others: str
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Sensitivity:
    """How a column depends on a numeric choice: what is drawn beside a ranking.

    Attributes:
        key: the choice, ``loss.margin``.
        column: the number of the column.
        lines: one for each combination of the other choices with two values or more.
    """

    key: str
    column: int
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Comparison:
    """The whole.

    Attributes:
        title: the folders that were read, in words.
        folders: as they were given.
        keys: what was swept, dotted keys without the seed; groups (``loss``) before values.
        rows: in the order of their choices, numbers by size.
        columns: benchmarks in the order of the reports.
        cells: cells[row][column]; None where no run of the row has that number.
        baseline: number of the baseline row, or None.
        level: of intervals, 0.95.
        comparisons: how many differences to the baseline the p-values were corrected for.
        replicates: of the bootstrap.
        sensitivities: for each numeric swept key and each column.
        cost_key: which cost the frontier weighs against the first column: ``device_hours`` or ``parameters``, or empty.
        warnings: what has to be said: unfinished runs, missing seeds, unequal keys …
        unread: folders that were left out, with the reason; not among the warnings.
    """

    title: str
    folders: tuple[str, ...]
    keys: tuple[str, ...]
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    cells: tuple[tuple[Cell | None, ...], ...]
    baseline: int | None
    level: float
    comparisons: int
    replicates: int
    sensitivities: tuple[Sensitivity, ...]
    cost_key: str
    warnings: tuple[str, ...]
    unread: tuple[tuple[Path, str], ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs of all rows."""
        return tuple(run for row in self.rows for run in row.runs)

    def column(self, number: int) -> tuple[Cell | None, ...]:
        """The cells of a column, row by row."""
        return tuple(cells[number] for cells in self.cells)
