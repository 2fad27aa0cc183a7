r"""Tables for a paper: `tabular` with booktabs' rules, to be taken in by \input."""

from __future__ import annotations

import re
from collections.abc import Iterable

from facelab.compare.results import Comparison
from facelab.compare.tables import BEST, CLOSE, FRONTIER, SIGNIFICANT, Entry, remarks, tables

SUFFIX = ".tex"
SPECIAL = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"},
    **{"±": r"$\pm$", "–": "--", "≈": r"$\approx$", "★": r"$\star$", "●": r"$\bullet$", "≥": r"$\geq$"},
    **{"×": r"$\times$", "·": r"$\cdot$", "…": r"\dots{}", "−": "$-$"},
}
MARKS = {BEST: "", CLOSE: r"$^{\approx}$", SIGNIFICANT: "$^{*}$", FRONTIER: r"$^{\bullet}$", "": ""}


def render(comparison: Comparison) -> str:
    """All tables, then as comments what has to be said."""
    parts = ["% \\usepackage{booktabs}"]
    for table in tables(comparison):
        head = " & ".join(map(escaped, table.head))
        rows = [" & ".join(map(_entry, row)) + r" \\" for row in table.rows]
        columns = "l" * table.left + "r" * (len(table.head) - table.left)
        lines = [f"\\begin{{tabular}}{{{columns}}}", r"\toprule", head + r" \\", r"\midrule", *rows, r"\bottomrule"]
        parts.append("\n".join([f"% {_line(table.title)}", *lines, r"\end{tabular}", *_comments(table.notes)]))
    parts.append("\n".join(_comments(remarks(comparison))))
    return "\n\n".join(filter(None, parts)) + "\n"


def _entry(entry: Entry) -> str:
    text = escaped(entry.text)
    text = re.sub(r"(?<!\w)([+-])(?=\d)", r"$\1$", text)  # a minus, not a hyphen
    return (f"\\textbf{{{text}}}" if entry.bold else text) + MARKS[entry.mark]


def _comments(lines: Iterable[str]) -> list[str]:
    return [f"% {_line(line)}" for line in lines]


def _line(text: str) -> str:
    return " ".join(text.split())


def escaped(text: str) -> str:
    """Words that LaTeX sets as they are written."""
    return "".join(SPECIAL.get(letter, letter) for letter in text)
