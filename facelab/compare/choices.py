"""How a number depends on a numeric choice (s, m, the learning rate), all else being equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from facelab.compare.results import Cell, Column, Line, Row, Sensitivity
from facelab.compare.rows import label


def sensitivities(
    rows: Sequence[Row], columns: Sequence[Column], cells: Sequence[Sequence[Cell | None]]
) -> tuple[Sensitivity, ...]:
    """For every numeric choice of which there are two values and more, and every column, its lines.

    A line holds the rows that differ in that choice alone; what stands alone has none.
    """
    found = []
    for key in rows[0].choices:
        numeric = [i for i, row in enumerate(rows) if _is_number(row.choices[key])]
        if len({rows[i].choices[key] for i in numeric}) < 2:
            continue
        together: dict[tuple[Any, ...], list[int]] = {}
        for i in numeric:
            others = tuple(repr(value) for name, value in rows[i].choices.items() if name != key)
            together.setdefault(others, []).append(i)
        for number in range(len(columns)):
            lines = [_line(key, number, members, rows, cells) for members in together.values()]
            if any(len(line.x) > 1 for line in lines):
                found.append(Sensitivity(key, number, tuple(line for line in lines if len(line.x) > 1)))
    return tuple(found)


def _line(
    key: str, column: int, members: Sequence[int], rows: Sequence[Row], cells: Sequence[Sequence[Cell | None]]
) -> Line:
    kept = [(float(rows[i].choices[key]), i, cell) for i in members if (cell := cells[i][column]) is not None]
    kept.sort(key=lambda one: one[0])
    others = {name: value for name, value in rows[members[0]].choices.items() if name != key}
    return Line(
        others=label(others) if others else "",
        x=np.array([x for x, _, _ in kept]),
        mean=np.array([cell.mean for _, _, cell in kept]),
        low=np.array([cell.interval[0] for _, _, cell in kept]),
        high=np.array([cell.interval[1] for _, _, cell in kept]),
        rows=tuple(i for _, i, _ in kept),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
