"""From runs to rows: what was swept, what differs besides, and which runs are the seeds of one row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from facelab.compare.results import Run
from facelab.door import LONGEST_NAME, configuration_folder
from facelab.training.sameness import FREE

# Not what an experiment is about: where and how comfortably it ran, how it was measured (a stamp says that), the seed.
UNASKED = (*FREE, "seed", "benchmark", "ema", "data.root", "data.roots", "teacher", "trainer.log_every")
ANYTHING = ("experiment", "sweeps", "checkpoint")  # choices that decide about keys of every group
WORD = re.compile(r",(?=~?[A-Za-z_][\w.@]*=|~[A-Za-z_])")
NONE = "–"


@dataclass(frozen=True)
class Arranged:
    """The rows.

    Attributes:
        keys: what they differ in.
        rows: for each, its choices and its runs, one a seed.
        unasked: key → its values, of what differs and was not swept.
    """

    keys: tuple[str, ...]
    rows: tuple[tuple[dict[str, Any], tuple[Run, ...]], ...]
    unasked: dict[str, list[Any]]


def arrange(runs: Sequence[Run], keys: Sequence[str] | None) -> Arranged:
    """Sorts runs into rows.

    Args:
        runs: that are compared.
        keys: what was swept, ``[loss, loss.margin]``; None: what their jobs' names say, and what differs besides.

    Raises:
        ValueError: a key that no run has, or two runs that are the same row and seed.
    """
    words = [job_words(run) for run in runs]
    differing = _differing(runs)
    if keys is None:
        told = _ordered({key for one in words for key in one} - {"seed"})
        # A key whose value is the same in all, typed or not, separates nobody.
        told = [
            key for key in told if len({_hashable(_choice(key, *pair)) for pair in zip(runs, words, strict=True)}) > 1
        ]
    else:
        told = list(keys)
        known = {key for run in runs for key in run.config} | {key for one in words for key in one}
        lost = [key for key in told if key not in known and not any(one.startswith(f"{key}.") for one in known)]
        if lost:
            raise ValueError(f"keys has {', '.join(lost)}, which no run's configuration has: give {_some(differing)}")
    besides = {key: values for key, values in differing.items() if not _explained(key, told)}
    parts = [*told, *(besides if keys is None else ())]
    rows = _grouped(runs, words, parts)
    # An option explains its own values; where one option has come with several, it does not.
    mixed = {
        key: values
        for key, values in differing.items()
        if key not in besides and key not in parts and any(_differ(key, members) for _, members in rows)
    }
    if mixed and keys is None:
        parts += mixed
        rows = _grouped(runs, words, parts)
    for _, members in rows:
        _check_seeds(members, [key for key in differing if key not in parts])
    order = sorted(rows, key=lambda row: [_rank(value) for value in row[0].values()])
    listed = tuple((choices, tuple(sorted(members, key=lambda run: _rank(run.seed)))) for choices, members in order)
    return Arranged(tuple(parts), listed, {**besides, **mixed})


def _grouped(
    runs: Sequence[Run], words: Sequence[Mapping[str, str]], parts: Sequence[str]
) -> list[tuple[dict[str, Any], list[Run]]]:
    """Choices, and the runs that have them."""
    rows: dict[Any, tuple[dict[str, Any], list[Run]]] = {}
    for run, said in zip(runs, words, strict=True):
        choices = {key: _choice(key, run, said) for key in parts}
        rows.setdefault(tuple(map(_hashable, choices.values())), (choices, []))[1].append(run)
    return list(rows.values())


def _differ(key: str, runs: Sequence[Run]) -> bool:
    return len({_hashable(run.config.get(key)) for run in runs}) > 1


def _check_seeds(runs: Sequence[Run], differing: Sequence[str]) -> None:
    seen: dict[int | None, Run] = {}
    for run in runs:
        first = seen.setdefault(run.seed, run)
        if first is not run:
            others = [key for key in differing if _differ(key, [first, run])]
            mend = f"they differ in {', '.join(others)}: name that in keys" if others else "leave one of them out"
            raise ValueError(f"{first.path} and {run.path} are the same row and seed ({run.seed}): {mend}")


def label(choices: Mapping[str, Any]) -> str:
    """A row in a few words; what has no such key is not mentioned."""
    words = [f"{key}={spoken(value)}" for key, value in choices.items() if value is not None]
    return ", ".join(words) or "defaults"


def spoken(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else "null"
    return f"{value:g}" if isinstance(value, float) else str(value)


def job_words(run: Run) -> dict[str, str]:
    """What a job's name says, key → value: of ``loss=cosface,seed=2`` both; of a word of one's own nothing.

    Of published weights it is the file: what they were trained with, nobody knows.
    """
    checkpoint = Path(run.config.get("checkpoint", "best.ckpt"))
    if "trainer.batch_size" not in run.config:
        return {"checkpoint": "_".join(checkpoint.parts[-2:])}
    own = {} if checkpoint.stem == "best" else {"checkpoint": checkpoint.stem}
    parts = WORD.split(run.job)
    if len(run.job) >= LONGEST_NAME and re.search(r"-[0-9a-f]{8}$", run.job):
        parts = parts[:-1]  # the name was cut in it
    pairs = [part.partition("=") for part in parts]
    return {
        **{key.lstrip("~"): value if found else NONE for key, found, value in pairs if found or key[:1] == "~"},
        **own,
    }


def _choice(key: str, run: Run, words: Mapping[str, str]) -> Any:
    """A run's value of a key: of its configuration, of its name, or the default of a group, which no name mentions."""
    if key in run.config and key != "checkpoint":
        return run.config[key]
    if key in words:
        return _parsed(words[key])
    if any(one.startswith(f"{key}.") for one in run.config):  # a group
        return _defaults().get(key, _kind(run.config.get(f"{key}._target_")))
    return None


def _parsed(text: str) -> Any:
    """A word as YAML reads it: numbers are numbers."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _kind(target: Any) -> str | None:
    """An option by the module that answers it: facelab.loss.arcface.ArcFace → arcface."""
    return str(target).rsplit(".", 2)[-2] if target else None


@cache
def _defaults() -> dict[str, Any]:
    """Group → the option that a training has without a word, groups in groups with a dot."""
    tree = yaml.safe_load((configuration_folder() / "config.yaml").read_text(encoding="utf-8"))
    pairs = [pair for one in tree["defaults"] if isinstance(one, dict) for pair in one.items()]
    return {key.replace("/", "."): option for key, option in pairs}


def _differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Keys that are not the same in all runs, with their values; neither the seed nor what follows it."""
    found = {}
    for key in sorted({key for run in runs for key in run.config}):
        if _within(key, UNASKED):
            continue
        values = {_hashable(run.config.get(key)): run.config.get(key) for run in runs}
        if len(values) > 1 and not all(run.config.get(key) == run.seed for run in runs):
            found[key] = list(values.values())
    return found


def _explained(key: str, told: Sequence[str]) -> bool:
    """Whether a choice that was named decides about this key: an option of a group about all its values."""
    # Some backbones bring their head, and losses of pairs need the sampler that brings several images of a person.
    brought = {"head": "backbone", "data.sampler": "loss"}
    return (
        any(word in ANYTHING for word in told)
        or _within(key, told)
        or any(_within(key, [part]) and by in told for part, by in brought.items())
        or any(word.startswith(f"{key}.") for word in told)
    )


def _within(key: str, keys: Iterable[str]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in keys)


def _ordered(keys: Iterable[str]) -> list[str]:
    """Groups before values, as in a job's name."""
    return sorted(keys, key=lambda key: ("." in key, key))


def _hashable(value: Any) -> Any:
    return (
        repr(value)
        if isinstance(value, (list, dict))
        else (type(value).__name__ if isinstance(value, bool) else "", value)
    )


def _rank(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then words by letter; nothing comes first."""
    if value is None:
        return 0, 0.0, ""
    if isinstance(value, (int, float)):
        return 1, float(value), ""
    return 2, 0.0, str(value)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:6]) + (" …" if len(names) > 6 else "") if names else "keys of config.yaml"
