"""Writes a model in a form for others: `python -m facelab.export checkpoint=…`; `--help` says more."""

from pathlib import Path
from typing import Any

from facelab.door import open_door


def run(config: Any) -> None:
    """One job."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)

    from facelab.export.export import export

    export(config, Path(HydraConfig.get().runtime.output_dir))


def main() -> None:
    """The command line."""
    open_door(run, "export", "facelab.export")


if __name__ == "__main__":
    main()
