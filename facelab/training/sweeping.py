"""What a sweep of trainings asks of a job before it starts; without torch, so that the answer costs nothing."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from facelab.multirun import Look
from facelab.training.record import RunDirectory

__all__ = ["look", "plain_values"]

PROCESSES = ("trainer.devices", "trainer.num_nodes")


def plain_values(config: DictConfig) -> dict[str, Any]:
    """The configuration, resolved, as plain dicts, lists and scalars.

    Raises:
        MissingMandatoryValue: a key has no value.
    """
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def look(config: DictConfig, where: Path) -> Look:
    """What its run directory knows of a training, and how many processes it asks for.

    Args:
        config: its choices.
        where: its run directory; it may be empty, half written, or not there.

    Raises:
        ValueError: the directory holds a run of another configuration (the differing keys are named), or is damaged.
        MissingMandatoryValue: a key has no value.
    """
    plain = plain_values(config)
    directory = RunDirectory(where, plain, writes=False)
    processes = {key: OmegaConf.select(config, key) for key in PROCESSES}
    counted = {key: number for key, number in processes.items() if type(number) is int}  # others the training refuses
    if not directory.finished:
        return Look(None, counted)
    name, value = next(iter(directory.metrics().items()))
    return Look(f"{name} {value:.4g}", counted)
