"""How long does a photograph take? `python -m facelab.latency model=… threads=1`; `--help` says more."""

from typing import Any

from facelab.door import open_door


def run(config: Any) -> None:
    """One measurement."""
    from omegaconf import OmegaConf

    choices: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)

    from facelab.latency.threads import limit

    limit(choices["threads"])  # before torch and OpenCV ask

    from facelab.latency.latency import latency

    latency(choices)


def main() -> None:
    """The command line."""
    open_door(run, "latency", "facelab.latency", words="photographs")


if __name__ == "__main__":
    main()
