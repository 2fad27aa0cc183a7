"""Pictures of how much: every row's number with its intervals, and against what it cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from facelab.compare import looks
from facelab.compare.results import Cell, Comparison
from facelab.report import style

ROWS = 40  # of the picture of intervals; of more, the best ones
COSTS = {"device_hours": "device hours of training", "parameters": "parameters"}


def intervals(comparison: Comparison) -> Figure | None:
    """Each row's mean with two intervals in every column: thick over seeds, thin over the test's people.

    A filled dot is the best, or not significantly worse; dots in grey are single seeds; dashed is the baseline.
    """
    there = [any(map(looks.known, comparison.column(number))) for number in range(len(comparison.columns))]
    columns = np.flatnonzero(there).tolist()[: looks.PANELS]
    rows = sorted(looks.ranked(comparison)[:ROWS])
    if not columns or not rows:
        return None
    labels = looks.names(comparison)
    across = looks.side_by_side(len(columns))
    down = -(-len(columns) // across)
    names = 0.075 * max(len(labels[row]) for row in rows)
    size = (max(across * 2.5, 4) + names, down * (0.21 * len(rows) + 0.85))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    places = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for i, (axes, number) in enumerate(zip(places, columns, strict=False)):
        _panel(axes, comparison, number, rows)
        if i % across == 0:
            axes.set_yticks(range(len(rows)), [labels[row] for row in rows])
        axes.tick_params(axis="y", length=0, labelleft=i % across == 0)
    for unused in places[len(columns) :]:
        unused.remove()
    return figure


def _panel(axes: Axes, comparison: Comparison, number: int, rows: Sequence[int]) -> None:
    column = comparison.columns[number]
    cells = [comparison.cells[row][number] for row in rows]
    axes.set_title(looks.shortened(column.title, 30))
    axes.set_xlabel(looks.unit(column))
    axes.grid(visible=False, axis="y")
    reach = []
    for place, cell in enumerate(cells):
        if cell is None or not looks.known(cell):
            continue
        mean, one = float(looks.scaled(column, cell.mean)), looks.scaled(column, list(cell.values.values()))
        people, seeds = looks.scaled(column, cell.subjects), looks.scaled(column, cell.interval)
        axes.hlines(place, *people, color=style.BLUE, linewidth=1)
        axes.hlines(place, *seeds, color=style.BLUE, linewidth=3.6, alpha=0.4)
        if len(one) > 1:
            axes.plot(one, np.full(len(one), place), "o", color=style.GREY, markersize=2, alpha=0.8)
        face = style.BLUE if cell.close else "white"
        axes.plot(mean, place, "o", markersize=5.5, color=style.BLUE, markerfacecolor=face, zorder=3)
        reach += [mean, *one, *people[np.isfinite(people)]]
    base = None if comparison.baseline is None else comparison.cells[comparison.baseline][number]
    if base is not None and looks.known(base):
        axes.axvline(float(looks.scaled(column, base.mean)), color=style.INK, linewidth=0.9, linestyle=style.DASHED)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(style.plain)
    if reach:
        seeds = np.array([looks.scaled(column, cell.interval) for cell in cells if cell is not None]).ravel()
        axes.set_xlim(*_limits(reach, seeds[np.isfinite(seeds)].tolist()))


def _limits(reach: Sequence[float], intervals: Sequence[float]) -> tuple[float, float]:
    """All numbers, and of the intervals over seeds as much as leaves the numbers half of the panel's width.

    Of two seeds they have 13 standard deviations to either side.
    """
    low, high = min(reach), max(reach)
    room = 0.5 * (high - low) or 0.1
    outer = max(min([low, *intervals]), low - room), min(max([high, *intervals]), high + room)
    return outer[0] - 0.1 * room, outer[1] + 0.1 * room


def cost(comparison: Comparison) -> Figure | None:
    """Each row's number over its cost, and the Pareto front: no other row is as good for less."""
    key = comparison.cost_key
    if not key or not comparison.columns:
        return None
    paid = np.array([getattr(row.cost, key) for row in comparison.rows], dtype=np.float64)
    columns = [number for number in range(len(comparison.columns)) if _drawn(comparison, number, paid).any()]
    columns = columns[: looks.PANELS]
    amounts = paid[np.isfinite(paid) & (paid > 0)]
    if not columns or len(amounts) < 2:
        return None
    figure, places = looks.panels(len(columns))
    shown = looks.looks(comparison)
    for axes, number in zip(places, columns, strict=True):
        _cost_panel(axes, comparison, number, paid, shown)
        _cost_axis(axes, amounts)
        axes.set_xlabel(COSTS.get(key, key))
    there = {row for number in columns for row in np.flatnonzero(_drawn(comparison, number, paid)).tolist()}
    named = [one for number, one in shown.items() if number in there]
    looks.legend(figure, named, line=False, marker=True, more=len(there - set(shown)))
    return figure


def _drawn(comparison: Comparison, number: int, paid: np.ndarray) -> np.ndarray:
    """(rows,) which rows have both."""
    return np.isfinite(paid) & (paid > 0) & np.array([looks.known(cell) for cell in comparison.column(number)])


def _cost_panel(
    axes: Axes, comparison: Comparison, number: int, paid: np.ndarray, shown: dict[int, looks.Look]
) -> None:
    column, cells = comparison.columns[number], comparison.column(number)
    axes.set_title(looks.shortened(column.title, 36))
    axes.set_ylabel(looks.unit(column))
    rows = np.flatnonzero(_drawn(comparison, number, paid)).tolist()
    values = {row: float(looks.scaled(column, _mean(cells[row]))) for row in rows}
    for row in sorted(rows, key=lambda row: row in shown):
        one = shown.get(row, looks.OTHERS)
        axes.plot(paid[row], values[row], one.marker, color=one.color, markersize=6.5, clip_on=False, zorder=3)
    best = front(paid[rows], np.array([values[row] for row in rows]), column.error)
    line = [rows[place] for place in best]
    axes.step(paid[line], [values[row] for row in line], where="post", color=style.GREY, linewidth=1, zorder=1)


def _mean(cell: Cell | None) -> float:
    return np.nan if cell is None else cell.mean


def front(paid: np.ndarray, values: np.ndarray, error: bool) -> list[int]:
    """Places of the points that no other point is at least as good and as cheap as, and better in one: by cost.

    Args:
        paid: (n,) lower is better.
        values: (n,)
        error: whether lower values are better.
    """
    good = -values if error else values
    found: list[int] = []
    for place in np.lexsort((-good, paid)):
        if not found or good[place] > good[found[-1]]:
            found.append(int(place))
        elif good[place] == good[found[-1]] and paid[place] == paid[found[-1]]:
            found.append(int(place))  # its twin: neither is better than the other
    return found


def _cost_axis(axes: Axes, amounts: np.ndarray) -> None:
    if amounts.max() > 3 * amounts.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(amounts.min() / 1.25, amounts.max() * 1.25)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        room = 0.08 * float(np.ptp(amounts)) or 0.1 * float(amounts.max())
        axes.set_xlim(amounts.min() - room, amounts.max() + room)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.count(value)))
