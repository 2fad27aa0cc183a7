"""From the door's choices to what is printed, written and published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from facelab.atomic import atomic
from facelab.compare.comparing import Rules, compare
from facelab.compare.formats import renderer, suffix
from facelab.compare.results import Comparison
from facelab.kinds import check_kind
from facelab.training.logging import no_logger

KINDS = {
    **{"folders": list[str], "write": str, "out": str | None, "baseline": str | None, "metrics": list[str] | None},
    **{"keys": list[str] | None, "level": float, "replicates": int, "seed": int},
}


def deliver(config: DictConfig, plain: Mapping[str, Any]) -> Comparison:
    """Compares, and writes the comparison where it is asked for.

    Args:
        config: conf/compare.yaml, composed.
        plain: the same, resolved, as plain values.

    Raises:
        ValueError, FileNotFoundError: see `facelab.compare.comparing.compare`; an option of another kind.
    """
    for key, kind in KINDS.items():
        check_kind(key, plain[key], kind)
    render = renderer(plain["write"])  # refused before any long work
    logger = instantiate(config.logger, _partial_=True)
    rules = Rules(plain["level"], plain["replicates"], plain["seed"])
    choices = {key: plain[key] for key in ("baseline", "metrics", "keys")}
    comparison = compare(plain["folders"], **choices, rules=rules)
    out = _file(plain, comparison)
    text = render(comparison)
    if out is None:
        print(text, end="", flush=True)
    else:
        with atomic(out) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(out, flush=True)
    if logger.func is not no_logger:
        from facelab.compare.publishing import publish  # which needs a logger's package

        publish(comparison, logger, _folder(comparison) if out is None else out.parent)
    return comparison


def _file(plain: Mapping[str, Any], comparison: Comparison) -> Path | None:
    """Where the text goes; None: the terminal."""
    ending = suffix(plain["write"])
    if plain["out"] is None:
        return _folder(comparison) / f"compare{ending}" if ending == ".html" else None
    out = Path(plain["out"]).expanduser()
    if out.is_dir() or plain["out"].endswith("/"):
        out = out / f"compare{ending}"
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def _folder(comparison: Comparison) -> Path:
    return Path(comparison.folders[0])
