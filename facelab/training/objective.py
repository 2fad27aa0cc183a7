"""Losses out of configurations: the loss, how it goes through its classes, and the centres that it begins with."""

from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from facelab.loss.base import Loss
from facelab.loss.classifier import ClassifierOptions, MarginLoss
from facelab.loss.prototypes import Prototypes
from facelab.training import centres
from facelab.training.options import check_kind

# What may stand in a loss's node beside the arguments of its constructor; see conf/config.yaml.
COMMON = ("classifier",)
# What is said of the classifier, and does not concern how the classes are gone through.
_BEGIN = {"weights": None, "frozen": False}


def build_loss(node: DictConfig, embedding_size: int, num_classes: int, load: bool = True) -> Loss:
    """The loss that a `loss` node describes.

    Args:
        node: `_target_` and its arguments, losses among them (of a sum); `classifier`: the fields of ClassifierOptions,
            for every classifier in it, `weights` (a checkpoint whose class centres it begins with, or null) and
            `frozen` (whether the centres stay as they are).
        embedding_size: D.
        num_classes: C, over all ranks.
        load: whether `weights` is read. Without it the centres keep their random values: for their shapes alone, or
            where a checkpoint is about to fill them.

    Raises:
        ValueError: an option is out of range, or this loss has no use for it; `weights` has other centres.
        FileNotFoundError: there is no such checkpoint.
    """
    arguments = node.copy()  # which keeps its place in the configuration, for ${…} and for messages
    with open_dict(arguments):
        given = arguments.pop("classifier", None)
        _hand_over_losses(arguments)
    loss = instantiate(arguments, embedding_size=embedding_size, num_classes=num_classes)
    if given is None:
        return loss
    given = dict(given)
    for name, kind in {"sample_rate": float, "interclass_filter": float | None}.items():
        check_kind(f"loss.classifier.{name}", given[name], kind)
    margins: list[Any] = [part for part in loss.modules() if isinstance(part, MarginLoss)]
    try:
        options = ClassifierOptions(
            **{key: value for key, value in given.items() if key not in (*_BEGIN, "prototypes")},
            prototypes=_prototypes(given),
        )
        for margin in margins:
            margin.configure(options)
    except ValueError as error:
        raise ValueError(f"loss.classifier: {error}") from None
    if not margins:
        _refuse_options_of_a_classifier(loss, given, options)
    path = class_weights(node)
    if path is not None and load:
        centres.load(path, loss, num_classes)
    for margin in margins:
        margin.classifier.requires_grad_(not given.get("frozen"))
    return loss


def class_weights(node: DictConfig) -> Path | None:
    """The checkpoint whose class centres a `loss` node asks for, or None.

    Raises:
        ValueError: the value is no path, or centres are to be frozen that come from nowhere.
    """
    given = {**_BEGIN, **(node.get("classifier") or {})}
    check_kind("loss.classifier.weights", given["weights"], str | None)
    check_kind("loss.classifier.frozen", given["frozen"], bool)
    if given["frozen"] and given["weights"] is None:
        raise ValueError(
            "loss.classifier.frozen=true keeps class centres as they are, and these would be random: give the "
            "checkpoint that has them, loss.classifier.weights=….ckpt"
        )
    return None if given["weights"] is None else Path(given["weights"]).expanduser()


def margin_of(loss: nn.Module) -> MarginLoss | None:
    """The first loss with a classifier, which speaks for a sum of several; None where there is none."""
    return next((part for part in loss.modules() if isinstance(part, MarginLoss)), None)


def about_loss(node: Any) -> str:
    """For the summary: the loss's class, its scale and margin; of a sum, what is added up."""
    if "weights" in node and "parts" in node:
        return " + ".join(f"{weight:g}·{name}" for name, weight in node["weights"].items())
    values = "".join(f", {key} {value}" for key, value in node.items() if key in ("scale", "margin"))
    return str(node["_target_"]).rsplit(".", 1)[-1] + values


def _prototypes(given: dict[str, Any]) -> Prototypes | None:
    """The options of hard prototype mining, or None where it is off."""
    mining = given.get("prototypes")
    if mining is None or mining["queue"] is None:
        return None
    for name, kind in get_type_hints(Prototypes).items():
        check_kind(f"loss.classifier.prototypes.{name}", mining[name], kind)
    return Prototypes(**mining)


def _hand_over_losses(node: DictConfig) -> None:
    """A loss within a loss is made by that one, which alone is told D and C: it gets a function in its place."""
    for key, value in node.items_ex(resolve=False):
        if not OmegaConf.is_dict(value) or OmegaConf.is_missing(node, key):
            continue
        _hand_over_losses(value)
        made = get_object(value._target_) if "_target_" in value else None
        if isinstance(made, type) and issubclass(made, Loss):
            value._partial_ = True


def _refuse_options_of_a_classifier(loss: Loss, given: dict[str, Any], options: ClassifierOptions) -> None:
    plain = {**{f.name: getattr(MarginLoss.options, f.name) for f in fields(options)}, **_BEGIN}
    chosen = {**given, "prototypes": options.prototypes}
    changed = [name for name, value in plain.items() if chosen.get(name, value) != value]
    if changed:
        name, value = changed[0], chosen[changed[0]]
        if isinstance(value, Prototypes):
            name, value = f"{name}.queue", value.queue
        raise ValueError(
            f"loss.classifier.{name} is {value}, and {type(loss).__name__} has no classifier: "
            f"leave it at {_as_typed(plain[changed[0]])}"
        )


def _as_typed(value: Any) -> str:
    return "null" if value is None else str(value).lower()
