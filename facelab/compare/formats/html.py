"""One self-contained page with tables and pictures."""

from __future__ import annotations

from facelab.compare.results import Comparison

SUFFIX = ".html"


def render(comparison: Comparison) -> str:
    """The page; no file and no address outside it is needed to read it."""
    from facelab.compare.page import page  # which draws, and so needs matplotlib

    return page(comparison)
