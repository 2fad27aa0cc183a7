"""Losses out of configurations: the loss, and how it goes through its classes."""

from dataclasses import fields
from typing import Any, get_type_hints

from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from facelab.loss.base import Loss
from facelab.loss.classifier import ClassifierOptions, MarginLoss
from facelab.loss.prototypes import Prototypes
from facelab.training.options import check_kind

# What may stand in a loss's node beside the arguments of its constructor; see conf/config.yaml.
COMMON = ("classifier",)


def build_loss(node: DictConfig, embedding_size: int, num_classes: int) -> Loss:
    """The loss that a `loss` node describes.

    Args:
        node: `_target_` and its arguments; `classifier`: the fields of ClassifierOptions, for every classifier in it.
        embedding_size: D.
        num_classes: C, over all ranks.

    Raises:
        ValueError: an option is out of range, or this loss has no use for it.
    """
    arguments = node.copy()  # which keeps its place in the configuration, for ${…} and for messages
    with open_dict(arguments):
        given = arguments.pop("classifier", None)
    loss = instantiate(arguments, embedding_size=embedding_size, num_classes=num_classes)
    if given is None:
        return loss
    given = dict(given)
    for name, kind in {"sample_rate": float, "interclass_filter": float | None}.items():
        check_kind(f"loss.classifier.{name}", given[name], kind)
    mining = given.pop("prototypes", None)
    if mining is not None and mining["queue"] is None:
        mining = None
    if mining is not None:
        for name, kind in get_type_hints(Prototypes).items():
            check_kind(f"loss.classifier.prototypes.{name}", mining[name], kind)
    try:
        options = ClassifierOptions(**given, prototypes=None if mining is None else Prototypes(**mining))
        margins: list[Any] = [part for part in loss.modules() if isinstance(part, MarginLoss)]
        for margin in margins:
            margin.configure(options)
    except ValueError as error:
        raise ValueError(f"loss.classifier: {error}") from None
    if not margins and options != MarginLoss.options:
        changed = [f.name for f in fields(options) if getattr(options, f.name) != getattr(MarginLoss.options, f.name)]
        key, value = ("prototypes.queue", mining["queue"]) if mining else (changed[0], given[changed[0]])
        raise ValueError(
            f"loss.classifier.{key} is {value}, and {type(loss).__name__} has no classifier: "
            f"leave it at {getattr(MarginLoss.options, changed[0])}"
        )
    return loss
