"""A comparison as tables of words: what the terminal, Markdown and LaTeX write, each in its own way."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from facelab.compare.results import Cell, Column, Comparison, Difference, Interval
from facelab.compare.rows import NONE, spoken

BEST, CLOSE, SIGNIFICANT, FRONTIER = "★", "≈", "*", "●"
FINE = 0.01  # shares within this of 0 or 1 are shown with a digit more


@dataclass(frozen=True)
class Entry:
    """A table's cell: its words, whether they are the best of the column, and a mark behind them."""

    text: str
    bold: bool = False
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table in words.

    Attributes:
        title: a line above it.
        head: a word for each column.
        rows: each as long as the head.
        left: how many columns, from the left, are words; the others are numbers.
        notes: lines below it: what its marks mean.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    left: int
    notes: tuple[str, ...]


def tables(comparison: Comparison) -> Iterator[Table]:
    """The results, the differences to the baseline, the tests behind both, and the costs."""
    yield _results(comparison)
    if comparison.baseline is not None:
        yield _differences(comparison)
    if len(comparison.rows) > 1:
        yield _tests(comparison)
    yield _costs(comparison)


def number(value: float, column: Column, signed: bool = False) -> str:
    """A number of a column as it is shown, without unit; shares in per cent."""
    if math.isnan(value):
        return NONE
    sign = "+" if signed else ""
    if column.share:
        return f"{100 * value:{sign}.2f}" if not _is_fine(column, value, signed) else f"{100 * value:{sign}.3f}"
    return f"{value:{sign}.4g}"


def interval(bounds: Interval, column: Column, signed: bool = False) -> str:
    """Bounds as they are shown; a dash where they are not known."""
    if any(math.isnan(bound) for bound in bounds):
        return NONE
    return f"[{', '.join(number(bound, column, signed) for bound in bounds)}]"


def p_value(p: float) -> str:
    """A p-value in two digits."""
    if math.isnan(p):
        return NONE
    return "<0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def seeds(count: float) -> str:
    """A number of seeds; beyond a thousand nobody trains them."""
    if math.isnan(count):
        return NONE
    return f"{count:.0f}" if count <= 1000 else ">1000"


def _is_fine(column: Column, value: float, signed: bool) -> bool:
    return column.error and not signed and abs(value) < FINE


def _head(column: Column) -> str:
    return f"{column.title} %" if column.share else column.title


def _keys(comparison: Comparison) -> tuple[str, ...]:
    return comparison.keys or ("run",)


def _choices(comparison: Comparison, row: int) -> tuple[Entry, ...]:
    if not comparison.keys:
        return (Entry(comparison.rows[row].label),)
    values = comparison.rows[row].choices
    return tuple(Entry(NONE if values[key] is None else spoken(values[key])) for key in comparison.keys)


def _results(comparison: Comparison) -> Table:
    rows = []
    for i, cells in enumerate(comparison.cells):
        found = tuple(_entry(cell, column) for cell, column in zip(cells, comparison.columns, strict=True))
        rows.append((*_choices(comparison, i), Entry(str(len(comparison.rows[i].runs))), *found))
    several = any(len(row.runs) > 1 for row in comparison.rows)
    notes = [f"mean{' ± standard deviation over seeds' * several}"]
    if len(comparison.rows) > 1:
        notes[0] += (
            f"; {BEST} best; {CLOSE} not significantly worse than best ({_rule(comparison)}, Holm over the rows)"
        )
    noted = {
        f"{column.key} of {row.label}: {note}": None
        for row, cells in zip(comparison.rows, comparison.cells, strict=True)
        for column, cell in zip(comparison.columns, cells, strict=True)
        for note in (cell.notes if cell is not None else ())
    }
    notes += list(noted)[:3] + [f"and {len(noted) - 3} more notes"] * (len(noted) > 3)
    keys = _keys(comparison)
    return Table(
        comparison.title, (*keys, "seeds", *map(_head, comparison.columns)), tuple(rows), len(keys), tuple(notes)
    )


def _rule(comparison: Comparison) -> str:
    alpha = f"{1 - comparison.level:.2g}"
    return f"paired t-test over seeds, of single runs a bootstrap over the test's people, p ≥ {alpha}"


def _entry(cell: Cell | None, column: Column) -> Entry:
    if cell is None:
        return Entry(NONE)
    spread = "" if math.isnan(cell.std) else f" ± {number(cell.std, column)}"
    close = cell.close and not cell.best
    return Entry(f"{number(cell.mean, column)}{spread}", cell.best, BEST if cell.best else CLOSE if close else "")


def _differences(comparison: Comparison) -> Table:
    assert comparison.baseline is not None
    rows = []
    for i, cells in enumerate(comparison.cells):
        found = []
        for cell, column in zip(cells, comparison.columns, strict=True):
            held = None if cell is None else cell.baseline
            found.append(
                Entry("baseline" if i == comparison.baseline else NONE) if held is None else _held(held, column)
            )
        rows.append((*_choices(comparison, i), *found))
    name = comparison.rows[comparison.baseline].label
    level = f"{100 * comparison.level:g} %"
    notes = (
        f"difference and its {level} interval over seeds (of single runs over people), in points of per cent where the "
        f"number is a share; {SIGNIFICANT} significant, corrected for {comparison.comparisons} comparisons (Holm)",
    )
    keys = _keys(comparison)
    heads = (*keys, *(column.title for column in comparison.columns))
    return Table(f"differences to {name}", heads, tuple(rows), len(keys), notes)


def _held(held: Difference, column: Column) -> Entry:
    bounds = held.interval if held.test == "seeds" else held.subjects
    around = interval(bounds, column, signed=True)
    text = number(held.mean, column, signed=True)
    return Entry(text if around == NONE else f"{text} {around}", False, SIGNIFICANT if held.significant else "")


def _tests(comparison: Comparison) -> Table:
    """A line for every difference: to the baseline where there is one, else to the best row."""
    rows: list[tuple[Entry, ...]] = []
    for i, cells in enumerate(comparison.cells):
        for cell, column in zip(cells, comparison.columns, strict=True):
            held = None if cell is None else cell.to_best if comparison.baseline is None else cell.baseline
            if held is None:
                continue
            over = (interval(held.interval, column, True), interval(held.subjects, column, True))
            shown = [Entry(text) for text in (number(held.mean, column, True), str(held.count), *over, p_value(held.p))]
            shown.append(Entry(p_value(held.corrected), False, SIGNIFICANT * held.significant))
            shown += [Entry(seeds(held.needed)), Entry(number(held.visible, column))]
            rows.append((*_choices(comparison, i), Entry(column.title), *shown))
    against = "the best row" if comparison.baseline is None else comparison.rows[comparison.baseline].label
    family = (
        "over the rows of a column" if comparison.baseline is None else f"over {comparison.comparisons} comparisons"
    )
    units = {
        f"{column.units:,} {column.unit} of {column.benchmark}": None for column in comparison.columns if column.unit
    }
    notes = [
        f"over seeds: {100 * comparison.level:g} % t-interval of paired seeds, what training again would give; over "
        "people: bootstrap, what other people would give with these networks"
        + (f" ({', '.join(units)}; {comparison.replicates:,} draws)" if units and comparison.replicates else ""),
        f"Holm: p corrected {family}; needed: seeds of each for a difference of this size to be found with a power of "
        "80 %; visible: the smallest difference that these seeds find with it",
    ]
    keys = _keys(comparison)
    head = (*keys, "number", "difference", "seeds", "over seeds", "over people", "p", "Holm", "needed", "visible")
    return Table(f"tests against {against}", head, tuple(rows), len(keys) + 1, tuple(notes))


def _costs(comparison: Comparison) -> Table:
    rows = []
    for i, row in enumerate(comparison.rows):
        cost, cell, column = row.cost, comparison.cells[i][0], comparison.columns[0]
        texts = (
            NONE if cell is None else number(cell.mean, column),
            _plain(cost.images_per_s, 1, ",.0f"),
            _plain(cost.device_hours, 1, ".3g"),
            _plain(cost.peak_memory, 2**30, ".2f"),
            _plain(cost.parameters, 1e6, ".2f"),
            f"{cost.devices} × {cost.device}" if cost.device else NONE,
        )
        at = FRONTIER if row.frontier else ""
        rows.append((*_choices(comparison, i), Entry(texts[0], False, at), *map(Entry, texts[1:])))
    keys = _keys(comparison)
    head = (*keys, _head(comparison.columns[0]), "images/s", "device hours", "peak GiB", "M parameters", "device")
    words = {"device_hours": "device hours", "parameters": "parameters"}
    notes = ["means over seeds, of training; memory: the largest"]
    if comparison.cost_key:
        both = f"{comparison.columns[0].title} and {words[comparison.cost_key]}"
        notes.append(f"{FRONTIER} on the Pareto front of {both}: no row is better in one and as good in the other")
    return Table("cost", head, tuple(rows), len(keys), tuple(notes))


def _plain(value: float, unit: float, digits: str) -> str:
    return NONE if math.isnan(value) else f"{value / unit:{digits}}"


def remarks(comparison: Comparison) -> list[str]:
    """What has to be said, and which folders were left out, as lines."""
    left_out = [f"{path} is left out: {reason}" for path, reason in comparison.unread]
    return [*comparison.warnings, *left_out]
