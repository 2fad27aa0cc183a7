"""One job behind a door, alone or among several: what becomes of its errors."""

import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from facelab.multirun import JobFailed, Look, Stopped, launches_processes
from facelab.secrecy import without_secrets

__all__ = ["Job", "without_collection", "writes"]


class Job:
    """The task, with its errors kept for us: Hydra would add two lines of its own to each. A launcher may pickle it.

    Args:
        task: gets the composed configuration.
        look: see `facelab.door.open_door`.
        explain: gives one line for an error that the user can mend, None for a fault of ours.
        program: the module that is run.

    Attributes:
        failed: the error of a job that is the only one.
        reached: configurations with which the task was called.
    """

    def __init__(
        self,
        task: Callable[[DictConfig], Any],
        look: Callable[[DictConfig, Path], Look] | None,
        explain: Callable[[Exception], str | None],
        program: str,
    ):
        self.task, self.look, self.explain, self.program = task, look, explain, program
        self.failed: list[Exception] = []
        self.reached: list[DictConfig] = []

    def __call__(self, config: DictConfig) -> Any:
        """Hydra's: does the task."""
        self.reached.append(config)
        hydra_config: Any = HydraConfig.get()
        several = hydra_config.mode == RunMode.MULTIRUN
        try:
            return self.task(config)
        except BaseException as error:
            if several and isinstance(error, SystemExit) and not error.code:
                return None
            _remove_empty(Path(hydra_config.runtime.output_dir))
            if several and type(error).__name__ == "Interrupted" and not launches_processes(hydra_config):
                raise Stopped(str(error)) from error  # whoever pressed Ctrl-C does not want the next job to begin
            if several and isinstance(error, (Exception, SystemExit)) and type(error).__name__ != "Interrupted":
                raise self._failure(error) from error
            if several or not isinstance(error, Exception):
                raise
            self.failed.append(error)

    def _failure(self, error: BaseException) -> JobFailed:
        """The error of one job among several, as one line; all of it is written to the job's log."""
        hydra_config: Any = HydraConfig.get()
        line = self.explain(error) if isinstance(error, Exception) else None
        reason = line or " ".join(f"{type(error).__name__}: {error}".split())
        log = OmegaConf.select(hydra_config, "job_logging.handlers.file.filename")
        words = without_secrets(" ".join(hydra_config.overrides.task))
        try:
            Path(log).parent.mkdir(parents=True, exist_ok=True)
            with open(log, "a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {self.program} {words}\n")
                file.writelines(traceback.format_exception(error))
        except (OSError, TypeError):  # a full disk; no such file in the configuration
            log = None
        if "torch" not in sys.modules or writes():  # else a job that failed early would wait for it
            print(f"facelab: {Path(hydra_config.runtime.output_dir).name}: {reason}", file=sys.stderr, flush=True)
        return JobFailed(reason, log)


@contextmanager
def without_collection() -> Iterator[None]:
    """While the large libraries are imported, which make a million objects and no garbage: a sixth sooner."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def writes() -> bool:
    """Whether this process is the first of its run: the others stop with it, and need not say so as well."""
    from facelab.training.strategy import launched_rank  # there already, since training was interrupted

    return launched_rank() == 0


def _remove_empty(folder: Path) -> None:
    """Hydra has made the job's folder, and perhaps the one of its name: where nothing came to lie in them, they go."""
    here = Path.cwd()
    for made in (folder, folder.parent):
        if made != here and made not in here.parents:  # which Hydra has not made, empty or not
            with suppress(OSError):
                made.rmdir()
