"""Plain text in aligned columns, the best in bold where a person reads it."""

from __future__ import annotations

import os
import sys
import textwrap
import unicodedata

from facelab.compare.results import Comparison
from facelab.compare.tables import Entry, Table, remarks, tables

SUFFIX = ".txt"
WIDTH = 110  # of notes and warnings, letters
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"


def render(comparison: Comparison) -> str:
    """All tables, then what has to be said."""
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    parts = [_table(table, colour) for table in tables(comparison)]
    said = remarks(comparison)
    if said:
        parts.append("\n".join(["warnings", *(_wrapped(line, "  - ") for line in said)]))
    return "\n\n".join(parts) + "\n"


def _table(table: Table, colour: bool) -> str:
    texts = [[f"{entry.text} {entry.mark}".rstrip() for entry in row] for row in table.rows]
    # Numbers stand under each other, with room for a mark behind those that have none.
    marked = [any(row[k].mark for row in table.rows) for k in range(len(table.head))]
    texts = [
        [text + "  " * (mark and not row[k].mark) for k, (text, mark) in enumerate(zip(line, marked, strict=True))]
        for line, row in zip(texts, table.rows, strict=True)
    ]
    widths = [max(map(_width, column)) for column in zip(table.head, *texts, strict=True)]
    lines = [_line([Entry(word) for word in table.head], list(table.head), widths, table.left, False)]
    lines.append("  ".join("─" * width for width in widths))
    lines += [_line(row, line, widths, table.left, colour) for row, line in zip(table.rows, texts, strict=True)]
    return "\n".join([table.title, "", *lines, "", *(_wrapped(note, "  ") for note in table.notes)])


def _wrapped(text: str, indent: str) -> str:
    """Long names and paths stay whole."""
    whole = textwrap.TextWrapper(WIDTH, break_long_words=False, break_on_hyphens=False)
    whole.initial_indent, whole.subsequent_indent = indent, " " * len(indent)
    return whole.fill(text)


def _line(row: list[Entry] | tuple[Entry, ...], texts: list[str], widths: list[int], left: int, colour: bool) -> str:
    cells = []
    for k, (entry, text, width) in enumerate(zip(row, texts, widths, strict=True)):
        space = " " * (width - _width(text))
        padded = text + space if k < left else space + text
        cells.append(f"{BOLD}{padded}{PLAIN}" if entry.bold and colour else padded)
    return "  ".join(cells).rstrip()


def _width(text: str) -> int:
    """Columns of a terminal: Korean and other wide letters take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
