"""Networks out of configurations: the backbone with its published weights and the colours that they are used to."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from facelab.backbone.freezing import freeze
from facelab.backbone.stages import stages
from facelab.backbone.weights import HOUSE, Input, load_weights, set_input
from facelab.loss.base import Loss
from facelab.training.optimization import Recipe
from facelab.training.options import TrainerOptions, check_kind

# What may stand in a backbone's node beside the arguments of its constructor; see conf/config.yaml.
COMMON = ("weights", "input", "freeze")
# Arguments that a network was given later, and what it was until then: older checkpoints do not name them.
LATER: dict[str, dict[str, Any]] = {"facelab.backbone.iresnet.IResNet": {"attention": "none"}}


def build_backbone(node: DictConfig, load: bool) -> nn.Module:
    """The network that a `backbone` node describes, which takes the house's images (RGB, in [−1,1]).

    Args:
        node: `_target_` and its arguments; `weights` (a file, or null) and `input` (color, mean and std that the
            weights are used to, or null for what their file says); `freeze`, the number of stages that stay as they
            are (0 where it is missing).
        load: whether `weights` is read. Without it the network keeps its random values: for its shapes alone, or where
            a checkpoint is about to fill it. Then what the file says of the input is not known either, and no file is
            needed.

    Returns:
        The network; `input_convention` says what it was given to take.

    Raises:
        FileNotFoundError: there is no such file of weights.
        ValueError: the weights are those of another network, `input` cannot be understood, or stages are to be frozen
            that are not there or have random values.
    """
    arguments = node.copy()  # which keeps its place in the configuration, for ${…} and for messages
    with open_dict(arguments):
        for key in COMMON:
            arguments.pop(key, None)
        if not load and "pretrained" in arguments:  # timm's own weights: nor are they fetched
            arguments.pretrained = False
    weights, given = node.get("weights"), node.get("input")
    if weights is not None and not isinstance(weights, str):
        raise ValueError(f"backbone.weights is {weights!r}: give the path of a file, or null for none")
    frozen = node.get("freeze", 0)
    check_kind("backbone.freeze", frozen, int)
    if frozen and weights is None and not node.get("pretrained"):
        raise ValueError(
            f"backbone.freeze={frozen} keeps the first stages as they are, and these would be random: give the file "
            "that has their weights, backbone.weights=…"
        )
    network = instantiate(arguments)
    stated = load_weights(network, Path(weights).expanduser()) if load and weights is not None else HOUSE
    set_input(network, read_input(given, stated))
    freeze(network, frozen)
    return network


def check_learning(backbone: nn.Module, head: nn.Module, loss: Loss, recipe: Recipe, options: TrainerOptions) -> None:
    """Refuses what would only turn out when training begins; shapes are enough.

    Raises:
        ValueError: a rate for each stage or recomputation is asked of a network that does not say its stages, or so
            much is frozen that nothing is left to train.
    """
    if options.checkpointing or recipe.stage_decay != 1:
        stages(backbone)
    sharded = set(loss.sharded_parameters())
    shared = [*backbone.parameters(), *head.parameters()]
    shared += [parameter for name, parameter in loss.named_parameters() if name not in sharded]
    if any(parameter.requires_grad for parameter in shared):
        return
    if options.world > 1:
        raise ValueError(
            "with all stages frozen there is nothing that processes train together: set trainer.devices=1 and "
            "trainer.num_nodes=1, or a smaller backbone.freeze"
        )
    if not any(parameter.requires_grad for parameter in loss.parameters()):
        raise ValueError(
            "nothing is left to train, neither of the backbone nor of the loss: set a smaller backbone.freeze"
        )


def completed(node: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's `backbone` node with the arguments that its network did not have yet when it was written."""
    return {**LATER.get(str(node.get("_target_")), {}), **node}


def read_input(given: Any, stated: Input) -> Input:
    """The input convention that `backbone.input` asks for; what it does not mention is as `stated`.

    Raises:
        ValueError: where it has other keys than color, mean and std, or values that they cannot have.
    """
    if given is None:
        return stated
    plain: Any = OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given
    known = [field.name for field in fields(Input)]
    if not isinstance(plain, Mapping) or set(plain) - set(known):
        raise ValueError(
            f"backbone.input is {plain}: give {', '.join(known)} of the images that the weights are used to, such as "
            "{color: bgr, mean: 127.5, std: 127.5}, or null for what the file says"
        )
    values = asdict(stated)
    values.update({key: value for key, value in plain.items() if value is not None})
    for key in ("mean", "std"):
        check_kind(f"backbone.input.{key}", values[key], float)
    return Input(values["color"], float(values["mean"]), float(values["std"]))


def about_input(network: nn.Module) -> str:
    """For the summary: what the network takes, where that is not what everybody does."""
    taken = getattr(network, "input_convention", HOUSE)
    return "" if taken == HOUSE else f", takes {taken.color} (x − {taken.mean:g})/{taken.std:g}"


def convention(network: nn.Module) -> dict[str, Any]:
    """What a checkpoint says of its network's input."""
    return asdict(getattr(network, "input_convention", HOUSE))
