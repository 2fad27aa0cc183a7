"""Sends run directories to W&B, whatever was lost on the way: `python -m facelab.training.send runs/losses/*`.

A run is sent as it would have been while it ran: the same id, group and tags, each step once. What W&B has already is
left out, so a run may be sent again. Runs of `logger=csv` can be sent too, and those that were interrupted.
"""

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from facelab.training.exhibit import of_run
from facelab.training.logging import rows_of, tags_of
from facelab.training.record import RunDirectory
from facelab.training.wandb_run import WandbRun
from facelab.trusted import configuration, parse

DEFAULTS = {"project": "facelab", "entity": None}  # of runs that had another logger
OPTIONS = (*DEFAULTS, "mode")


def send(run: Path, **options: Any) -> str | None:
    """Sends one run directory; without a key it becomes an offline run of its folder wandb/.

    Args:
        run: the folder.
        options: project, entity and mode in place of what its configuration says.

    Returns:
        Its W&B id.

    Raises:
        FileNotFoundError: it is no run directory.
        ValueError: it belongs to a running process, or W&B cannot be started.
    """
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"{run}: not a run directory, there is no config.yaml; give runs/<name>/<job>")
    config = configuration(parse((run / "config.yaml").read_text(encoding="utf-8")), str(run / "config.yaml"))
    with closing(RunDirectory(run, config)) as directory:
        chosen = {key: config.get("logger", {}).get(key, value) for key, value in DEFAULTS.items()}
        chosen |= {"mode": "auto", **options}
        job_type = "evaluate" if "checkpoint" in config else "train"
        words = {"group": config["name"], "job": config["job"], "job_type": job_type, "tags": tags_of(config)}
        logger = WandbRun(**chosen, run=run, config=config, **words)
        try:
            logger.follow(rows_of(run / "metrics.csv"))
            if directory.finished:
                logger.publish(of_run(directory.metrics(), run))
        finally:
            logger.finish(directory.finished)
        return logger.identity


def main() -> None:
    """The command line: run directories, and project=, entity= or mode= for all of them."""
    options = dict(word.split("=", 1) for word in sys.argv[1:] if word.partition("=")[0] in OPTIONS)
    runs = [Path(word) for word in sys.argv[1:] if word.partition("=")[0] not in OPTIONS]
    if not runs:
        print("usage: python -m facelab.training.send RUN … [project=… entity=… mode=online]", file=sys.stderr)
        sys.exit(2)
    for run in runs:
        try:
            print(f"{run}  {send(run, **options)}", flush=True)
        except (ValueError, OSError) as error:
            print(f"facelab: {error}", file=sys.stderr)
            sys.exit(1)


if __name__ == "__main__":
    main()
