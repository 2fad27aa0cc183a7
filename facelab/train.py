"""Trains a face-recognition model: `python -m facelab.train loss=arcface backbone=r100`; `--help` shows the choices."""

import sys
from pathlib import Path
from typing import Any

from facelab.door import open_door
from facelab.job import without_collection
from facelab.multirun import launches_processes
from facelab.training.resuming import configuration_of, in_quotes
from facelab.training.sweeping import look, plain_values


def run(config: Any) -> float | None:
    """One job: gives the accuracy that chose its checkpoint, which Hydra's sweepers maximise."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    choices = plain_values(config)

    with without_collection():
        from facelab.training.fit import train

    hydra: Any = HydraConfig.get()
    one_process = hydra.mode == RunMode.MULTIRUN and not launches_processes(hydra)
    metrics = train(config, choices, Path(hydra.runtime.output_dir), one_process)
    return metrics.get("val/accuracy", metrics.get("val/top1"))


def main() -> None:
    """The command line."""
    sys.argv[1:] = in_quotes(sys.argv[1:])
    open_door(run, "config", "facelab.train", look, stored=configuration_of)


if __name__ == "__main__":
    main()
