"""Who is it? `python -m facelab.identify photo.jpg gallery=…`; `--help` says more."""

from typing import Any

from facelab.door import open_door


def run(config: Any) -> None:
    """Some photographs."""
    from omegaconf import OmegaConf

    choices: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)

    from facelab.verify.identification import identify

    identify(choices)


def main() -> None:
    """The command line."""
    open_door(run, "identify", "facelab.identify", words="photographs")


if __name__ == "__main__":
    main()
