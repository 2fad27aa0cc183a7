"""The tables of a comparison's page, and below each in a sentence or two how its numbers came about."""

from __future__ import annotations

import math

from facelab.compare import markup
from facelab.compare.markup import Head, Value
from facelab.compare.results import Cell, Column, Comparison, Cost, Difference, Interval
from facelab.report import style

NOTHING = Value("–", math.nan)


def main(comparison: Comparison) -> str:
    """Rows are what differs, columns what was measured, then what it has cost."""
    heads = [Head(", ".join(comparison.keys) or "row"), Head("seeds", falling=True)]
    heads += [Head(column.title, _unit(column), falling=not column.error) for column in comparison.columns]
    rows = []
    for number, row in enumerate(comparison.rows):
        base = number == comparison.baseline
        missing = f"without {', '.join(map(str, row.missing))}" if row.missing else ""
        values = [
            Value(row.label, None, "baseline" if base else "", "baseline" if base else ""),
            Value(str(len(row.runs)), len(row.runs), "", missing, strong=True),
        ]
        pairs = zip(comparison.columns, comparison.cells[number], strict=True)
        rows.append(values + [_main_cell(column, cell) for column, cell in pairs])
    return markup.table("results", heads, rows) + markup.paragraphs(_main_notes(comparison), "note")


def _unit(column: Column) -> str:
    return ", ".join(part for part in ("%" if column.share else "", "lower is better" if column.error else "") if part)


def _main_cell(column: Column, cell: Cell | None) -> Value:
    if cell is None or math.isnan(cell.mean):
        return NOTHING
    text = number(column, cell.mean) + ("" if math.isnan(cell.std) else f" ± {number(column, cell.std)}")
    text += "*" * bool(cell.notes)
    # Before the number, so that numbers stay below each other.
    mark, sign = ("best", "● ") if cell.best else ("close", "≈ ") if cell.close else ("", "")
    change = cell.baseline
    below = "" if change is None else f"{signed(column, change.mean)} {_shown(column, _interval(change))}".rstrip()
    return Value(sign + text, cell.mean, mark, below, strong=change is not None and change.significant)


def _interval(change: Difference) -> Interval:
    """That of the test: over seeds where there are several, else over people."""
    return change.interval if change.test == "seeds" else change.subjects


def _main_notes(comparison: Comparison) -> list[str]:
    """What the numbers are, in words."""
    several = any(len(row.runs) > 1 for row in comparison.rows)
    alpha = f"{100 * (1 - comparison.level):.3g} %"
    told = ["Mean ± standard deviation over seeds (n − 1 in the denominator)." if several else "One run a row."]
    if len(comparison.rows) > 1:
        told[0] += (
            f" ● in bold is the best mean of a column; ≈ is not significantly worse than it (at {alpha}, paired test, "
            "corrected by Holm's method for the number of rows in the column). That is no proof of being as good: few "
            "seeds show large differences only."
        )
    if comparison.baseline is not None:
        told.append(
            f"Below each number its difference to the baseline, {comparison.rows[comparison.baseline].label}, with the "
            f"{100 * comparison.level:g} % interval: paired over the seeds that both rows have, or over the test's "
            "people where there is one seed; dark where the p-value, corrected by Holm's method for "
            f"{comparison.comparisons} comparisons, is below {alpha}."
        )
    notes = dict.fromkeys(
        f"{column.title}: {note}"
        for number, column in enumerate(comparison.columns)
        for cell in comparison.column(number)
        if cell is not None
        for note in cell.notes
    )
    told += [f"* {note}" for note in list(notes)[:8]]
    return told


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
        word = comparison.cost_key.replace("_", " ")
        heads.insert(2, Head("Pareto front"))
        for one, row in zip(listed, comparison.rows, strict=True):
            one.insert(2, Value("●" if row.frontier else "", 0.0 if row.frontier else 1.0))
        note += f" ● is on the Pareto front: no other row is at least as good in {first.title} for as few {word}."
    return markup.section("Cost", markup.table("costs", heads, listed) + markup.paragraphs([note], "note"))


def _cost_cells(cost: Cost) -> list[Value]:
    values = (
        (cost.images_per_s, f"{cost.images_per_s:,.0f}"),
        (cost.device_hours, f"{cost.device_hours:.3g}"),
        (cost.peak_memory, f"{cost.peak_memory / 2**30:.2f}"),
        (cost.parameters, style.count(cost.parameters)),
    )
    return [NOTHING if math.isnan(value) else Value(text, value) for value, text in values]


def _words(text: str) -> Value:
    return Value(text, None, "words")


def _device(cost: Cost) -> str:
    return f"{cost.devices} × {cost.device}" if cost.device and cost.devices > 1 else cost.device or "–"


def intervals(comparison: Comparison) -> str:
    """A line for each number: both of its intervals."""
    heads = [Head("row"), Head("column", words=True), Head("seeds", falling=True), Head("mean", falling=True), Head("± std")]
    heads += [Head("over seeds"), Head("over people")]
    rows = []
    for row, cells in zip(comparison.rows, comparison.cells, strict=True):
        for column, cell in zip(comparison.columns, cells, strict=True):
            if cell is not None and not math.isnan(cell.mean):
                about = [Value(row.label), _words(column.title), Value(str(cell.count), cell.count)]
                about += [Value(number(column, cell.mean), cell.mean), _one(column, cell.std)]
                rows.append([*about, _pair(column, cell.interval), _pair(column, cell.subjects)])
    drawn = {
        f"{column.title}: {column.units:,} {column.unit}" for column in comparison.columns if column.unit
    }
    note = (
        f"Over seeds: Student's t-interval of the mean, {100 * comparison.level:g} %: what training again would give on "
        f"the same test. Over people: {comparison.replicates:,} bootstrap replicates in which the test's people are "
        "drawn anew (a pair of two people counts as often as the product of both): what other people would give, with "
        "these very networks."
    )
    return markup.table("intervals", heads, rows) + markup.paragraphs([note, "; ".join(sorted(drawn))], "note")


def differences(comparison: Comparison, to_best: bool) -> str:
    """A line for each difference to the baseline, or to the best row of a column."""
    heads = [Head("row"), Head("column", words=True), Head("difference", falling=True), Head("seeds", falling=True)]
    heads += [Head("over seeds"), Head("over people"), Head("p"), Head("p, Holm"), Head("seeds needed")]
    heads += [Head("visible", falling=False)]
    rows = []
    for row, cells in zip(comparison.rows, comparison.cells, strict=True):
        for column, cell in zip(comparison.columns, cells, strict=True):
            change = None if cell is None else cell.to_best if to_best else cell.baseline
            if change is not None:
                rows.append([Value(row.label), _words(column.title), *_difference(column, change)])
    scope = "its column's rows" if to_best else f"{comparison.comparisons} comparisons"
    note = (
        "Positive is more, which of an error rate is worse. p is two-sided: of a paired t-test over the seeds that both "
        "rows have (runs of one seed see the same images), of a single seed of the bootstrap over people. Holm's method "
        f"corrects it for {scope}; in bold where it is below {100 * (1 - comparison.level):.3g} %. Seeds needed: as many "
        "of each row would show a difference of this size with a power of 80 %; visible is the smallest difference that "
        "the seeds at hand would show with that power."
    )
    return markup.table("to-best" if to_best else "to-baseline", heads, rows) + markup.paragraphs([note], "note")


def _difference(column: Column, change: Difference) -> list[Value]:
    needed = change.needed
    return [
        Value(signed(column, change.mean), change.mean),
        Value(str(change.count), change.count),
        _pair(column, change.interval),
        _pair(column, change.subjects),
        Value(probability(change.p), change.p),
        Value(probability(change.corrected), change.corrected, "strong" if change.significant else ""),
        NOTHING if math.isnan(needed) else Value(f"{math.ceil(needed):,}" if needed < 1e6 else "> 1 M", needed),
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
            seed = math.nan if run.seed is None else run.seed
            values = [Value(row.label), Value("–" if run.seed is None else str(run.seed), seed)]
            values += [_one(column, run.metrics.get(column.key, math.nan)) for column in comparison.columns]
            rows.append([*values, _words(str(run.path)), _words(run.wandb or "–")])
    return markup.table("runs", heads, rows)


# Numbers in words


def number(column: Column, value: float) -> str:
    """Shares in per cent with two digits, without the sign; others in four digits."""
    return f"{100 * value:.2f}" if column.share else f"{value:.4g}"


def signed(column: Column, value: float) -> str:
    """A difference with its sign: +0.12, −0.30, 0.00."""
    text = number(column, abs(value))
    return text if not float(text) else f"{'+' if value > 0 else '−'}{text}"


def probability(p: float) -> str:
    """A p-value: 0.031, < 0.001."""
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _shown(column: Column, interval: Interval) -> str:
    if any(map(math.isnan, interval)):
        return ""
    return f"[{', '.join(number(column, bound) for bound in interval)}]".replace("-0.00", "0.00").replace("-", "−")


def _one(column: Column, value: float) -> Value:
    return NOTHING if math.isnan(value) else Value(number(column, value), value)


def _pair(column: Column, interval: Interval) -> Value:
    """Sorted by its lower bound."""
    text = _shown(column, interval)
    return Value(text, interval[0]) if text else NOTHING
