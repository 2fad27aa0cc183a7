"""One line for every row and number, all that is known of it, unrounded: for spreadsheets and scripts."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from typing import Any

from facelab.compare.results import Cell, Column, Comparison, Difference, Row

SUFFIX = ".csv"


def render(comparison: Comparison) -> str:
    """CSV; shares are fractions, cells that cannot be told are empty."""
    lines = [
        _line(row, column, cell, comparison)
        for row, cells in zip(comparison.rows, comparison.cells, strict=True)
        for column, cell in zip(comparison.columns, cells, strict=True)
        if cell is not None
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _line(row: Row, column: Column, cell: Cell, comparison: Comparison) -> dict[str, Any]:
    line: dict[str, Any] = {
        **{key: row.choices[key] for key in comparison.keys},
        **{"row": row.label, "number": column.key, "seeds": cell.count, "mean": cell.mean, "std": cell.std},
        **{"low": cell.interval[0], "high": cell.interval[1]},
        **{"people_low": cell.subjects[0], "people_high": cell.subjects[1], "best": cell.best, "close": cell.close},
        **_difference("baseline", cell.baseline),
        **_difference("best", cell.to_best),
        **asdict(row.cost),
        **{"frontier": row.frontier, "values": " ".join(f"{seed}:{value!r}" for seed, value in cell.values.items())},
    }
    return {key: "" if isinstance(value, float) and value != value else value for key, value in line.items()}


def _difference(to: str, difference: Difference | None) -> dict[str, Any]:
    known = {
        f"to_{to}": lambda d: d.mean,
        f"to_{to}_std": lambda d: d.std,
        f"to_{to}_seeds": lambda d: d.count,
        f"to_{to}_low": lambda d: d.interval[0],
        f"to_{to}_high": lambda d: d.interval[1],
        f"to_{to}_people_low": lambda d: d.subjects[0],
        f"to_{to}_people_high": lambda d: d.subjects[1],
        f"to_{to}_p": lambda d: d.p,
        f"to_{to}_test": lambda d: d.test,
        f"to_{to}_holm": lambda d: d.corrected,
        f"to_{to}_significant": lambda d: d.significant,
        f"to_{to}_needed": lambda d: d.needed,
        f"to_{to}_visible": lambda d: d.visible,
    }
    return {key: "" if difference is None else of(difference) for key, of in known.items()}
