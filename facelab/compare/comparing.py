"""From run directories to a comparison: every cell with its spread, every difference with its intervals and tests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from facelab.benchmark.scores import compare_stamps
from facelab.compare import statistics
from facelab.compare.cautions import cautions
from facelab.compare.choices import sensitivities
from facelab.compare.columns import columns_of
from facelab.compare.cost import cost_of, frontier
from facelab.compare.reading import read
from facelab.compare.results import UNKNOWN, Cell, Column, Comparison, Difference, Row, Run, Trials
from facelab.compare.rows import Arranged, arrange, label, spoken


@dataclass(frozen=True)
class Rules:
    """How numbers become intervals and tests.

    Attributes:
        level: share that an interval promises, 0.95; tests use 1 − level.
        replicates: of the bootstrap over people, 1,000 to 10,000; 0: none.
        seed: of its draws.

    Raises:
        ValueError: a setting out of range.
    """

    level: float
    replicates: int
    seed: int

    def __post_init__(self) -> None:
        if not 0.5 <= self.level < 1:
            raise ValueError(f"level={self.level}: give a share from 0.5 to below 1; 0.95 is usual")
        if self.replicates and self.replicates < 100:
            raise ValueError(f"replicates={self.replicates}: give 1,000 or more, or 0 for no bootstrap over people")


def compare(
    folders: Sequence[str | Path],
    *,
    baseline: str | None,
    metrics: Sequence[str] | None,
    keys: Sequence[str] | None,
    rules: Rules,
) -> Comparison:
    """Reads run directories and compares them.

    Args:
        folders: sweeps (``runs/losses``) or single run directories.
        baseline: the row that the others are held against: its label (``loss=softmax``), or a value that no other row
            has (``softmax``); None: no such column.
        metrics: the columns, by full key (``lfw/tar@far=1e-3``); None: the main number of every benchmark.
        keys: what was swept, as ``[loss, loss.margin]``; None: what the jobs' names say, and what differs besides.
        rules: of intervals and tests.

    Raises:
        FileNotFoundError: a folder is not there, or holds no run.
        ValueError: no run is finished; protocol stamps that differ (the keys and values are named); two runs that are
            the same row and seed; an unknown baseline, metric or key; a setting out of range.
    """
    if not folders:
        raise ValueError("nothing to compare: give folders, as python -m facelab.compare runs/losses")
    found = read([Path(folder) for folder in folders])
    arranged = arrange(found.runs, keys)
    columns = columns_of(found.runs, metrics)
    _check_stamps(found.runs, columns)
    rows = _rows(arranged, [run.seed for run in found.unfinished])
    reference = None if baseline is None else _find(rows, baseline)
    cells, compared = _cells(rows, columns, reference, rules)
    cost_key, on_frontier = frontier(rows, cells, columns[0])
    rows = [replace(row, frontier=at) for row, at in zip(rows, on_frontier, strict=True)]
    return Comparison(
        title=", ".join(dict.fromkeys(run.sweep for run in found.runs)),
        folders=tuple(map(str, folders)),
        keys=arranged.keys,
        rows=tuple(rows),
        columns=tuple(columns),
        cells=tuple(map(tuple, cells)),
        baseline=reference,
        level=rules.level,
        comparisons=compared,
        replicates=rules.replicates,
        sensitivities=sensitivities(rows, columns, cells),
        cost_key=cost_key,
        warnings=tuple(cautions(found, arranged, rows, columns, cells)),
        unread=found.unread,
    )


def _check_stamps(runs: Sequence[Run], columns: Sequence[Column]) -> None:
    """Numbers of other protocols are other numbers: they are not put into one column."""
    for name in dict.fromkeys(column.benchmark for column in columns):
        measured = [run for run in runs if name in run.scores]
        for run in measured[1:]:
            one, other = measured[0].scores[name].stamp, run.scores[name].stamp
            differing = compare_stamps(one, other)
            if differing:
                shown = ", ".join(f"{key}: {one.get(key, '–')} / {other.get(key, '–')}" for key in differing)
                raise ValueError(
                    f"{name} was measured by different protocols in {measured[0].path} and {run.path} ({shown}): "
                    "evaluate the checkpoints alike (python -m facelab.evaluate), leave runs out, or choose other "
                    "columns with metrics=[…]"
                )


def _rows(arranged: Arranged, unfinished: Sequence[int | None]) -> list[Row]:
    everywhere = {run.seed for _, runs in arranged.rows for run in runs} | set(unfinished)
    rows = []
    for choices, runs in arranged.rows:
        # A row without seeds (published weights) lacks none.
        own = {run.seed for run in runs}
        missing = sorted(seed for seed in everywhere - own if seed is not None) if own != {None} else []
        rows.append(Row(label(choices), choices, runs, tuple(missing), cost_of(runs), False))
    return rows


def _find(rows: Sequence[Row], word: str) -> int:
    """The row that a baseline's word means."""
    exact = [i for i, row in enumerate(rows) if row.label.replace(" ", "") == word.replace(" ", "")]
    parts = [part.strip() for part in word.split(",")]
    held = [
        i
        for i, row in enumerate(rows)
        if all(
            any(part in (f"{key}={spoken(value)}", spoken(value)) for key, value in row.choices.items())
            for part in parts
        )
    ]
    for found in (exact, held):
        if len(found) == 1:
            return found[0]
    labels = "; ".join(row.label for row in (rows if not held else [rows[i] for i in held])[:8])
    raise ValueError(
        f"baseline={word}: {'no row is' if not held else f'{len(held)} rows are'} that; give one of: {labels}"
    )


# Cells


def _cells(
    rows: Sequence[Row], columns: Sequence[Column], baseline: int | None, rules: Rules
) -> tuple[list[list[Cell | None]], int]:
    """All cells, and the number of differences to the baseline that were tested."""
    made = [_column(rows, column, baseline, rules) for column in columns]
    tested = [cell.baseline for cells in made for cell in cells if cell is not None and cell.baseline is not None]
    corrected = iter(_corrected(tested, rules.level))
    for cells in made:
        for i, cell in enumerate(cells):
            if cell is not None and cell.baseline is not None:
                cells[i] = replace(cell, baseline=next(corrected))
    compared = sum(not math.isnan(difference.p) for difference in tested)
    return [list(cells) for cells in zip(*made, strict=True)], compared


def _column(rows: Sequence[Row], column: Column, baseline: int | None, rules: Rules) -> list[Cell | None]:
    values = [
        {run.seed: value for run in row.runs if not math.isnan(value := run.metrics.get(column.key, math.nan))}
        for row in rows
    ]
    steps = _steps(rows, column)
    drawn = _replicates(rows, column, rules)
    sign = -1 if column.error else 1
    means = [float(np.mean(list(one.values()))) if one else math.nan for one in values]
    best = int(np.nanargmax(sign * np.array(means)))

    def difference(one: int, other: int) -> Difference | None:
        if not values[one] or not values[other]:
            return None
        shared = [seed for seed in values[one] if seed in values[other]]
        first, second = ((values[row], drawn[row], shared or list(values[row])) for row in (one, other))
        return _difference(first, second, len(shared), steps, rules.level)

    cells: list[Cell | None] = []
    for i, one in enumerate(values):
        if not one:
            cells.append(None)
            continue
        summary = statistics.over_seeds(list(one.values()), rules.level, steps / math.sqrt(12))
        people = _mean(drawn[i], one)
        around = UNKNOWN if people is None else statistics.percentiles(people, rules.level)
        notes = dict.fromkeys(note for run in rows[i].runs if (note := _note(run, column)))
        held = None if baseline is None or i == baseline else difference(i, baseline)
        to_best = None if i == best else difference(i, best)
        equal = means[i] == means[best]
        cells.append(
            Cell(
                one, summary.mean, summary.std, summary.interval, around, held, to_best, equal, i == best, tuple(notes)
            )
        )
    beside = [cell.to_best for cell in cells if cell is not None and cell.to_best is not None]
    corrected = iter(_corrected(beside, rules.level))
    for i, cell in enumerate(cells):
        if cell is not None and cell.to_best is not None:
            to_best = next(corrected)
            cells[i] = replace(cell, to_best=to_best, close=bool(to_best.test) and not to_best.significant)
    return cells


Side = tuple[Mapping[int | None, float], Mapping[int | None, np.ndarray], list[int | None]]


def _difference(one: Side, other: Side, shared: int, steps: float, level: float) -> Difference:
    """Over the seeds that both rows have; where these are fewer than two, over people.

    Args:
        one: seed → number, seed → replicates (R,), and the seeds that count: the shared ones, or all without any.
        other: the same of the other row.
        shared: how many seeds both have.
        steps: in which the numbers come.
        level: of the intervals.
    """
    numbers = [np.array([values[seed] for seed in seeds]) for values, _, seeds in (one, other)]
    between = numbers[0] - numbers[1] if shared else np.array([numbers[0].mean() - numbers[1].mean()])
    grain = steps / math.sqrt(6)  # of a difference of two rounded numbers
    mean, std, interval, p = statistics.over_seeds(between, level, grain)
    test = "seeds" if shared > 1 else ""
    around = UNKNOWN
    people = [_mean(drawn, seeds) for _, drawn, seeds in (one, other)]
    if people[0] is not None and people[1] is not None:
        drawn = people[0] - people[1]
        around = statistics.percentiles(drawn, level)
        if not test:
            p = statistics.resampled_p(mean, drawn)
            test = "" if math.isnan(p) else "subjects"
    spread = max(std, grain) if test == "seeds" else math.nan
    return Difference(
        mean=mean,
        std=std,
        count=shared,
        interval=interval,
        subjects=around,
        p=p,
        test=test,
        corrected=p,
        significant=False,
        needed=statistics.needed(spread, mean, level),
        visible=statistics.visible(spread, shared, level),
    )


def _corrected(differences: Sequence[Difference], level: float) -> list[Difference]:
    """The same with Holm's p-values."""
    corrected = statistics.holm([difference.p for difference in differences])
    return [
        replace(difference, corrected=float(p), significant=bool(p < 1 - level))
        for difference, p in zip(differences, corrected, strict=True)
    ]


def _note(run: Run, column: Column) -> str | None:
    scores = run.scores.get(column.benchmark)
    return None if scores is None else scores.notes.get(column.key)


# The people


def _trials(run: Run, column: Column) -> Trials | None:
    scores = run.scores.get(column.benchmark)
    return scores.trials if scores is not None and scores.main == column.key else None


def _steps(rows: Sequence[Row], column: Column) -> float:
    """In which steps the number comes: 1/N of a share of N trials, 0 where that is not known."""
    for row in rows:
        for run in row.runs:
            trials = _trials(run, column)
            if trials is not None:
                return 1 / float(trials.weight.sum())
    counted = [column.stamp[key] for key in ("genuine", "images", "probes") if isinstance(column.stamp.get(key), int)]
    return 1 / counted[0] if column.share and counted else 0.0


def _replicates(rows: Sequence[Row], column: Column, rules: Rules) -> list[dict[int | None, np.ndarray]]:
    """Of each row, seed → (R,) numbers over people who are drawn anew; of runs that say whose the trials are."""
    nothing: list[dict[int | None, np.ndarray]] = [{} for _ in rows]
    known = [
        (i, run.seed, trials) for i, row in enumerate(rows) for run in row.runs if (trials := _trials(run, column))
    ]
    if not rules.replicates or not known:
        return nothing
    first = known[0][2]
    held = [one for one in known if _alike(first, one[2])]
    numbers = statistics.replicate(
        np.stack([trials.value for _, _, trials in held], axis=1),
        *(first.weight, first.one, first.other, first.stratum),
        replicates=rules.replicates,
        seed=rules.seed,
    )
    for (i, seed, _), drawn in zip(held, numbers.T, strict=True):
        nothing[i][seed] = drawn
    return nothing


def _alike(one: Trials, other: Trials) -> bool:
    """Whether two runs were asked the same, trial by trial."""
    arrays = ("weight", "one", "other", "stratum")
    pairs: list[tuple[Any, Any]] = [(getattr(one, name), getattr(other, name)) for name in arrays]
    return one.unit == other.unit and all(a is b or np.array_equal(a, b) for a, b in pairs)


def _mean(drawn: Mapping[int | None, np.ndarray], seeds: Iterable[int | None]) -> np.ndarray | None:
    """(R,) means over seeds; None unless all are there."""
    seeds = list(seeds)
    return np.mean([drawn[seed] for seed in seeds], axis=0) if seeds and all(seed in drawn for seed in seeds) else None
