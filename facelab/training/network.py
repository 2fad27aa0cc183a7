"""Networks out of configurations: the backbone with its published weights and the colours that they are used to."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from facelab.backbone.weights import HOUSE, Input, load_weights, set_input
from facelab.training.options import check_kind

# What may stand in a backbone's node beside the arguments of its constructor; see conf/config.yaml.
COMMON = ("weights", "input")
# Arguments that a network was given later, and what it was until then: older checkpoints do not name them.
LATER: dict[str, dict[str, Any]] = {"facelab.backbone.iresnet.IResNet": {"attention": "none"}}


def build_backbone(node: DictConfig, load: bool) -> nn.Module:
    """The network that a `backbone` node describes, which takes the house's images (RGB, in [−1,1]).

    Args:
        node: `_target_` and its arguments; `weights` (a file, or null) and `input` (color, mean and std that the
            weights are used to, or null for what their file says).
        load: whether `weights` is read. Without it the network keeps its random values: for its shapes alone, or where
            a checkpoint is about to fill it. Then what the file says of the input is not known either, and no file is
            needed.

    Returns:
        The network; `input_convention` says what it was given to take.

    Raises:
        FileNotFoundError: there is no such file of weights.
        ValueError: the weights are those of another network, or `input` cannot be understood.
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
    network = instantiate(arguments)
    stated = load_weights(network, Path(weights).expanduser()) if load and weights is not None else HOUSE
    set_input(network, read_input(given, stated))
    return network


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
