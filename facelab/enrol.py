"""Makes a gallery of people: `python -m facelab.enrol people/ model=… out=…`; `--help` says more."""

from typing import Any

from facelab.door import open_door


def run(config: Any) -> None:
    """One gallery."""
    from omegaconf import OmegaConf

    choices: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)

    from facelab.verify.enrolment import enrol

    enrol(choices)


def main() -> None:
    """The command line."""
    open_door(run, "enrol", "facelab.enrol", words="people")


if __name__ == "__main__":
    main()
