"""A small page of the same functions: `python -m facelab.demo model=…`; `--help` says more."""

from typing import Any

from facelab.door import open_door


def run(config: Any) -> None:
    """Serves it until Ctrl-C."""
    from omegaconf import OmegaConf

    choices: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)

    from facelab.demo.page import serve

    try:
        serve(choices)
    except KeyboardInterrupt:
        print()


def main() -> None:
    """The command line."""
    open_door(run, "demo", "facelab.demo")


if __name__ == "__main__":
    main()
