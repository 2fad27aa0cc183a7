"""Publishes a comparison through a logger, as a run beside those that it compares: `facelab.compare … logger=wandb`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from facelab.compare.pictures import drawn, settings
from facelab.compare.results import Cell, Column, Comparison, Cost, Difference, Row
from facelab.compare.results import Run as Compared
from facelab.training.exhibit import Exhibit, Table, pixels

FOLDER = "comparison"  # the logger's own, in the folder of the sweep: a run directory of it knows another id
JOB_TYPE = "compare"
TABLES = "comparison"  # the sections of the dashboard: tables,
PLOTS = "plots"  # and pictures


def publish(comparison: Comparison, logger: Callable[..., Any], folder: Path) -> str | None:
    """Hands the comparison to a logger.

    Published again, it is a further row of the same run: what was compared before stays to be looked at.

    Args:
        comparison: all of it.
        logger: makes one (see `facelab.training.logging.Logger`); gets run, config, group, job, job_type and tags.
        folder: of the sweep; the logger's files go into its folder comparison/.

    Returns:
        The run's id there, or None where it has none.

    Raises:
        ValueError: the logger cannot be started.
    """
    sweeps = sorted({run.sweep for run in comparison.runs})
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    made = logger(
        run=folder / FOLDER,
        config=_config(comparison),
        group=" ".join(sweeps),  # of a single sweep: in one group with its runs
        job=f"comparison of {' and '.join(sweeps)}",
        job_type=JOB_TYPE,
        tags=[JOB_TYPE, *(column.benchmark for column in comparison.columns)],
    )
    ended = False
    try:
        made.follow([])
        made.publish(exhibit(comparison))
        ended = True
    finally:
        made.finish(ended)
    print(f"published as {made.identity or made.name}: {made.where}", flush=True)
    return made.identity


def exhibit(comparison: Comparison) -> Exhibit:
    """Its numbers, tables and pictures.

    Numbers are `<row>/<column>`, means over seeds. Tables: `results` (a line for each row and column), `tests` (for
    each difference), `cost` and `runs`. Shares are fractions.
    """
    numbers = {
        f"{row.label}/{column.key}": cell.mean for row, column, cell in _cells(comparison) if not math.isnan(cell.mean)
    }
    tables = {"results": _results(comparison), "tests": _tests(comparison), "cost": _costs(comparison)}
    tables |= {"runs": _runs(comparison)}
    if comparison.warnings or comparison.unread:
        said = [*comparison.warnings, *(f"{path}: {reason}" for path, reason in comparison.unread)]
        tables["warnings"] = Table(("warning",), [(text,) for text in said])
    with settings():
        pictures = {f"{PLOTS}/{picture.name}": pixels(figure) for picture, figure in drawn(comparison)}
    return Exhibit(numbers, {f"{TABLES}/{key}": table for key, table in tables.items()}, pictures, final=False)


def _config(comparison: Comparison) -> dict[str, Any]:
    """What was compared, and how."""
    baseline = None if comparison.baseline is None else comparison.rows[comparison.baseline].label
    return {
        "folders": list(comparison.folders),
        "keys": list(comparison.keys),
        "rows": [row.label for row in comparison.rows],
        "columns": [column.key for column in comparison.columns],
        "stamps": {column.benchmark: dict(column.stamp) for column in comparison.columns},
        "baseline": baseline,
        "level": comparison.level,
        "comparisons": comparison.comparisons,
        "replicates": comparison.replicates,
    }


def _cells(comparison: Comparison) -> Iterator[tuple[Row, Column, Cell]]:
    for row, cells in zip(comparison.rows, comparison.cells, strict=True):
        for column, cell in zip(comparison.columns, cells, strict=True):
            if cell is not None:
                yield row, column, cell


def _results(comparison: Comparison) -> Table:
    names = ("column", "seeds", "mean", "std", "low", "high", "people low", "people high", "best", "not worse", "notes")
    rows = [
        [
            *_choices(row, comparison),
            *(column.key, float(cell.count), *_known(cell.mean, cell.std, *cell.interval, *cell.subjects)),
            *("yes" if cell.best else "", "yes" if cell.close else "", "; ".join(cell.notes)),
        ]
        for row, column, cell in _cells(comparison)
    ]
    return Table(("row", *comparison.keys, *names), rows)


def _tests(comparison: Comparison) -> Table:
    names = ("difference", "std", "seeds", "low", "high", "people low", "people high", "p", "corrected", "significant")
    rows = [
        [row.label, column.key, to, *_difference(difference)]
        for row, column, cell in _cells(comparison)
        for to, difference in (("baseline", cell.baseline), ("best", cell.to_best))
        if difference is not None
    ]
    return Table(("row", "column", "to", *names, "test", "seeds needed", "visible"), rows)


def _difference(one: Difference) -> list[float | str | None]:
    return [
        *_known(one.mean, one.std, float(one.count), *one.interval, *one.subjects, one.p, one.corrected),
        *("yes" if one.significant else "", one.test, *_known(one.needed, one.visible)),
    ]


def _costs(comparison: Comparison) -> Table:
    names = ("images/s", "device hours", "peak memory GB", "parameters", "devices", "device", "Pareto front")
    rows = [[*_choices(row, comparison), *_cost(row.cost), "yes" if row.frontier else ""] for row in comparison.rows]
    return Table(("row", *comparison.keys, *names), rows)


def _cost(cost: Cost) -> list[float | str | None]:
    memory = cost.peak_memory / 2**30
    return [
        *_known(cost.images_per_s, cost.device_hours, memory, cost.parameters, float(cost.devices)),
        cost.device,
    ]


def _runs(comparison: Comparison) -> Table:
    """Which runs the rows are made of, and where they lie; by their ids they are found at W&B."""
    keys = [column.key for column in comparison.columns]
    rows = [
        [row.label, None if run.seed is None else float(run.seed), str(run.path), run.wandb, *_of(run, keys)]
        for row in comparison.rows
        for run in row.runs
    ]
    return Table(("row", "seed", "run directory", "W&B id", *keys), rows)


def _of(run: Compared, keys: list[str]) -> list[float | None]:
    return _known(*(run.metrics.get(key, math.nan) for key in keys))


def _choices(row: Row, comparison: Comparison) -> list[float | str | None]:
    values = [row.choices.get(key) for key in comparison.keys]
    return [row.label, *(None if value is None else value if _number(value) else str(value) for value in values)]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _known(*values: float) -> list[float | None]:
    """Cells of numbers; what cannot be told is empty."""
    return [None if math.isnan(value) else float(value) for value in values]
