"""How a comparison is written: one module for each format, `render(comparison)` in it gives the text."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from facelab.compare.results import Comparison


def renderer(name: str) -> Callable[[Comparison], str]:
    """The format of that name.

    Raises:
        ValueError: there is none; those that there are, are named.
    """
    known = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in known:
        raise ValueError(f"write={name}: choose {', '.join(known)}")
    return importlib.import_module(f"{__name__}.{name}").render


def suffix(name: str) -> str:
    """How a file of that format is named."""
    return importlib.import_module(f"{__name__}.{name}").SUFFIX
