"""Parts of an HTML page: everything that comes from outside is escaped here, in one place."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Value:
    """A cell of a table.

    Attributes:
        text: what is seen.
        order: what it is sorted by, or None for its text; NaN comes last.
        mark: classes of the style sheet: ``best``, ``words`` …
        below: in smaller letters below.
        strong: whether what is below stands out.
    """

    text: str
    order: float | None = None
    mark: str = ""
    below: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Head:
    """A column's head.

    Attributes:
        text: what is seen.
        below: in smaller letters below.
        falling: whether the first click puts the highest number first.
        words: whether words stand below it.
    """

    text: str
    below: str = ""
    falling: bool = False
    words: bool = False


def table(name: str, heads: Sequence[Head], rows: Sequence[Sequence[Value]]) -> str:
    """A table that is sorted by clicks on its heads; the first cell of a row is the row's head.

    Args:
        name: identifier on the page.
        heads: of the columns.
        rows: as many values each.
    """
    top = "".join(f'<th scope="col"{_about(head)}>{escape(head.text)}{_small(head.below)}</th>' for head in heads)
    body = "\n".join(
        "<tr>" + "".join(_cell(value, "th" if i == 0 else "td") for i, value in enumerate(row)) + "</tr>"
        for row in rows
    )
    content = f"<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return f'<div class="wide"><table id="{name}">{content}</table></div>'


def _about(head: Head) -> str:
    return ' class="words"' * head.words + ' data-falling=""' * head.falling


def _small(text: str, strong: bool = False) -> str:
    if not text:
        return ""
    return f"<small>{f'<b>{escape(text)}</b>' if strong else escape(text)}</small>"


def _cell(value: Value, tag: str) -> str:
    scope = ' scope="row"' if tag == "th" else ""
    mark = f' class="{value.mark}"' if value.mark else ""
    order = "" if value.order is None else ' data-v=""' if math.isnan(value.order) else f' data-v="{value.order:.9g}"'
    return f"<{tag}{scope}{mark}{order}>{escape(value.text)}{_small(value.below, value.strong)}</{tag}>"


def paragraphs(texts: Sequence[str], mark: str = "") -> str:
    """Sentences, each a paragraph."""
    opening = f'<p class="{mark}">' if mark else "<p>"
    return "\n".join(f"{opening}{escape(text)}</p>" for text in texts if text)


def listed(texts: Sequence[str]) -> str:
    """A list of sentences."""
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def folded(title: str, content: str) -> str:
    """What opens at a click, and in print."""
    return f"<details><summary>{escape(title)}</summary>\n{content}\n</details>"


def section(title: str, content: str, mark: str = "") -> str:
    """A part with a title."""
    opening = f'<section class="{mark}">' if mark else "<section>"
    return f"{opening}\n<h2>{escape(title)}</h2>\n{content}\n</section>"


def document(title: str, body: str) -> str:
    """The whole page, which asks for nothing from outside: its own policy forbids that, and any script but its own."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{body}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


# The colours are those of facelab's pictures; print is always light.
STYLE = """
:root { --page: #ffffff; --ink: #1a1a1a; --grey: #5f5f5f; --line: #dcdcdc; --blue: #0072b2; --soft: #f4f6f8;
  --alarm: #d55e00; color-scheme: light; }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #15181c; --ink: #e9e9e7; --grey: #a3a8ad; --line: #363c43; --blue: #2f8fd0; --soft: #1e2328;
    --alarm: #f0833a; color-scheme: dark; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.45;
  font-family: "DejaVu Sans", Verdana, "Segoe UI", system-ui, sans-serif; font-size: 14px; }
main { max-width: 1160px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 24px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 36px 0 8px; }
p { margin: 6px 0; max-width: 90ch; overflow-wrap: anywhere; }
p.note { max-width: 110ch; }
p.about, p.note, figcaption { color: var(--grey); font-size: 12.5px; }
.warnings { border-left: 4px solid var(--alarm); background: var(--soft); padding: 2px 16px 8px; margin: 20px 0; }
.warnings h2 { margin-top: 10px; color: var(--alarm); }
ul { margin: 6px 0; padding-left: 20px; }
li { margin: 3px 0; overflow-wrap: anywhere; max-width: 100ch; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 4px; margin: 8px 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: 5px 10px; text-align: right; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--line); font-weight: normal; }
tbody tr:last-child > * { border-bottom: none; }
thead th { background: var(--soft); vertical-align: bottom; }
th:first-child, .words { text-align: left; }
th[scope=row] { position: sticky; left: 0; background: var(--page); white-space: normal; overflow-wrap: anywhere;
  min-width: 150px; max-width: 380px; }
.baseline, th.baseline { background: var(--soft); }
.best { font-weight: bold; }
.strong { font-weight: bold; }
small { display: block; color: var(--grey); font-size: 11px; font-weight: normal; }
small b { color: var(--ink); }
thead button { all: unset; cursor: pointer; display: inline-block; }
thead button:hover { color: var(--blue); }
thead button:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }
thead [aria-sort] button::after { content: " \\25b4"; }
thead [aria-sort=descending] button::after { content: " \\25be"; }
details { margin: 10px 0; }
summary { cursor: pointer; font-weight: bold; padding: 4px 0; }
summary:hover { color: var(--blue); }
figure { margin: 8px 0; }
figure svg { max-width: 100%; height: auto; display: block; }
@media print {
  body { font-size: 10px; }
  main { max-width: none; padding: 0; }
  table { font-size: 9px; }
  th, td { padding: 2px 5px; }
  .wide { overflow: visible; border: none; }
  th[scope=row] { position: static; max-width: 240px; }
  figure, tr, .warnings { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""

SCRIPT = """
"use strict";
const known = (cell) => {
  const text = cell.dataset.v ?? cell.textContent;
  return cell.dataset.v !== undefined ? (text === "" ? null : Number(text)) : text;
};
const compare = (a, b, falling) => {
  if (a === null || b === null) return (a === null) - (b === null);
  const order = typeof a === "number" && typeof b === "number"
    ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  return falling ? -order : order;
};
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const falling = before ? before === "ascending" : "falling" in head.dataset;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [known(row.cells[place]), row]);
      rows.sort((one, other) => compare(one[0], other[0], falling));
      body.append(...rows.map((pair) => pair[1]));
    });
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
"""
