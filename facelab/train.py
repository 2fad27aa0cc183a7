"""Trains a face-recognition model: `python -m facelab.train loss=arcface backbone=r100`; `--help` shows the choices."""

from pathlib import Path
from typing import Any

from facelab.door import open_door


def run(config: Any) -> float | None:
    """One job: gives the accuracy that chose its checkpoint, which Hydra's sweepers maximise."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)

    from facelab.training.fit import train

    hydra = HydraConfig.get()
    basic_sweep = hydra.mode == RunMode.MULTIRUN and "submitit" not in str(hydra.launcher.get("_target_"))
    choices = {str(key): value for key, value in plain.items()}
    metrics = train(config, choices, Path(hydra.runtime.output_dir), one_process=basic_sweep)
    return metrics.get("val/accuracy", metrics.get("val/top1"))


def main() -> None:
    """The command line."""
    open_door(run, "config", "facelab.train")


if __name__ == "__main__":
    main()
