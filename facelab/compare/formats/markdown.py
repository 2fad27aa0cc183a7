"""Tables as GitHub and most editors show them."""

from __future__ import annotations

import re

from facelab.compare.results import Comparison
from facelab.compare.tables import SIGNIFICANT, Entry, remarks, tables

SUFFIX = ".md"


def render(comparison: Comparison) -> str:
    """All tables, then what has to be said."""
    parts = []
    for table in tables(comparison):
        rule = ["---" if k < table.left else "--:" for k in range(len(table.head))]
        lines = [
            [escaped(word) for word in table.head],
            rule,
            *([_entry(entry) for entry in row] for row in table.rows),
        ]
        written = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        notes = "  \n".join(escaped(note) for note in table.notes)
        parts.append(f"### {escaped(table.title)}\n\n{written}\n\n{notes}")
    said = remarks(comparison)
    if said:
        parts.append("\n".join(["### Warnings", "", *(f"* {escaped(line)}" for line in said)]))
    return "\n\n".join(parts) + "\n"


def _entry(entry: Entry) -> str:
    text = f"**{escaped(entry.text)}**" if entry.bold else escaped(entry.text)
    mark = f"\\{entry.mark}" if entry.mark == SIGNIFICANT else entry.mark
    return f"{text} {mark}".rstrip()


def escaped(text: str) -> str:
    """Words that are not read as Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", text)
