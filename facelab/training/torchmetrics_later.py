"""torchmetrics is met by two of its names; the rest of it is loaded when anything else is asked for.

Lightning needs its `Metric` and `MetricCollection`. The package itself brings metrics of sound, pictures and text, and
with them scipy.signal and torchvision: a second and a half or two of every start of a job or a rank.
Nothing is taken away: whoever asks for another name gets the whole package, with the same two classes in it.
"""

import importlib
import importlib.machinery
import logging
import sys
from importlib.metadata import version
from types import ModuleType
from typing import Any

PACKAGE = "torchmetrics"
# What the parts that hold the two names ask the package for in their turn, before the names.
PARTS = ("torchmetrics.utilities", "torchmetrics.metric", "torchmetrics.collections")
NAMES = {"Metric": "torchmetrics.metric", "MetricCollection": "torchmetrics.collections"}


class Later(importlib.machinery.SourceFileLoader):
    """Loads the package by its two names first, and by its own code at the first other one."""

    def exec_module(self, module: ModuleType) -> None:
        """Gives the module the two names; all of it, where this release keeps them elsewhere."""
        try:
            module.__version__ = version(PACKAGE)  # type: ignore[attr-defined]
            module._logger = logging.getLogger(PACKAGE)  # type: ignore[attr-defined]
            for part in PARTS:
                importlib.import_module(part)
            for name, part in NAMES.items():
                setattr(module, name, getattr(sys.modules[part], name))
        except (ImportError, AttributeError):
            for part in [name for name in sys.modules if name.startswith(f"{PACKAGE}.")]:
                del sys.modules[part]
            super().exec_module(module)
            return

        def rest(name: str) -> Any:
            if "__getattr__" in vars(module):
                del module.__getattr__
                super(Later, self).exec_module(module)
            return getattr(module, name)

        module.__getattr__ = rest  # type: ignore[method-assign]


class Finder:
    """Finds that one package, where it is found anyway."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """As the search along sys.path says, with our loader."""
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name == PACKAGE else None
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = Later(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """From now on; nothing is imported yet. A second call changes nothing."""
    if PACKAGE not in sys.modules and Finder not in sys.meta_path:
        sys.meta_path.insert(0, Finder)
