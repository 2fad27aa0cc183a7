"""A comparison as one HTML page that needs nothing else: warnings, tables that sort, pictures, protocols, runs."""

from __future__ import annotations

from facelab.compare import markup, page_tables
from facelab.compare.markup import escape
from facelab.compare.pictures import drawn, settings, svg
from facelab.compare.results import Comparison
from facelab.compare.tables import remarks


def page(comparison: Comparison) -> str:
    """The page's HTML. It loads nothing from outside, follows the reader's light or dark, and prints."""
    parts = [
        f"<header>\n<h1>{escape(comparison.title)}</h1>\n{markup.paragraphs([_about(comparison)], 'about')}\n</header>",
        _warnings(comparison),
        markup.section("Results", page_tables.main(comparison)),
        *_pictures(comparison),
        page_tables.costs(comparison),
        markup.section("In detail", _details(comparison)),
    ]
    return markup.document(f"{comparison.title} – facelab.compare", "\n".join(part for part in parts if part))


def _about(comparison: Comparison) -> str:
    runs, rows = len(comparison.runs), len(comparison.rows)
    seeds = sorted({len(row.runs) for row in comparison.rows})
    words = [
        f"{rows} {'row' if rows == 1 else 'rows'}",
        f"{runs} {'run' if runs == 1 else 'runs'}",
        f"{'–'.join(dict.fromkeys(str(n) for n in (seeds[0], seeds[-1])))} a row" if runs > rows else "",
        f"differing in {', '.join(comparison.keys)}" if comparison.keys else "",
        f"intervals of {100 * comparison.level:g} %",
        f"from {', '.join(comparison.folders)}",
    ]
    return "; ".join(word for word in words if word)


def _warnings(comparison: Comparison) -> str:
    told = remarks(comparison)
    return "" if not told else markup.section("Warnings", markup.listed(told), "warnings")


def _pictures(comparison: Comparison) -> list[str]:
    parts = []
    with settings():
        for picture, figure in drawn(comparison):
            caption = f"<figcaption>{escape(picture.caption)}</figcaption>"
            content = f"<figure>\n{svg(picture, figure)}{caption}\n</figure>"
            parts.append(markup.section(picture.title, content, "picture"))
    return parts


def _details(comparison: Comparison) -> str:
    parts = [("Every number with its intervals", page_tables.intervals(comparison))]
    if comparison.baseline is not None and len(comparison.rows) > 1:
        label = comparison.rows[comparison.baseline].label
        parts.append((f"Differences to the baseline, {label}", page_tables.differences(comparison, to_best=False)))
    if len(comparison.rows) > 1:
        parts.append(("Differences to the best", page_tables.differences(comparison, to_best=True)))
    parts.append(("Protocols", page_tables.protocols(comparison)))
    parts.append(("Runs", page_tables.runs(comparison)))
    return "\n".join(markup.folded(title, content) for title, content in parts)
