"""As many trials for one choice as for another: values laid evenly over ranges, and the best of them found again.

A file of sweeps/ writes `optimizer.lr=between(0.05,0.4,log)`. Trial t has the t-th point of one sequence for whatever
is tuned, so that each loss is tried at the same shares of its own ranges (sweeps/tune.yaml, sweeps/tuned.yaml).
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from facelab.trusted import parse

__all__ = ["is_range", "shares", "tried", "tuned"]

BITS = 30
SHIFTS = (0x1E3779B9, 0x2B7E1516, 0x243F6A88, 0x05A09E67)  # digits of constants: any numbers do
DIMENSIONS = len(SHIFTS)  # at most so many values are tuned together
_RANGE = re.compile(r"([^=]+)=between\(([^,()]+),([^,()]+)(?:,(log|linear))?\)")


def shares(trial: int) -> list[float]:
    """The point of a trial in the unit cube, of a Sobol sequence: of 2^k points in a row each 2^k-th has one.

    More trials keep the points of fewer. All bits are shifted alike, so that the first point is no corner.
    """
    return [(number ^ shift) / 2**BITS for number, shift in zip(sobol(trial), SHIFTS, strict=True)]


def sobol(number: int) -> list[int]:
    """Point of a Sobol sequence, as `BITS` bits behind the point in each dimension (Joe and Kuo's directions, 2008)."""
    from scipy.stats.qmc import Sobol  # which only a sweep with ranges waits for

    engine = Sobol(DIMENSIONS, scramble=False, bits=BITS)
    if number:
        engine.fast_forward(number)
    return [int(share * 2**BITS) for share in engine.random(1)[0]]


def is_range(word: str) -> bool:
    """Whether an override is one of `between(low,high)`, `between(low,high,log)`."""
    return "=between(" in word


def tried(words: Sequence[str], trials: int) -> list[list[str]]:
    """The overrides of each trial: every range with a value of it, to three digits.

    Args:
        words: overrides, some of which are ranges; the first range has the first dimension.
        trials: how many.

    Raises:
        ValueError: a range cannot be read, there are too many, or there is no trial.
    """
    ranges = {word: _read(word) for word in words if is_range(word)}
    if len(ranges) > DIMENSIONS:
        raise ValueError(
            f"{len(ranges)} ranges are tuned together, and at most {DIMENSIONS} can be: {' '.join(ranges)}"
        )
    if type(trials) is not int or trials < 1:
        raise ValueError(f"tune.trials is {trials!r}: give how many values are tried of each range, from 1 on")
    found = []
    for trial in range(trials):
        at = dict(zip(ranges, shares(trial), strict=False))
        found.append([_value(*ranges[word], at[word]) if word in ranges else word for word in words])
    return found


def _read(word: str) -> tuple[str, float, float, bool]:
    found = _RANGE.fullmatch(word)
    try:
        assert found is not None
        low, high = float(found[2]), float(found[3])
    except (AssertionError, ValueError):
        raise ValueError(f"cannot read {word}: write key=between(low,high) or key=between(low,high,log)") from None
    if not (low < high and (low > 0 or found[4] != "log")):
        raise ValueError(f"{word}: low must be below high, and above 0 where the scale is logarithmic")
    return found[1], low, high, found[4] == "log"


def _value(key: str, low: float, high: float, logarithmic: bool, share: float) -> str:
    value = math.exp(math.log(low) + share * math.log(high / low)) if logarithmic else low + share * (high - low)
    return f"{key}={float(f'{value:.3g}'):g}"


def tuned(grids: Sequence[Sequence[str]], folder: Path, by: str) -> list[list[str]]:
    """The same overrides with the values of the best trial in place of the ranges.

    Args:
        grids: of each choice that was tuned, its overrides; the first says which choice it is, `loss=cosface`.
        folder: of the trials, runs/tune.
        by: the key of metrics.json that is best where it is largest.

    Raises:
        ValueError: there are no trials of a choice, or choices have unequal numbers of them, which is no fair ranking.
    """
    records = [record for path in sorted(folder.glob("*/metrics.json")) if (record := _record(path, by)) is not None]
    found, counts = [], {}
    for words in grids:
        choice = words[0]
        own = [record for record in records if choice in record[1].split(",")]
        counts[choice] = len(own)
        if own:
            best = max(own, key=lambda record: record[0])[2]  # the first of equals
            chosen = (word.split("=", 1)[0] if is_range(word) else "" for word in words)
            found.append([f"{key}={_at(best, key)}" if key else word for key, word in zip(chosen, words, strict=True)])
    if len(set(counts.values())) != 1 or len(found) < len(grids):
        told = ", ".join(f"{choice} has {count}" for choice, count in counts.items())
        raise ValueError(
            f"{folder} has unequal numbers of finished trials with {by} ({told}): a ranking is fair where all have as "
            "many; start sweeps=tune again until it ends well"
        )
    return found


def _record(path: Path, by: str) -> tuple[float, str, Any] | None:
    try:
        metrics = json.loads(path.read_text())
        config = parse((path.parent / "config.yaml").read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return None
    return (float(metrics[by]), path.parent.name, config) if by in metrics else None


def _at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config
