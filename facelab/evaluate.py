"""Measures a model on a benchmark: `python -m facelab.evaluate checkpoint=… benchmark.path=…`; `--help` says more."""

from pathlib import Path
from typing import Any

from facelab.door import open_door


def run(config: Any) -> float | None:
    """One job: gives the benchmark's accuracy."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)

    from facelab.training.evaluation import evaluate

    hydra = HydraConfig.get()
    typed = {word.split("=", 1)[0].lstrip("+") for word in hydra.overrides.task}
    metrics = evaluate(config, typed, Path(hydra.runtime.output_dir))
    return next((value for name, value in metrics.items() if name.endswith("/accuracy")), None)


def main() -> None:
    """The command line."""
    open_door(run, "evaluate", "facelab.evaluate")


if __name__ == "__main__":
    main()
