"""Where the choices and their defaults lie; for whoever needs no Hydra, plain values out of their files."""

from pathlib import Path
from typing import Any

__all__ = ["configuration_folder", "defaults"]


def configuration_folder() -> Path:
    """`conf/` inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    inside = here / "conf"
    return inside if inside.is_dir() else here.parent / "conf"


def defaults(*names: str) -> dict[str, Any]:
    """The values of some files of conf/, the later before the earlier.

    Args:
        names: without their suffix; their own lists of defaults are not followed.
    """
    import yaml

    found: dict[str, Any] = {}
    for name in names:
        text = (configuration_folder() / f"{name}.yaml").read_text(encoding="utf-8")
        found |= {key: value for key, value in yaml.safe_load(text).items() if key not in ("defaults", "hydra")}
    return found
