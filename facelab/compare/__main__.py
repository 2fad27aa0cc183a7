"""Compares runs: `python -m facelab.compare runs/losses`; `--help` says more."""

import sys
from pathlib import Path
from typing import Any

from facelab.door import open_door

OPTIONS = ("folders", "write", "out", "baseline", "metrics", "keys", "level", "replicates", "seed", "logger", "hydra")
TAKES_A_WORD: tuple[str, ...] = (
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--config-dir",
    "-cd",
)
TAKES_A_WORD += ("--experimental-rerun", "--info", "-i")


def with_folders(words: list[str]) -> list[str]:
    """A command line in which folders that stand alone are `folders=[…]`.

    A folder may well be called ``loss=cosface,seed=2``: what has an option's name before its first ``=`` is an option,
    and what else is there on the disk a folder.
    """
    folders, others = [], []
    for before, word in zip(["", *words], words, strict=False):
        key, found, _ = word.partition("=")
        if word.startswith(("-", "+", "~")) or before in TAKES_A_WORD or (found and key.split(".")[0] in OPTIONS):
            others.append(word)
        elif not found or "/" in key or Path(word).is_dir():
            folders.append(word)
        else:
            others.append(word)
    others = [_quoted(word) if word.startswith("baseline=") else word for word in others]
    listed = ",".join(_in_quotes(folder) for folder in folders)
    return [f"folders=[{listed}]", *others] if folders else others


def _quoted(word: str) -> str:
    """A row's label has commas and signs of equality, which Hydra takes for something else."""
    key, _, value = word.partition("=")
    return word if value[:1] in ("", "'", '"') or value == "null" else f"{key}={_in_quotes(value)}"


def _in_quotes(text: str) -> str:
    return "'" + text.replace("\\'", "\\\\'").replace("'", "\\'") + "'"


def run(config: Any) -> None:
    """One comparison."""
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)

    from facelab.compare.delivery import deliver

    deliver(config, plain)


def main() -> None:
    """The command line."""
    sys.argv[1:] = with_folders(sys.argv[1:])
    open_door(run, "compare", "facelab.compare")


if __name__ == "__main__":
    main()
