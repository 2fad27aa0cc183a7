"""What has to be said beside a table: what is missing, and what makes rows unequal besides what is compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from facelab.compare.reading import Read
from facelab.compare.results import Cell, Column, Row, Run
from facelab.compare.rows import Arranged, spoken

SHOWN = 6


def cautions(
    found: Read,
    arranged: Arranged,
    rows: Sequence[Row],
    columns: Sequence[Column],
    cells: Sequence[Sequence[Cell | None]],
) -> Iterator[str]:
    """Whole sentences, the graver ones first."""
    yield from _unasked(arranged)
    yield from _batches(rows)
    yield from _budgets(rows)
    yield from _missing(found, rows)
    yield from _holes(rows, columns, cells)
    yield from _people(rows, columns)
    yield from _machines(rows)


def _unasked(arranged: Arranged) -> Iterator[str]:
    for key, values in list(arranged.unasked.items())[:SHOWN]:
        shown = " / ".join(map(spoken, values[:4])) + " …" * (len(values) > 4)
        yield f"runs differ in {key} ({shown}), which was not swept"
    rest = list(arranged.unasked)[SHOWN:]
    if rest:
        yield f"runs differ in {len(rest)} more keys that were not swept: {_listed(rest)}"


def _batches(rows: Sequence[Row]) -> Iterator[str]:
    """Batch norm sees what one process works on at a time: runs of one global batch may differ in that."""
    if "trainer.batch_size" in rows[0].choices:
        return
    seen: dict[int, list[Run]] = {}
    for run in _runs(rows):
        if "trainer.batch_size" in run.config:
            parts = run.cost.devices * int(run.config.get("trainer.accumulate") or 1)
            seen.setdefault(int(run.config["trainer.batch_size"]) // max(parts, 1), []).append(run)
    if len(seen) > 1:
        told = "; ".join(f"{size}: {_listed([run.job for run in runs], 3)}" for size, runs in sorted(seen.items()))
        yield f"batch norm saw batches of different sizes, trainer.batch_size by devices and accumulate ({told})"


def _budgets(rows: Sequence[Row]) -> Iterator[str]:
    """Whoever tried more settings of one option has the luckier best."""
    for key in rows[0].choices:
        others = [name for name in rows[0].choices if name != key]
        if "." in key or not others:
            continue
        settings: dict[str, int] = {}
        for row in rows:
            settings[spoken(row.choices[key])] = settings.get(spoken(row.choices[key]), 0) + 1
        if len(settings) > 1 and len(set(settings.values())) > 1:
            told = ", ".join(f"{option} {count}" for option, count in settings.items())
            yield f"unequal tuning budgets, settings of each {key}: {told}; the best of many is luckier than of few"


def _missing(found: Read, rows: Sequence[Row]) -> Iterator[str]:
    for run in found.unfinished[:SHOWN]:
        seen = run.history.get("images")
        at = f" after {int(seen[-1]):,} images" if seen is not None and len(seen) else ""
        yield f"{run.path} is unfinished{at} and left out: the same command goes on with it"
    if len(found.unfinished) > SHOWN:
        yield f"{len(found.unfinished) - SHOWN} more runs are unfinished and left out"
    for row in rows:
        if row.missing:
            yield f"{row.label} lacks seed{'s' * (len(row.missing) > 1)} {_listed(row.missing)}"
    single = [row.label for row in rows if len(row.runs) == 1]
    if single:
        who = "every row has" if len(single) == len(rows) else f"{_listed(single)}:"
        yield f"{who} a single run, which tells nothing of the spread over seeds"


def _holes(rows: Sequence[Row], columns: Sequence[Column], cells: Sequence[Sequence[Cell | None]]) -> Iterator[str]:
    for number, column in enumerate(columns):
        without = [row.label for row, one in zip(rows, cells, strict=True) if one[number] is None]
        if without:
            yield f"{column.key} was not measured of {_listed(without)}"
            continue
        partly = [
            row.label
            for row, one in zip(rows, cells, strict=True)
            if (cell := one[number]) is not None and cell.count < len(row.runs)
        ]
        if partly:
            yield f"{column.key} was not measured of every seed of {_listed(partly)}"


def _people(rows: Sequence[Row], columns: Sequence[Column]) -> Iterator[str]:
    said = {
        "pairs": "its score files do not say whose images a pair has, so pairs are drawn anew in place of people, and "
        "intervals over the test are too narrow; evaluate again for better ones",
        "linked images": "its file names nobody, so people are told by their genuine pairs alone, and intervals over "
        "the test are a little too narrow",
    }
    for column in columns:
        if column.unit in said:
            yield f"{column.benchmark}: {said[column.unit]}"


def _machines(rows: Sequence[Row]) -> Iterator[str]:
    devices = sorted({run.cost.device for run in _runs(rows)} - {""})
    if len(devices) > 1:
        yield f"runs were on different machines ({_listed(devices)}): images/s and hours do not compare"
    for what, values in (("commits of facelab", _commits(rows)), ("versions of torch", _versions(rows, "torch"))):
        if len(values) > 1:
            yield f"runs are of {len(values)} {what} ({_listed(sorted(values), 4)})"


def _commits(rows: Sequence[Row]) -> set[str]:
    commits = [(run.environment.get("git") or {}).get("commit") for run in _runs(rows)]
    return {commit[:10] for commit in commits if commit}


def _versions(rows: Sequence[Row], package: str) -> set[str]:
    versions = [(run.environment.get("versions") or {}).get(package) for run in _runs(rows)]
    return {version for version in versions if version}


def _runs(rows: Sequence[Row]) -> list[Run]:
    return [run for row in rows for run in row.runs]


def _listed(things: Sequence[Any], most: int = SHOWN) -> str:
    return ", ".join(map(str, things[:most])) + (f" and {len(things) - most} more" if len(things) > most else "")
