"""Several jobs of one command: what is refused before one of them starts, which are done, which failed and why.

Hydra's own sweeper composes the points and hands them to the launcher; here it learns what a run directory knows.
"""

import copy
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from facelab.tuning import is_range, tried, tuned

__all__ = [
    *("Failed", "JobFailed", "Look", "Point", "Stopped", "Sweep"),
    *("combinations", "launches_processes", "swept_keys"),
]

OR = "or"


@dataclass(frozen=True)
class Look:
    """What a door says of a job that has not started.

    Attributes:
        result: a few words on its result, where there is one: then it is not started again.
        processes: key → number, whose product is the number of processes that the job asks for.
    """

    result: str | None = None
    processes: Mapping[str, int] = field(default_factory=dict)


class JobFailed(Exception):
    """A job of several has failed.

    Args:
        reason: one line.
        log: the file that holds the rest, or None where it could not be written.
    """

    def __init__(self, reason: str, log: str | None):
        super().__init__(reason, log)
        self.reason, self.log = reason, log


class Failed(Exception):
    """Some jobs have failed, the others are done; `str()` lists them."""


class Stopped(BaseException):
    """A job was asked to stop, and so all are; no launcher takes this for a failure of that job alone."""


def combinations(
    params: Mapping[str, Any], arguments: Sequence[str], loader: Any, tune: Mapping[str, Any] | None = None
) -> list[list[str]]:
    """Every combination of values, each as overrides.

    Args:
        params: key → values, as `hydra.sweeper.params` of a file of sweeps/. Under the key `or` it may have other
            combinations that are tried beside those, `key=values key=values`, several of them with an `or` between.
        arguments: what was typed, as words; it stands in place of the values of a file.
        loader: Hydra's, which knows the options that a glob stands for.
        tune: what becomes of ranges, as in sweeps/tune.yaml: `trials` of each, or the best one of those in the folder
            `best_of`, known `by` a number of its record.

    Raises:
        ValueError: a range cannot be tried, or its trials are not there.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # Hydra's scan for plugins remakes it

    grids = [[f"{key}={value}" for key, value in params.items() if key != OR], *([] for _ in range(OR in params))]
    for word in str(params.get(OR, "")).split():
        if word == OR:
            grids.append([])
        else:
            grids[-1].append(word)
    for word in arguments:
        grids = _with_typed(grids, word, OverridesParser.create(config_loader=loader))
    if any(is_range(word) for words in grids for word in words):
        if tune is None:
            raise ValueError("ranges are tried by a sweep that has tune.trials, as sweeps/tune.yaml")
        if tune["best_of"] is not None:
            grids = tuned(grids, Path(tune["best_of"]), tune["by"])
        else:
            grids = [point for words in grids for point in tried(words, tune["trials"])]
    found: list[list[str]] = []
    for words in grids:
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(words)
        found += BasicSweeper.split_arguments(overrides, None)[0]
    return found


def _with_typed(grids: Sequence[list[str]], word: str, parser: OverridesParser) -> list[list[str]]:
    """What was typed, in place of the values of a file.

    Where combinations have a key and no value of it in common (one has these losses, another those), a typed value
    belongs to the combination that has it, or else to the first; who has none of them is left out.
    """
    key = _key(word)
    own = [{value for old in words if _key(old) == key for value in _values(old, parser)} for words in grids]
    everywhere = set().union(*own)
    divided = sum(map(bool, own)) > 1 and sum(map(len, own)) == len(everywhere)
    found = []
    for number, words in enumerate(grids):
        given = word
        if divided:
            mine = [v for v in _values(word, parser) if v in own[number] or (number == 0 and v not in everywhere)]
            if not mine:
                continue
            given = f"{key}={','.join(mine)}"
        place = next((place for place, old in enumerate(words) if _key(old) == key), len(words))
        found.append([*words[:place], given, *words[place + 1 :]])
    return found


def _key(word: str) -> str:
    return word.split("=", 1)[0]


def _values(word: str, parser: OverridesParser) -> list[str]:
    """The values that an override sweeps over, or its only one; none of a range."""
    if is_range(word):
        return []
    (override,) = parser.parse_overrides([word])
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.get_value_element_as_str()]


def swept_keys(params: Mapping[str, Any]) -> set[str]:
    """The keys and groups that a file of sweeps/ sweeps over."""
    return set(params) - {OR}


@dataclass(frozen=True)
class Point:
    """A job before it starts."""

    overrides: list[str]
    config: DictConfig  # composed, with Hydra's own part
    name: str  # of its folder
    where: Path
    look: Look


def launches_processes(hydra_config: DictConfig) -> bool:
    """Whether the launcher starts the processes of a job itself, as submitit does; else a job is one process."""
    return "submitit" in str(hydra_config.launcher.get("_target_"))


class Sweep(Sweeper):
    """Every combination of the values, as Hydra's own sweeper has it, less the jobs that are finished.

    All points are composed before one is started. A job that fails leaves the others alone.

    Args:
        max_batch_size: points that a launcher gets at once; None: all.
        params: key → values, of a file of sweeps/.
    """

    def __init__(self, max_batch_size: int | None, params: Mapping[str, Any] | None):
        self.max_batch_size, self.params = max_batch_size, dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's: what there will be to sweep over, and with what."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.look: Callable[[DictConfig, Path], Look] = getattr(task_function, "look", None) or (lambda *_: Look())

    def sweep(self, arguments: list[str]) -> None:
        """Starts every job that has no result yet.

        Args:
            arguments: what was typed, as words.

        Raises:
            ValueError: nothing was started, since the points do not go together or one of them is refused.
            Failed: some jobs have failed.
            Stopped: somebody has interrupted it.
        """
        assert self.config is not None
        points = self._points(arguments)
        place = _shown(os.path.commonpath([point.where.parent for point in points]))
        _check_places(points, place)
        left = [point for point in points if point.look.result is None]
        _check_processes(left, launches_processes(self.config.hydra))
        for point in points:
            if point.look.result is not None:
                print(f"finished  {point.name}  {point.look.result}", flush=True)
        failed = self._launch(left)
        done = len(points) - len(failed)
        print(f"{place}: {done:,} of {len(points):,} jobs are finished", flush=True)
        if failed:
            raise Failed(
                f"{len(failed):,} of {len(points):,} jobs in {place} failed; mend what their lines say, and the same "
                "command starts these alone:" + "".join(f"\n  {line}" for line in failed)
            )

    def _points(self, arguments: list[str]) -> list[Point]:
        assert self.hydra_context is not None
        assert self.config is not None
        loader = self.hydra_context.config_loader
        points = []
        tune = OmegaConf.select(self.config, "tune")
        for overrides in combinations(self.params, arguments, loader, tune):
            config = loader.load_sweep_config(self.config, overrides)
            with _while_running(config):
                name = str(config.hydra.sweep.subdir)
                where = Path(os.path.abspath(os.path.join(str(config.hydra.sweep.dir), name)))
                points.append(Point(overrides, config, name, where, self.look(_of_task(config), where)))
        return points

    def _launch(self, points: Sequence[Point]) -> list[str]:
        """Has the jobs run; gives a line for each that failed."""
        assert self.launcher is not None
        failed: list[str] = []
        size = self.max_batch_size or max(1, len(points))
        for first in range(0, len(points), size):
            batch = points[first : first + size]
            try:
                results: Any = self.launcher.launch([point.overrides for point in batch], initial_job_idx=first)
            except KeyboardInterrupt:
                raise Stopped(
                    "interrupted; the same command, started again, goes on where its jobs stand (what was submitted "
                    "to a queue goes on by itself)"
                ) from None
            except Exception as error:  # a worker was killed: then nobody tells what became of the others
                results = [error] * len(batch)
            failed += [line for point, found in zip(batch, results, strict=True) if (line := self._why(point, found))]
        return failed

    def _why(self, point: Point, found: JobReturn | Exception) -> str:
        """A line on a job that failed; nothing where it did not."""
        log = None
        if isinstance(found, JobReturn):
            if found.status != JobStatus.FAILED:
                return ""
            error = found._return_value
            reason = error.reason if isinstance(error, JobFailed) else f"{type(error).__name__}: {error}"
            log = error.log if isinstance(error, JobFailed) else None
        else:
            with _while_running(point.config):
                if self.look(_of_task(point.config), point.where).result is not None:
                    return ""
            reason = f"has no result, since the launcher gave up ({type(found).__name__}: {found})"
        return f"{point.name}: {' '.join(reason.split())}" + (f" [{_shown(log)}]" if log else "")


@contextmanager
def _while_running(config: DictConfig) -> Iterator[None]:
    """What is resolved in here finds Hydra's part of the configuration, as inside a job."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before


def _of_task(config: DictConfig) -> DictConfig:
    """The same without Hydra's part, as a job gets it."""
    task = copy.deepcopy(config)
    with read_write(task), open_dict(task):
        del task["hydra"]
    return task


def _shown(path: str) -> str:
    """A path as one would type it here."""
    near = os.path.relpath(path)
    return path if near.startswith("..") else near


def _check_places(points: Sequence[Point], place: str) -> None:
    name, count = Counter(point.name for point in points).most_common(1)[0]
    if count > 1 and name != ".":  # facelab.prepare has no run directories
        raise ValueError(
            f"{count:,} of the {len(points):,} jobs would share the run directory {place}/{name}: leave job=… out, "
            "then each is named by what differs, and sweep over nothing that changes no result"
        )


def _check_processes(points: Sequence[Point], launched: bool) -> None:
    """Refuses jobs of several processes where nobody would start these, and of several sizes where all are alike."""
    asked = {tuple(point.look.processes.items()) for point in points}
    for of_point in sorted(asked):
        if not launched and prod(number for _, number in of_point) > 1:
            raise ValueError(
                f"{' × '.join(key for key, _ in of_point)} is {prod(number for _, number in of_point)}, and in a "
                "multirun every further process would start a multirun of its own: have submitit start them "
                "(hydra/launcher=local on this machine, hydra/launcher=slurm on a cluster), or run point by point"
            )
    if len(asked) > 1:
        keys = [key for key in dict(min(asked)) if len({dict(of_point)[key] for of_point in asked}) > 1]
        values = sorted({dict(of_point)[keys[0]] for of_point in asked})
        launches = " and ".join(f"{keys[0]}={value}" for value in values)
        raise ValueError(
            f"{' and '.join(keys)} is swept, and all jobs of one submission get equal machines: split it into a launch "
            f"for each ({launches}), they join the same folder"
        )


# Here, so that it is known in every process: steps in which as many images are seen, whatever the batch.
OmegaConf.register_new_resolver("facelab.steps", lambda images, batch: max(1, round(images / batch)), replace=True)
