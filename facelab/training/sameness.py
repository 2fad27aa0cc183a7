"""When two configurations are the same experiment, and when one is only a longer one."""

from collections.abc import Iterator, Mapping
from typing import Any

# What may differ between two starts of one experiment: it changes where and how comfortably it runs, not its result.
FREE = (
    "out",
    "name",
    "job",
    "logger",
    "tune",
    "resume",
    "data.known",
    "data.loader",
    "embeddings",
    "trainer.accelerator",
    "trainer.checkpointing",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.progress",
    "trainer.save_in_background",
    "trainer.save_every_steps",
    "trainer.save_every_minutes",
    # of an evaluation, whose checkpoint is known by its content:
    "checkpoint",
    "trained",
    "batch_size",
    "accelerator",
    "check",
    "progress",
    "loader",
    "benchmark.device",
    "benchmark.state",
)
# Options that are younger than some run directories, with the values that leave a run what it was without them.
LATER = {
    **{"backbone.freeze": 0, "optimizer.stage_decay": 1.0, "optimizer.backbone_factor": 1.0},
    **{"data.take.min_images": 1, "data.take.seed": 0, "data.take.long_tail.seed": 0},
    **{"data.take.noise.fraction": 0.0, "data.take.noise.kind": "flip", "data.take.noise.seed": 0},
    **{"benchmark.quality.alpha": 0.0, "benchmark.quality.beta": 0.0},
    "trainer.sync_batchnorm": False,
}
LONGER = ("trainer.epochs", "trainer.max_steps")  # what `resume=` may raise


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys in which two configurations are different experiments: key → (before, now), 'absent' for none."""
    old, new = ({**LATER, **dict(flat(tree))} for tree in (before, now))
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    differing = [key for key in keys if not is_free(key)]
    return {key: (old.get(key, "absent"), new.get(key, "absent")) for key in differing}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys in which two configurations are different experiments, each as 'key: before → now'."""
    return told(changes(before, now))


def told(changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """What `changes` gives, in words."""
    return [f"{key}: {old} → {new}" for key, (old, new) in changed.items()]


def only_length(changed: Mapping[str, Any]) -> bool:
    """Whether it is only longer or shorter."""
    return changed.keys() <= set(LONGER)


def is_free(key: str) -> bool:
    """Whether a key says where or how comfortably a run goes, and not what it is."""
    return any(key == free or key.startswith(free + ".") for free in FREE)


def is_longer(before: Any, now: Any) -> bool:
    """Whether a number of epochs or steps is larger than another; None is without end."""
    return before is not None and (now is None or (type(before) is type(now) is int and now > before))


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
