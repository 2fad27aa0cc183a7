"""A run that is made longer: more epochs or steps than it was begun with.

What that means for the rate: it is a function of the step and of the number of steps in all. From where the run stands
it is that of the longer run, so a decay to zero (poly, cosine) rises again to where the longer one would be. The steps
that are done were trained at the rates of the shorter one: the result is not the run that had so many epochs from its
first step, unless those rates were the same (milestones in epochs). Order and augmentation of the images know nothing
of the end, so they are the same.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from facelab.training.checkpoint import Progress
from facelab.training.record import RunDirectory

_LOOKS = 1000  # steps whose rates are compared


class Extension(NamedTuple):
    """That a run is longer than it was.

    Attributes:
        words: what it means, in one line.
        facts: for the record.
    """

    words: str
    facts: dict[str, Any]


def extend(directory: RunDirectory, data: Any, progress: Progress, recipe: Any) -> Extension | None:
    """Notes in `progress` how many steps the run has, and whether they have become more; called on every rank.

    What it had before is known to its checkpoint, or else to the configuration in its folder.

    Args:
        directory: the run's.
        data: the datamodule, with its numbers of steps.
        progress: where the run stands.
        recipe: gives the rate of a step.

    Raises:
        ValueError: it was to become longer, and does not.
    """
    before, now, step = progress.steps or _steps(directory.extended, data), data.steps, progress.step
    if directory.extended and before >= now:
        asked = ", ".join(f"{key}={new}" for key, (_, new) in directory.extended.items())
        raise ValueError(
            f"resume={directory.path}: with {asked} the run still has {before:,} steps, since the smaller of "
            "trainer.epochs and trainer.max_steps ends it: raise the other one too"
        )
    progress.steps = now
    if before >= now:
        return None
    if step > 0:
        progress.extended.append([step, before])
    rates = [[recipe.rate(s, steps, data.steps_per_epoch) for s in _sample(step)] for steps in (before, now)]
    meaning = (
        "the rates until now were those of a run with so many steps from the first on"
        if rates[0] == rates[1]
        else "the rate follows the new number from here on, so this is not the run with so many steps from the first on"
    )
    facts = {"step": step, "steps": [before, now], **{key: list(pair) for key, pair in directory.extended.items()}}
    return Extension(f"extended at step {step:,} from {before:,} to {now:,} steps; {meaning}", facts)


def _steps(extended: Mapping[str, tuple[Any, Any]], data: Any) -> int:
    options = data.options
    epochs, most = (extended.get(f"trainer.{n}", (getattr(options, n),))[0] for n in ("epochs", "max_steps"))
    steps = epochs * data.steps_per_epoch
    return steps if most is None else min(steps, most)


def _sample(step: int) -> list[int]:
    return sorted({place * step // _LOOKS for place in range(_LOOKS)}) if step else []
