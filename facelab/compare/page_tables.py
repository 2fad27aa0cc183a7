"""The tables of a comparison's page, and below each in a sentence or two how its numbers came about."""

from __future__ import annotations

import math

from facelab.compare import markup
from facelab.compare.markup import Head, Value
from facelab.compare.results import Cell, Column, Comparison, Cost, Difference, Interval
from facelab.compare.rows import NONE
from facelab.compare.tables import BEST, CLOSE, FRONTIER, SIGNIFICANT, interval, number, p_value, seeds
from facelab.report import style

NOTHING = Value(NONE, math.nan)
NOTES = 8  # shown below the results; all stand in the records


def main(comparison: Comparison) -> str:
    """Rows are what differs, columns what was measured; below a number its difference to the baseline."""
    several = len(comparison.rows) > 1
    heads = [Head(", ".join(comparison.keys) or "row"), Head("seeds", falling=True)]
    heads += [Head(column.title, _unit(column), falling=not column.error) for column in comparison.columns]
    rows = []
    for place, row in enumerate(comparison.rows):
        base = "baseline" if place == comparison.baseline else ""
        missing = f"without {', '.join(map(str, row.missing))}" if row.missing else ""
        values = [Value(row.label, None, base, base), Value(str(len(row.runs)), len(row.runs), "", missing, True)]
        pairs = zip(comparison.columns, comparison.cells[place], strict=True)
        rows.append(values + [_main_cell(column, cell, several) for column, cell in pairs])
    return markup.table("results", heads, rows) + markup.paragraphs(_main_notes(comparison), "note")


def _unit(column: Column) -> str:
    return ", ".join(part for part in ("%" if column.share else "", "lower is better" if column.error else "") if part)


def _main_cell(column: Column, cell: Cell | None, several: bool) -> Value:
    if cell is None or math.isnan(cell.mean):
        return NOTHING
    text = _number(column, cell.mean) + ("" if math.isnan(cell.std) else f" ± {_number(column, cell.std)}")
    # Before the number, so that numbers stand below each other.
    mark, sign = ("best", f"{BEST} ") if cell.best else ("close", f"{CLOSE} ") if cell.close else ("", "")
    change, below = cell.baseline, ""
    if change is not None:
        around = _interval(column, change.interval if change.test == "seeds" else change.subjects, signed=True)
        below = _number(column, change.mean, signed=True) + ("" if around == NONE else f" {around}")
        below += f" {SIGNIFICANT}" * change.significant
    strong = change is not None and change.significant
    return Value(sign * several + text + "†" * bool(cell.notes), cell.mean, mark * several, below, strong)


def _main_notes(comparison: Comparison) -> list[str]:
    """What the numbers are, in words."""
    seeds_there = any(len(row.runs) > 1 for row in comparison.rows)
    alpha = f"{100 * (1 - comparison.level):.3g} %"
    told = ["Mean ± standard deviation over seeds (n − 1 in the denominator)." if seeds_there else "One run a row."]
    if len(comparison.rows) > 1:
        told[0] += (
            f" {BEST} is the best mean of a column; {CLOSE} is not significantly worse than it (at {alpha}, paired "
            "over seeds, or over the test's people where there is one seed; corrected by Holm's method for the rows of "
            "the column). That is no proof of being as good: few seeds show large differences only."
        )
    if comparison.baseline is not None and len(comparison.rows) > 1:
        told.append(
            f"Below each number its difference to the baseline, {comparison.rows[comparison.baseline].label}, with the "
            f"{100 * comparison.level:g} % interval: paired over the seeds that both rows have, or over the test's "
            f"people where there is one seed; {SIGNIFICANT} where the p-value, corrected by Holm's method for "
            f"{comparison.comparisons} comparisons, is below {alpha}."
        )
    notes = dict.fromkeys(
        f"† {column.title}: {note}"
        for place, column in enumerate(comparison.columns)
        for cell in comparison.column(place)
        if cell is not None
        for note in cell.notes
    )
    return told + list(notes)[:NOTES] + [f"… and {len(notes) - NOTES} more such notes."] * (len(notes) > NOTES)


def costs(comparison: Comparison) -> str:
    """A section with what rows have cost; empty where nobody knows."""
    rows = [(row, _cost_cells(row.cost)) for row in comparison.rows]
    if all(value is NOTHING for _, values in rows for value in values):
        return ""
    first = comparison.columns[0]
    heads = [Head("row"), Head(first.title, _unit(first), falling=not first.error)]
    heads += [Head("images / s", falling=True), Head("device hours"), Head("peak memory", "GiB"), Head("parameters")]
    heads.append(Head("device", words=True))
    listed = [
        [Value(row.label), NOTHING if cell is None else _one(first, cell.mean), *values, _words(_device(row.cost))]
        for (row, values), cell in zip(rows, comparison.column(0), strict=True)
    ]
    note = "Means over seeds, of memory the largest. Times are of training alone, as it ran then and there."
    if comparison.cost_key:
        heads.insert(2, Head("Pareto front"))
        for one, row in zip(listed, comparison.rows, strict=True):
            one.insert(2, Value(FRONTIER if row.frontier else "", 0.0 if row.frontier else 1.0))
        word = comparison.cost_key.replace("_", " ")
        note += f" {FRONTIER} is on the Pareto front: no other row is better in {first.title} or {word} and as good in "
        note += "the other."
    return markup.section("Cost", markup.table("costs", heads, listed) + markup.paragraphs([note], "note"))


def _cost_cells(cost: Cost) -> list[Value]:
    values = (
        (cost.images_per_s, f"{cost.images_per_s:,.0f}"),
        (cost.device_hours, f"{cost.device_hours:.3g}"),
        (cost.peak_memory, f"{cost.peak_memory / 2**30:.2f}"),
        (cost.parameters, style.count(cost.parameters)),
    )
    return [NOTHING if math.isnan(value) else Value(text, value) for value, text in values]


def _device(cost: Cost) -> str:
    return f"{cost.devices} × {cost.device}" if cost.device and cost.devices > 1 else cost.device or NONE


def intervals(comparison: Comparison) -> str:
    """A line for each number: both of its intervals."""
    heads = [Head("row"), Head("column", words=True), Head("seeds", falling=True), Head("mean", falling=True)]
    heads += [Head("± std"), Head("over seeds"), Head("over people")]
    rows = []
    for row, cells in zip(comparison.rows, comparison.cells, strict=True):
        for column, cell in zip(comparison.columns, cells, strict=True):
            if cell is not None and not math.isnan(cell.mean):
                values = [_one(column, cell.mean), _one(column, cell.std)]
                values += [_pair(column, cell.interval), _pair(column, cell.subjects)]
                rows.append([Value(row.label), _words(column.title), Value(str(cell.count), cell.count), *values])
    drawn = dict.fromkeys(f"{c.benchmark}: {c.units:,} {c.unit}" for c in comparison.columns if c.unit)
    note = (
        f"Over seeds: Student's t-interval of the mean, {100 * comparison.level:g} %: what training again would give "
        f"on the same test. Over people: {comparison.replicates:,} bootstrap replicates in which the test's people are "
        "drawn anew (a pair counts as often as one of its people times the other): what other people would give, with "
        "these very networks."
    )
    return markup.table("intervals", heads, rows) + markup.paragraphs([note, "; ".join(drawn)], "note")


def differences(comparison: Comparison, to_best: bool) -> str:
    """A line for each difference to the baseline, or to the best row of a column."""
    heads = [Head("row"), Head("column", words=True), Head("difference", falling=True), Head("seeds", falling=True)]
    heads += [
        Head("over seeds"),
        Head("over people"),
        Head("p"),
        Head("p, Holm"),
        Head("seeds needed"),
        Head("visible"),
    ]
    rows = []
    for row, cells in zip(comparison.rows, comparison.cells, strict=True):
        for column, cell in zip(comparison.columns, cells, strict=True):
            change = None if cell is None else cell.to_best if to_best else cell.baseline
            if change is not None:
                rows.append([Value(row.label), _words(column.title), *_difference(column, change)])
    scope = "the rows of a column" if to_best else f"{comparison.comparisons} comparisons"
    note = (
        "Positive is more, which of an error rate is worse. p is two-sided: of a paired t-test over the seeds that "
        "both rows have (runs of one seed see the same images), of a single seed of the bootstrap over people. Holm's "
        f"method corrects it for {scope}; in bold where it is below {100 * (1 - comparison.level):.3g} %. Seeds "
        "needed: as many of each row would show a difference of this size with a power of 80 %; visible is the "
        "smallest difference that the seeds at hand would show with that power."
    )
    return markup.table("to-best" if to_best else "to-baseline", heads, rows) + markup.paragraphs([note], "note")


def _difference(column: Column, change: Difference) -> list[Value]:
    return [
        _one(column, change.mean, signed=True),
        Value(str(change.count), change.count),
        _pair(column, change.interval, signed=True),
        _pair(column, change.subjects, signed=True),
        Value(p_value(change.p), change.p),
        Value(p_value(change.corrected), change.corrected, "strong" if change.significant else ""),
        Value(seeds(change.needed), change.needed),
        _one(column, change.visible),
    ]


def protocols(comparison: Comparison) -> str:
    """What each benchmark's stamp says."""
    parts = []
    for column in {column.benchmark: column for column in comparison.columns}.values():
        stamp = ", ".join(f"{key}: {value}" for key, value in column.stamp.items())
        parts.append(f"{column.benchmark} – {stamp or 'no stamp'}")
    return markup.listed(parts)


def runs(comparison: Comparison) -> str:
    """A line for each run."""
    heads = [Head("row"), Head("seed"), *(Head(column.title, _unit(column), True) for column in comparison.columns)]
    heads += [Head("directory", words=True), Head("W&B", words=True)]
    rows = []
    for row in comparison.rows:
        for run in row.runs:
            seed = Value(NONE, math.nan) if run.seed is None else Value(str(run.seed), run.seed)
            values = [_one(column, run.metrics.get(column.key, math.nan)) for column in comparison.columns]
            rows.append([Value(row.label), seed, *values, _words(str(run.path)), _words(run.wandb or NONE)])
    return markup.table("runs", heads, rows)


# Numbers as all formats show them, with a minus in place of a hyphen


def _number(column: Column, value: float, signed: bool = False) -> str:
    return number(value, column, signed).replace("-", "−")


def _interval(column: Column, bounds: Interval, signed: bool = False) -> str:
    return interval(bounds, column, signed).replace("-", "−")


def _one(column: Column, value: float, signed: bool = False) -> Value:
    return Value(_number(column, value, signed), value)


def _pair(column: Column, bounds: Interval, signed: bool = False) -> Value:
    """Sorted by its lower bound."""
    return Value(_interval(column, bounds, signed), math.nan if math.isnan(bounds[1]) else bounds[0])


def _words(text: str) -> Value:
    return Value(text, None, "words")
