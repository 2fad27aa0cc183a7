"""Measures a model on a benchmark: `python -m facelab.evaluate checkpoint=… benchmark.path=…`; `--help` says more."""

import sys
from pathlib import Path
from typing import Any

from facelab.door import open_door
from facelab.job import without_collection


def run(config: Any) -> float | None:
    """One job: gives the benchmark's accuracy."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    if config.check is True:
        with without_collection():
            from facelab.training.evaluation import check
        sys.exit(0 if check(config) else 1)
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)

    with without_collection():
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
