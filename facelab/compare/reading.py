"""From folders to runs: what is finished is read, what is not is named with the reason. Nothing in them is executed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from facelab.compare.results import Cost, Run, Scores
from facelab.compare.scores import read_scores
from facelab.report.record import read_columns
from facelab.training.sameness import LATER, flat
from facelab.trusted import parse

SIGNS = ("metrics.csv", "metrics.json", "environment.json", "scores", "checkpoints", ".lock")  # of a run


@dataclass(frozen=True)
class Read:
    """What folders held.

    Attributes:
        runs: that are finished.
        unfinished: runs without an end: their history, and no scores.
        unread: folders that were left out, with the reason.
    """

    runs: tuple[Run, ...]
    unfinished: tuple[Run, ...]
    unread: tuple[tuple[Path, str], ...]


class Unreadable(ValueError):
    """Why one run directory was left out."""


def read(folders: Sequence[Path]) -> Read:
    """Reads run directories: those given, and those one or two levels below a folder that is none itself.

    An evaluation of a checkpoint is joined to the run that trained it (see `joined`).

    Raises:
        FileNotFoundError: a folder is not there, or nothing of a run is in it.
        ValueError: all that was found is empty, unfinished or damaged: the reasons are told.
    """
    found: dict[Path, None] = {}
    unread: list[tuple[Path, str]] = []
    for folder in folders:
        runs, odd = _look(folder)
        found |= dict.fromkeys(runs)
        unread += odd
    arrays: dict[bytes, np.ndarray] = {}
    finished: list[Run] = []
    unfinished: list[Run] = []
    for path in found:
        try:
            run = read_run(path, arrays)
        except Unreadable as error:
            unread.append((path, str(error)))
            continue
        (finished if run.finished else unfinished).append(run)
    if not finished:
        reasons = [f"{run.path} is unfinished" for run in unfinished] + [f"{path}: {why}" for path, why in unread]
        raise ValueError(
            f"no finished run in {', '.join(map(str, folders))} ({'; '.join(reasons[:5])}{' …' * (len(reasons) > 5)}): "
            "start the same training again, it goes on"
        )
    return Read(tuple(joined(finished)), tuple(unfinished), tuple(unread))


def _look(folder: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The run directories of a folder, and folders that are none, with the reason."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give runs/<name>, or run directories")
    if (folder / "config.yaml").is_file():
        return [folder], []
    runs, odd = [], []
    for child in _folders(folder):
        if (child / "config.yaml").is_file():
            runs.append(child)
            continue
        below = [path for path in _folders(child) if (path / "config.yaml").is_file()]
        runs += below
        if not below and any((child / sign).exists() for sign in SIGNS):
            odd.append((child, "it has no config.yaml, so it never began, or was copied in part"))
        elif not below and not any(child.iterdir()):
            odd.append((child, "it is empty"))
    if not runs and not odd:
        raise FileNotFoundError(f"{folder}: there is no run directory in it; give runs/<name>, or run directories")
    return runs, odd


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def read_run(path: Path, arrays: dict[bytes, np.ndarray] | None = None) -> Run:
    """Reads one run directory.

    Args:
        path: the folder.
        arrays: what runs share (whose pairs, which are genuine) is there once; None: share nothing.

    Raises:
        Unreadable: a file of it is damaged, or it is the record of something else.
    """
    try:
        return _run_of(path, {} if arrays is None else arrays)
    except (AttributeError, LookupError, TypeError, OverflowError) as error:
        what = f"{type(error).__name__}: {error}"
        raise Unreadable(f"its files do not say what those of a run do ({what})") from error


def _run_of(path: Path, arrays: dict[bytes, np.ndarray]) -> Run:
    tree = _parsed(path / "config.yaml", parse)
    if "study" in tree or not ("trainer" in tree or "checkpoint" in tree):
        raise Unreadable("its config.yaml is of neither a training nor an evaluation")
    environment, metrics = (_parsed(path / name, json.loads) for name in ("environment.json", "metrics.json"))
    finished = (path / "metrics.json").is_file()
    files = sorted((path / "scores").glob("*.npz")) if finished else []
    try:
        history = read_columns(path / "metrics.csv")
        found = [read_scores(file, arrays) for file in files]
    except (ValueError, OSError) as error:
        raise Unreadable(" ".join(str(error).split())) from error
    # The file's own order is lost in the folder; metrics.json has kept it.
    order = list(metrics)
    found.sort(key=lambda one: min((order.index(key) for key in one.metrics if key in metrics), default=len(order)))
    trained = tree.get("trained", {}).get("config", tree)
    config = {**LATER, **dict(flat(trained))}
    if "checkpoint" in tree:
        config |= {"checkpoint": str(tree["checkpoint"]), "ema": tree.get("ema")}
    seed = config.get("seed")
    return Run(
        path=path,
        sweep=str(trained.get("name", path.parent.name)),
        job=str(trained.get("job", path.name)),
        seed=seed if isinstance(seed, int) else None,
        finished=finished,
        config=config,
        metrics={key: float(value) for key, value in metrics.items() if isinstance(value, (int, float))},
        scores={one.name: one for one in found},
        history=history,
        cost=_cost(tree, environment, metrics),
        environment=environment,
        wandb=environment.get("wandb"),
    )


def _parsed(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """A file's mapping; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"its {path.name} cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict):
        raise Unreadable(f"its {path.name} is empty or no mapping")
    return content


def _cost(tree: Mapping[str, Any], environment: Mapping[str, Any], metrics: Mapping[str, Any]) -> Cost:
    starts = environment.get("starts") or [{}]
    parameters = float(metrics.get("parameters", np.nan))
    trainer = tree.get("trainer")
    if trainer is None:  # an evaluation has not trained anything
        return Cost(np.nan, np.nan, "", 0, np.nan, parameters)
    devices = int(trainer.get("devices") or 1) * int(trainer.get("num_nodes") or 1)
    gpus = starts[-1].get("gpus")
    on_gpu = bool(gpus) and trainer.get("accelerator") != "cpu"
    return Cost(
        images_per_s=float(metrics.get("images_per_s", np.nan)),
        device_hours=float(metrics.get("seconds", np.nan)) * devices / 3600,
        device=gpus[0] if on_gpu else "CPU" if gpus is not None else "",
        devices=devices,
        peak_memory=float(max((start.get("peak_memory") or np.nan for start in starts), default=np.nan)),
        parameters=parameters,
    )


def joined(runs: Sequence[Run]) -> Iterator[Run]:
    """Runs, each with what later evaluations of its best.ckpt have measured.

    An evaluation of last.ckpt, of another average, or of published weights is a run of its own; so is one whose run is
    not there, but several of these that measured the same checkpoint are one.
    """
    kept: dict[tuple[Any, ...], Run] = {}
    for run in sorted(runs, key=lambda run: "checkpoint" in run.config):  # trainings first
        checkpoint = run.config.get("checkpoint")
        best = checkpoint is None or (Path(checkpoint).stem == "best" and run.config["ema"] is None)
        which = () if best else (checkpoint, run.config["ema"])
        # The same job in two places is two runs; an evaluation belongs to the first of them.
        key: tuple[Any, ...] = (run.sweep, run.job, run.seed, *which)
        if checkpoint is None and key in kept:
            key = (*key, run.path)
        kept[key] = run if key not in kept else _with_scores(kept[key], run)
    yield from kept.values()


def _with_scores(run: Run, later: Run) -> Run:
    """What a run itself reports goes before what was measured again."""
    new: dict[str, Scores] = {name: one for name, one in later.scores.items() if name not in run.scores}
    metrics = {key: value for one in new.values() for key, value in one.metrics.items()}
    return replace(run, scores={**run.scores, **new}, metrics={**metrics, **run.metrics})
