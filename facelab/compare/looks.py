"""How a row looks in every picture of a comparison: one colour, dash and marker, told apart without seeing colours."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from facelab.compare.results import Cell, Column, Comparison
from facelab.compare.rows import spoken
from facelab.report import style

COLORS = (style.BLUE, style.VERMILLION, style.GREEN, style.ORANGE, style.PURPLE, style.SKY, style.INK)
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.6)), (0, (1.2, 1.4)))
MARKERS = "osD^vP"
SHOWN = 13  # rows with a look of their own (all losses); of more, the best ones: nobody tells more lines apart
LONGEST = 34  # letters of a name in a legend
PANEL = (3.15, 2.7)  # inches, with its labels
PANELS = 6  # columns of a table that get a panel


@dataclass(frozen=True)
class Look:
    """Of one row, or of whatever else has a line.

    Attributes:
        label: in a legend.
        color: of its line and markers.
        dashes: of its line.
        marker: of its points.
    """

    label: str
    color: str
    dashes: Any
    marker: str

    def handle(self, line: bool, marker: bool) -> Line2D:
        """What stands for it in a legend."""
        return Line2D(
            [], [], color=self.color, linestyle=self.dashes if line else "",
            marker=self.marker if marker else "", markersize=4.5,
        )  # fmt: skip


OTHERS = Look("", style.LIGHT, "-", "o")  # rows without a look of their own


def look(number: int, label: str) -> Look:
    """The look of number 0, 1, 2 …: colours first, then dashes; markers change at another pace than colours."""
    turn = number // len(COLORS)
    return Look(label, COLORS[number % len(COLORS)], DASHES[turn % len(DASHES)], MARKERS[number % len(MARKERS)])


def looks(comparison: Comparison) -> dict[int, Look]:
    """The rows that have a look of their own, by number, in order of the table: all, or the best of the first column.

    The baseline is always among them.
    """
    numbers = ranked(comparison)
    if len(numbers) > SHOWN:
        kept = numbers[:SHOWN]
        if comparison.baseline is not None and comparison.baseline not in kept:
            kept[-1] = comparison.baseline
        numbers = sorted(kept)
    else:
        numbers = sorted(numbers)
    labels = names(comparison)
    return {number: look(i, labels[number]) for i, number in enumerate(numbers)}


def ranked(comparison: Comparison) -> list[int]:
    """Numbers of the rows, the best of the first column first; rows without a number there come last."""

    def place(number: int) -> tuple[bool, float]:
        cell = comparison.cells[number][0] if comparison.columns else None
        known = cell is not None and np.isfinite(cell.mean)
        if cell is None or not known:
            return True, 0.0
        return False, cell.mean if comparison.columns[0].error else -cell.mean

    return sorted(range(len(comparison.rows)), key=place)


def names(comparison: Comparison) -> list[str]:
    """A short name for each row: values without the long key, ``arcface, margin 0.3``; its label where that is unclear.

    What is still too long loses its middle.
    """
    short = [words(row.choices, comparison.keys) or row.label for row in comparison.rows]
    full = [row.label for row in comparison.rows]
    chosen = [label if short.count(one) > 1 else one for one, label in zip(short, full, strict=True)]
    cut = [shortened(one) for one in chosen]
    return [f"{one} #{i + 1}" if cut.count(one) > 1 else one for i, one in enumerate(cut)]


def words(choices: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Choices in a few words: of a group its value alone, of a value the last part of its key before it."""
    told = []
    for key in keys:
        value = choices.get(key)
        if value is not None:
            last = key.rsplit(".", 1)[-1]
            told.append(value if isinstance(value, str) and "." not in key else f"{last} {spoken(value)}")
    return ", ".join(told)


def shortened(text: str, longest: int = LONGEST) -> str:
    """Without its middle where it is too long: names differ at both ends."""
    if len(text) <= longest:
        return text
    tail = (longest - 1) // 2
    return f"{text[: longest - 1 - tail]}…{text[-tail:]}"


def legend(
    beside: Figure | Axes, shown: Sequence[Look], line: bool = True, marker: bool = False, more: int = 0
) -> None:
    """Names beside the panels, never over them.

    Args:
        beside: a figure with a constrained layout, or a panel of one.
        shown: what is named.
        line: whether they have lines.
        marker: whether they have markers.
        more: how many grey ones there are besides.
    """
    handles, words = [one.handle(line, marker) for one in shown], [one.label for one in shown]
    if more:
        handles.append(OTHERS.handle(line, marker))
        words.append(f"{more} others")
    place: dict[str, Any] = {"loc": "outside right upper", "borderaxespad": 0.8}
    if isinstance(beside, Axes):
        place = {"loc": "upper left", "bbox_to_anchor": (1.02, 1), "borderaxespad": 0}
    # matplotlib leaves out what begins with an underscore, and a name may: so the words come afterwards.
    drawn = beside.legend(handles, ["x"] * len(handles), handlelength=2.4 if line else 1, **place)
    for text, word in zip(drawn.get_texts(), words, strict=True):
        text.set_text(word)


def panels(count: int, height: float = PANEL[1], width: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, side by side and then below each other, and room for names beside them.

    Args:
        count: of panels, 1 or more.
        height: of one, inches.
        width: of all, inches; 0 for as many as there are side by side.
    """
    across = side_by_side(count)
    down = -(-count // across)
    wide = width or max(across * PANEL[0], 4.4) + 2.2
    figure = Figure(figsize=(wide, down * height), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)  # type: ignore[union-attr,call-arg]
    axes = figure.subplots(down, across, squeeze=False)
    drawn = list(axes.ravel())
    for unused in drawn[count:]:
        unused.remove()
    return figure, drawn[:count]


def side_by_side(count: int) -> int:
    """Of so many panels: three at most, and four make a square."""
    return 2 if count == 4 else min(count, 3)


def scaled(column: Column, value: Any) -> Any:
    """As it is drawn: shares in per cent."""
    return 100 * np.asarray(value, dtype=np.float64) if column.share else np.asarray(value, dtype=np.float64)


def unit(column: Column) -> str:
    """What stands on an axis of its numbers."""
    return ("%" if column.share else "") + (" (lower is better)" if column.error else "")


def numeric(values: Iterable[Any]) -> bool:
    """Whether these choices are numbers, as 0.3 or 64; None is passed over, but there has to be one number."""
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in known)


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each once, in ascending order of numbers, in order of appearance of anything else."""
    found: dict[Hashable, Any] = {}
    for value in values:
        if value is not None:
            found.setdefault(str(value), value)
    kept = list(found.values())
    return sorted(kept) if numeric(kept) else kept


def known(cell: Cell | None) -> bool:
    """Whether there is something to draw."""
    return cell is not None and bool(np.isfinite(cell.mean))
