"""Class centres out of a checkpoint, for a run that goes on with the same people."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from facelab.loss.classifier import MarginLoss
from facelab.training.stored import Tensors, files_of

_LOSS, _CENTRES = "model.loss.", "classifier.weight"


def load(path: Path, loss: nn.Module, num_classes: int) -> None:
    """Fills a loss's class centres, in place, with those of a checkpoint, whatever the number of ranks that wrote it.

    What a margin has learned beside them (its margins, its moving averages) comes too where the checkpoint's loss has
    the same; what depends on the number of the step begins anew.

    Args:
        path: a main file of facelab.
        loss: as it was built, with this rank's classes.
        num_classes: C, over all ranks.

    Raises:
        FileNotFoundError: the checkpoint or one of its shards is missing.
        ValueError: see `check`.
    """
    stored = check(path, loss, num_classes)
    with torch.no_grad():
        for margin, front in _pairs(path, loss, stored):
            classifier, state = margin.classifier, margin.state_dict()
            kept = [_CENTRES] if _beside(stored, front) != set(state) - {_CENTRES} else list(state)
            for name in kept:
                rows = (classifier.start, classifier.stop) if name in margin.sharded_parameters() else None
                _fill(path, front + name, state[name], stored.read(front + name, rows))


def check(path: Path, loss: nn.Module, num_classes: int) -> Tensors:
    """Opens a checkpoint and compares its class centres with a loss, which may be one of shapes alone.

    Raises:
        FileNotFoundError: the checkpoint or one of its shards is missing.
        ValueError: it has no class centres, those of another number of classes, or of another length; or it cannot be
            told which are meant.
    """
    stored = Tensors(files_of(path))
    for margin, front in _pairs(path, loss, stored):
        classes, size = stored.rows(front + _CENTRES), stored.shape(front + _CENTRES)[1]
        if classes != num_classes:
            raise ValueError(
                f"loss.classifier.weights={path} has centres of {classes:,} classes, and the data have "
                f"{num_classes:,}: leave loss.classifier.weights=null, which replaces the classifier by a fresh one, "
                "or set data (and data.holdout) as they were in its training"
            )
        if size != margin.classifier.weight.shape[1]:
            raise ValueError(
                f"loss.classifier.weights={path} has centres of {size} numbers, and the network's embeddings have "
                f"{margin.classifier.weight.shape[1]}: set backbone.embedding_size={size}, or leave "
                "loss.classifier.weights=null, which replaces the classifier by a fresh one"
            )
    return stored


def rows(key: str, path: Path, num_classes: int, part: tuple[int, int]) -> Tensor:
    """Some class centres of a checkpoint whose loss has one classifier, whatever the number of ranks that wrote it.

    Args:
        key: where the configuration names the file, for messages.
        path: a main file of facelab.
        num_classes: C, over all ranks.
        part: first class, and one past the last.

    Returns:
        (stop − first,D) float32, not normalised.

    Raises:
        FileNotFoundError: the checkpoint or one of its shards is missing.
        ValueError: it has no class centres, or several, or those of another number of classes.
    """
    stored = Tensors(files_of(path))
    found = [name for name in stored.keys() if name.startswith(_LOSS) and name.endswith(_CENTRES)]  # noqa: SIM118
    if len(found) != 1:
        raise ValueError(
            f"{key}={path} has {len(found) or 'no'} matrices of class centres: give a checkpoint whose loss has one "
            "classifier"
        )
    classes = stored.rows(found[0])
    if classes != num_classes:
        raise ValueError(
            f"{key}={path} has centres of {classes:,} classes, and the data have {num_classes:,}: class centres are "
            "of use to the same people alone; set data (and data.holdout) as they were in its training"
        )
    return stored.read(found[0], part)


def _pairs(path: Path, loss: nn.Module, stored: Tensors) -> Iterator[tuple[MarginLoss, str]]:
    """Every margin of the loss, and what stands before the names of its counterpart in the file."""
    margins = {name: part for name, part in loss.named_modules() if isinstance(part, MarginLoss)}
    found = [key for key in stored.keys() if key.startswith(_LOSS) and key.endswith(_CENTRES)]  # noqa: SIM118
    theirs = [key.removeprefix(_LOSS).removesuffix(_CENTRES).rstrip(".") for key in found]
    if not theirs:
        raise ValueError(
            f"loss.classifier.weights={path} has no class centres, its loss had no classifier: leave it at null"
        )
    if len(margins) == len(theirs) == 1:
        sources = dict(zip(margins, theirs, strict=True))
    elif set(margins) <= set(theirs):
        sources = {name: name for name in margins}
    else:
        raise ValueError(
            f"loss.classifier.weights={path} has the classifiers {_listed(theirs)}, and this loss has "
            f"{_listed(margins)}: name the parts of the sum as they were named there, or leave it at null"
        )
    for name, source in sources.items():
        yield margins[name], f"{_LOSS}{source}{'.' if source else ''}"


def _beside(stored: Tensors, front: str) -> set[str]:
    """What the file's margin has beside its centres."""
    return {key.removeprefix(front) for key in stored.keys() if key.startswith(front)} - {_CENTRES}  # noqa: SIM118


def _fill(path: Path, name: str, target: Tensor, value: Tensor) -> None:
    if value.shape != target.shape:
        raise ValueError(
            f"loss.classifier.weights={path}: {name} has shape {tuple(value.shape)}, this loss needs "
            f"{tuple(target.shape)}: choose the loss as in its training, or leave it at null"
        )
    target.copy_(value)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"loss.{name}" if name else "loss" for name in names)
