"""Is it the same person? `python -m facelab.verify a.jpg b.jpg model=…`; `--help` says more."""

from typing import Any

from facelab.door import open_door


def run(config: Any) -> None:
    """One comparison."""
    from omegaconf import OmegaConf

    choices: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)

    from facelab.verify.verification import verify

    verify(choices)


def main() -> None:
    """The command line."""
    open_door(run, "verify", "facelab.verify", words="photographs")


if __name__ == "__main__":
    main()
