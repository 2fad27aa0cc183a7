"""Pictures of what a choice does: accuracy over pixels, over s, m or the learning rate, over two of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

from facelab.compare import looks
from facelab.compare.looks import Look
from facelab.compare.results import Cell, Column, Comparison, Line, Row, Sensitivity
from facelab.report import style

BANDS = 4  # lines up to which their intervals are shown behind them
ACROSS, DOWN = 3, 4  # columns and choices that sensitivities are drawn of
FILLED = 0.75  # of a grid, so that it is one
DEGRADED = "data.degrade.sizes"  # pixels of the training's faces
HEAT = LinearSegmentedColormap.from_list("heat", ["#f3f7fb", "#bcd9ee", style.SKY, style.BLUE, "#004c78"])
DARK, BRIGHT = "#101010", "#fdfdfd"  # words on it, whatever the page's colours


def resolution(comparison: Comparison) -> Figure | None:
    """Accuracy over the pixels of faces: of the test's, and of the training's.

    A panel for each benchmark that runs have at several resolutions, and one for each column where
    ``data.degrade.sizes`` was swept.
    """
    tested = {name: sizes for name, sizes in _families(comparison).items() if len(sizes) > 1}
    trained = _trained(comparison)
    count = len(tested) + len(trained)
    if not count:
        return None
    figure, places = looks.panels(min(count, looks.PANELS))
    shown = looks.looks(comparison) if tested else {}
    for axes, (title, sizes) in zip(places, tested.items(), strict=False):
        axes.set_title(looks.shortened(title, 36))
        _tested(axes, comparison, sizes, shown)
    words = list(dict.fromkeys(line.others for lines in trained.values() for line in lines))
    named = {others: looks.look(len(shown) + i, looks.shortened(others)) for i, others in enumerate(words)}
    for axes, (number, lines) in zip(places[len(tested) :], trained.items(), strict=False):
        column = comparison.columns[number]
        axes.set_title(looks.shortened(f"{column.title}, trained on few pixels", 36))
        _lines(axes, column, lines, named)
        _pixels(axes, np.unique(np.concatenate([line.x for line in lines])).tolist(), "pixels of the training's faces")
    given = list(shown.values()) + [one for one in named.values() if one.label]
    if given:
        more = len(comparison.rows) - len(shown) if tested else 0
        looks.legend(figure, given, marker=True, more=more)
    return figure


def _families(comparison: Comparison) -> dict[str, dict[int, int]]:
    """Title of a panel → pixels → number of the column."""
    found: dict[str, dict[int, int]] = {}
    for number, column in enumerate(comparison.columns):
        if column.size is not None:
            metric = column.key.removeprefix(f"{column.benchmark}/")
            found.setdefault(f"{column.family} {metric}", {}).setdefault(column.size, number)
    return found


def _tested(axes: Axes, comparison: Comparison, sizes: dict[int, int], shown: dict[int, Look]) -> None:
    """One line a row over the resolutions of a test."""
    column = comparison.columns[next(iter(sizes.values()))]
    for number in sorted(range(len(comparison.rows)), key=lambda number: number in shown):
        cells = [(size, comparison.cells[number][place]) for size, place in sorted(sizes.items())]
        there = [(size, cell) for size, cell in cells if cell is not None and looks.known(cell)]
        if there:
            line = _line_of(there)
            _draw(axes, column, line, shown.get(number, looks.OTHERS), band=len(comparison.rows) <= BANDS)
    _pixels(axes, sorted(sizes), "pixels of the test's faces")
    axes.set_ylabel(looks.unit(column))


def _line_of(cells: Sequence[tuple[float, Cell]], others: str = "") -> Line:
    x, mean, low, high = np.array([(size, cell.mean, *cell.interval) for size, cell in cells], dtype=np.float64).T
    return Line(others, x, mean, low, high, ())


def _pixels(axes: Axes, sizes: Sequence[float], words: str) -> None:
    axes.set_xscale("log", base=2)
    _ticks(axes, sizes)
    axes.set_xlabel(words)


def _ticks(axes: Axes, x: Sequence[float]) -> None:
    """Where there are values; every second of many."""
    kept = list(x)[:: 1 + len(x) // 9]
    axes.xaxis.set_major_locator(FixedLocator(kept))
    axes.xaxis.set_major_formatter(FixedFormatter([style.plain(value) for value in kept]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def trained_pixels(row: Row) -> float | None:
    """The one resolution that a row was trained on, pixels; None where it was not degraded, or to several."""
    value = row.choices.get(DEGRADED)
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _trained(comparison: Comparison) -> dict[int, list[Line]]:
    """Number of a column → lines over the pixels of the training, one for each combination of the other choices."""
    others = [key for key in comparison.keys if key != DEGRADED]
    found: dict[int, list[Line]] = {}
    for number in range(len(comparison.columns)):
        groups: dict[str, list[tuple[float, Cell]]] = {}
        for row, cells in zip(comparison.rows, comparison.cells, strict=True):
            size, cell = trained_pixels(row), cells[number]
            if size is not None and cell is not None and looks.known(cell):
                groups.setdefault(looks.words(row.choices, others), []).append((size, cell))
        lines = [_line_of(sorted(cells, key=lambda c: c[0]), name) for name, cells in groups.items() if len(cells) > 1]
        if lines:
            found[number] = lines
    return found


def sensitivity(comparison: Comparison) -> Figure | None:
    """A column's number over a numeric choice, all else being equal: a row of panels for each choice."""
    asked = [one for one in comparison.sensitivities if one.lines and one.key != DEGRADED and one.column < ACROSS]
    keys = list(dict.fromkeys(one.key for one in asked))[:DOWN]
    if not keys:
        return None
    across = max(sum(one.key == key for one in asked) for key in keys)
    size = (max(across * looks.PANEL[0], 4.4) + 2.2, len(keys) * looks.PANEL[1])
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    for places, key in zip(figure.subplots(len(keys), across, squeeze=False), keys, strict=True):
        _sensitivity_row(places, comparison, [one for one in asked if one.key == key])
    return figure


def _sensitivity_row(places: Any, comparison: Comparison, asked: Sequence[Sensitivity]) -> None:
    """Panels of one choice, and what their lines are beside the last one."""
    words = list(dict.fromkeys(line.others for one in asked for line in one.lines))
    shown = {others: looks.look(i, looks.shortened(others)) for i, others in enumerate(words[: looks.SHOWN])}
    for axes, one in zip(places, asked, strict=False):
        column = comparison.columns[one.column]
        axes.set_title(looks.shortened(column.title, 36))
        _lines(axes, column, one.lines, shown)
        x = np.unique(np.concatenate([line.x for line in one.lines]))
        if x[0] > 0 and x[-1] > 20 * x[0]:
            axes.set_xscale("log")
        _ticks(axes, x.tolist())
        axes.set_xlabel(one.key)
    for unused in places[len(asked) :]:
        unused.remove()
    if any(words):
        named = [replace(one, label=one.label or "all else alike") for one in shown.values()]
        looks.legend(places[len(asked) - 1], named, marker=True, more=len(words) - len(shown))


def _lines(axes: Axes, column: Column, lines: Sequence[Line], shown: dict[str, Look]) -> None:
    for line in sorted(lines, key=lambda line: line.others in shown):
        _draw(axes, column, line, shown.get(line.others, looks.OTHERS), band=len(lines) <= BANDS)
    axes.set_ylabel(looks.unit(column))


def _draw(axes: Axes, column: Column, line: Line, one: Look, band: bool) -> None:
    """Means with what their intervals over seeds cover behind them, unless that were far more than all lines cover."""
    mean, low, high = (looks.scaled(column, part) for part in (line.mean, line.low, line.high))
    axes.plot(line.x, mean, color=one.color, linestyle=one.dashes, marker=one.marker, markersize=4)
    if band and np.isfinite(low).any():
        axes.fill_between(line.x, low, high, color=one.color, alpha=0.15, linewidth=0)
        # Two seeds have intervals of 13 standard deviations: the picture keeps to the means.
        reach = 3 * max(float(np.ptp(mean)), 0.5 if column.share else 0.0)
        axes.set_ylim(*_kept(axes, mean, reach))


def _kept(axes: Axes, mean: np.ndarray, reach: float) -> tuple[float, float]:
    low, high = axes.get_ylim()
    return max(low, float(mean.min()) - reach), min(high, float(mean.max()) + reach)


def heat(comparison: Comparison) -> Figure | None:
    """Grids of two swept choices: the mean in every cell, darker where it is better, the best one framed."""
    keys = _grid_keys(comparison)
    if keys is None:
        return None
    grids = _grids(comparison, keys)[: looks.PANELS]
    if not grids:
        return None
    x, y = (looks.distinct(row.choices.get(key) for row in comparison.rows) for key in keys)
    across = looks.side_by_side(len(grids)) if len(x) < 8 else min(len(grids), 2)
    cell = (max(0.52, min(0.09 * max(len(str(value)) for value in x), 1.2)), 0.34)
    size = (across * (max(len(x) * cell[0], 2.4) + 1.0), -(-len(grids) // across) * (max(len(y), 2) * cell[1] + 1.0))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    places = figure.subplots(-(-len(grids) // across), across, squeeze=False).ravel()
    for axes, (title, column, grid) in zip(places, grids, strict=False):
        axes.set_title(looks.shortened(title, 44))
        _heat_panel(axes, column, grid)
        for which, named in ((axes.set_xticks, x), (axes.set_yticks, y)):
            which(range(len(named)), [looks.shortened(str(value), 18) for value in named])
        axes.set_xlabel(keys[0])
        axes.set_ylabel(keys[1])
    for unused in places[len(grids) :]:
        unused.remove()
    return figure


def _grid_keys(comparison: Comparison) -> tuple[str, str] | None:
    """Of two choices with several values both; of more, the first two that are numbers. The longer one goes across."""
    found = {key: looks.distinct(row.choices.get(key) for row in comparison.rows) for key in comparison.keys}
    found = {key: several for key, several in found.items() if len(several) > 1}
    if len(found) > 2:
        found = {key: several for key, several in found.items() if looks.numeric(several)}
    if len(found) < 2:
        return None
    first, second = list(found)[:2]
    return (second, first) if len(found[second]) > len(found[first]) else (first, second)


def _grids(comparison: Comparison, keys: tuple[str, str]) -> list[tuple[str, Column, np.ndarray]]:
    """Title, column and means (rows of y, columns of x; NaN where nothing is), if enough of it is filled."""
    x, y = ([str(v) for v in looks.distinct(row.choices.get(key) for row in comparison.rows)] for key in keys)
    others = [key for key in comparison.keys if key not in keys]
    found: dict[tuple[int, str], np.ndarray] = {}
    for row, cells in zip(comparison.rows, comparison.cells, strict=True):
        place = [row.choices.get(key) for key in keys]
        if None in place:
            continue
        at = y.index(str(place[1])), x.index(str(place[0]))
        for number, cell in enumerate(cells):
            grid = found.setdefault((number, looks.words(row.choices, others)), np.full((len(y), len(x)), np.nan))
            if cell is not None:
                grid[at] = cell.mean
    full = {key: grid for key, grid in found.items() if np.isfinite(grid).mean() >= FILLED and grid.size > 4}
    return [
        (", ".join(filter(None, (comparison.columns[number].title, name))), comparison.columns[number], grid)
        for (number, name), grid in sorted(full.items(), key=lambda item: item[0][0])
    ]


def _heat_panel(axes: Axes, column: Column, grid: np.ndarray) -> None:
    values = looks.scaled(column, grid)
    good = -values if column.error else values
    best = float(np.nanmax(good))
    # One point that has failed does not make all others look alike.
    worst = max(float(np.nanmin(good)), best - 4 * (best - float(np.nanmedian(good))))
    shade = np.clip((good - worst) / (best - worst or 1), 0, 1)
    axes.grid(False)
    for (i, j), value in np.ndenumerate(values):
        if not np.isfinite(value):
            continue
        axes.add_patch(Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, facecolor=HEAT(shade[i, j]), linewidth=0))
        words = _cell(column, value)
        axes.text(j, i, words, ha="center", va="center", fontsize=8, color=BRIGHT if shade[i, j] > 0.6 else DARK)
        if good[i, j] == best:
            frame = Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, fill=False, edgecolor=style.VERMILLION, linewidth=2)
            axes.add_patch(frame)
    axes.set_xlim(-0.52, grid.shape[1] - 0.48)
    axes.set_ylim(-0.52, grid.shape[0] - 0.48)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _cell(column: Column, value: Any) -> str:
    return f"{value:.2f}" if column.share else style.plain(float(f"{value:.4g}"))
