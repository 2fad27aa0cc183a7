"""Makes and mends training sets: `python -m facelab.prepare source=… out=…`; `--help` says more."""

from typing import Any

from facelab.door import open_door


def run(config: Any) -> None:
    """One task, with its keys as arguments."""
    from hydra.utils import get_method
    from omegaconf import OmegaConf

    choices: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)

    from facelab.kinds import check_kinds

    check_kinds(choices)
    get_method(choices.pop("_target_"))(**choices)


def main() -> None:
    """The command line."""
    open_door(run, "prepare", "facelab.prepare")


if __name__ == "__main__":
    main()
