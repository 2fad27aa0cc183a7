"""The points of a sweep, for slurm/sweep.sbatch: writes them to a file, a line each, and prints what sbatch must know.

    python slurm/points.py sweeps=losses seed=1,2,3
    runs/losses/.slurm/20261126-101500.points 9 1 1

that is the file, the number of points that are not finished yet, and trainer.num_nodes and trainer.devices of each. A
line is the job's name and its overrides, between tabs.
"""

import sys
import time
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from facelab.atomic import atomic
from facelab.door import _grouped, _quoted, configuration_folder


def points(words: list[str]) -> tuple[Path, list[tuple[str, list[str], Any]]]:
    """Every combination of the values, in the order of a multirun.

    Args:
        words: as they were typed: key=value, or key=value,value,…

    Returns:
        the sweep's folder; and of each point its name, its overrides and its composed configuration.
    """
    folder = str(configuration_folder())
    words = [_quoted(_grouped(word, folder)) for word in words]
    with hydra.initialize_config_dir(folder, version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        fixed = [o.input_line for o in parser.parse_overrides(words) if not o.is_sweep_override()]
        whole = hydra.compose("config", fixed, return_hydra_config=True)
        params = [f"{key}={value}" for key, value in (whole.hydra.sweeper.params or {}).items()]
        batch = BasicSweeper.split_arguments(parser.parse_overrides([*params, *words]), None)[0]
        composed = [hydra.compose("config", list(overrides), return_hydra_config=True) for overrides in batch]
        found = [(str(one.job), list(overrides), one) for overrides, one in zip(batch, composed, strict=True)]
    return Path(whole.hydra.sweep.dir), found


def main() -> None:
    """The command line."""
    where, found = points(sys.argv[1:])
    names = [name for name, _, _ in found]
    if len(set(names)) < len(names):
        sys.exit("facelab: several points would share one run directory: leave job=… out, then each has its own")
    sizes = {(one.trainer.num_nodes, one.trainer.devices) for _, _, one in found}
    if len(sizes) > 1:
        sys.exit("facelab: all points of an array get the same resources: sweep over trainer.devices in several calls")
    left = [(name, overrides) for name, overrides, _ in found if not (where / name / "metrics.json").is_file()]
    file = where / ".slurm" / f"{time.strftime('%Y%m%d-%H%M%S')}.points"
    file.parent.mkdir(parents=True, exist_ok=True)
    if left:
        with atomic(file) as temporary:
            temporary.write_text("".join("\t".join([name, *words]) + "\n" for name, words in left), encoding="utf-8")
    nodes, devices = sizes.pop()
    print(file, len(left), nodes, devices)


if __name__ == "__main__":
    main()
