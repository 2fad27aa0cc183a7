"""Compares runs: `python -m facelab.compare runs/losses`; `--help` says more."""

import sys
from typing import Any

from facelab.door import in_quotes, open_door


def quoted(word: str) -> str:
    """A choice as Hydra reads it: a row's label has commas and signs of equality."""
    key, _, value = word.partition("=")
    plain = key == "baseline" and value[:1] not in ("", "'", '"') and value != "null"
    return f"{key}={in_quotes(value)}" if plain else word


def run(config: Any) -> None:
    """One comparison."""
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)

    from facelab.compare.delivery import deliver

    deliver(config, plain)


def main() -> None:
    """The command line."""
    sys.argv[1:] = map(quoted, sys.argv[1:])
    open_door(run, "compare", "facelab.compare", words="folders")


if __name__ == "__main__":
    main()
