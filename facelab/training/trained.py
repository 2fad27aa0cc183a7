"""Networks that were trained before: out of a checkpoint of facelab, which says what it is, or published weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict
from safetensors import SafetensorError, safe_open
from torch import nn

from facelab.backbone.weights import Input, set_input
from facelab.door import configuration_folder
from facelab.training import checkpoint
from facelab.training.network import build_backbone, completed
from facelab.trusted import configuration, safe


class Trained(NamedTuple):
    """A network and what is known of it.

    Attributes:
        backbone: (B,3,H,W) in [−1,1] → (B,D).
        head: (B,D) → (B,D).
        about: the file, in words.
    """

    backbone: Any
    head: nn.Module
    about: str


def file_of(key: str, given: Any) -> Path:
    """The file that a configuration names.

    Args:
        key: where it names it, for messages.
        given: what stands there.

    Raises:
        ValueError: that is no path, or a folder.
        FileNotFoundError: there is no such file.
    """
    if not isinstance(given, str):
        raise ValueError(f"{key} is {given!r}: give the path of a file")
    path = Path(given).expanduser()
    if path.is_dir():
        found = sorted(str(file) for file in path.glob("**/*.ckpt"))
        raise ValueError(
            f"{key}={path}: is a folder; give a file" + (f" in it: {' or '.join(found[:2])}" if found else "")
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"{key}={path}: no such file; give a best.ckpt or last.ckpt of a run, or a file of published weights"
        )
    return path


def meta_of(path: Path) -> dict[str, Any] | None:
    """What a checkpoint of facelab says of itself; None for other files.

    Raises:
        ValueError: a checkpoint of facelab that is one shard of several, of another format, or that says something of
            itself which none says.
    """
    try:
        with safe_open(path, "pt") as file:
            if "facelab" not in (file.metadata() or {}):
                return None
    except (SafetensorError, OSError):
        return None
    meta = checkpoint.read_meta(path)
    before = configuration(meta.get("config"), f"checkpoint {path}")
    _check_said(before, _SAID, path)
    _check_said(meta, _BESIDE, path)
    try:
        Input(**meta["input"])
    except (TypeError, ValueError):
        raise ValueError(f"checkpoint {path}: its input is {meta['input']!r:.80}; get the file again") from None
    return {**meta, "config": before}


# What a checkpoint says of itself, and is asked for; of numbers, which.
_COUNT = range(1, 2**62)
_SAID: dict[str, Any] = {
    **{
        "backbone": Mapping,
        "head": Mapping,
        "loss": Mapping,
        "data": Mapping,
        "benchmark": Mapping,
        "trainer": Mapping,
    },
    **{"backbone._target_": str, "head._target_": str, "benchmark._target_": str, "data.size": _COUNT},
    **{"trainer.batch_size": _COUNT, "trainer.devices": _COUNT, "trainer.num_nodes": _COUNT, "trainer.precision": str},
}
_BESIDE: dict[str, Any] = {"step": range(2**62), "num_classes": range(2**62), "input": Mapping}


def _check_said(said: Mapping[str, Any], kinds: Mapping[str, Any], path: Path) -> None:
    for key, kind in kinds.items():
        value: Any = said
        for part in key.split("."):
            value = value.get(part)
        numbers = isinstance(kind, range)
        if (type(value) is not int or value not in kind) if numbers else not isinstance(value, kind):
            raise ValueError(f"checkpoint {path}: its {key} is {value!r:.80}; get the file again")


def out_of_checkpoint(key: str, path: Path, meta: Mapping[str, Any], ema: bool | None) -> Trained:
    """The network of a checkpoint of facelab.

    Args:
        key: where the configuration names the file, for messages.
        path: a main file.
        meta: what it says of itself.
        ema: whether the averaged weights are taken, those in training, or (None) the averaged ones where there are any.

    Raises:
        ValueError: it has no such weights, or asks for something that conf/ does not offer.
    """
    before = meta["config"]
    nodes = (
        safe(key, completed(before["backbone"]), "backbone", path),
        safe(key, before["head"], "head", path),
    )
    beside = checkpoint.has_average(path)
    averages = before["trainer"].get("ema") is not None
    option = key.removesuffix("checkpoint") + "ema"
    if ema is True and not averages:
        raise ValueError(f"{option}=true, but {key}={path} was trained without trainer.ema: leave it out")
    if ema is False and averages and not beside:
        raise ValueError(f"{option}=false, but {key}={path} holds the averaged weights alone: take the run's last.ckpt")
    averaged = beside and ema is not False
    with torch.device("meta"):  # of shapes alone: a file's word is no reason to fill the memory
        checkpoint.check_network(path, *_built(key, path, *nodes), averaged)
    backbone, head = _built(key, path, *nodes)
    set_input(backbone, Input(**meta["input"]))
    checkpoint.load_network(path, backbone, head, averaged)
    words = ", averaged weights" if averages and ema is not False else ", weights in training" * averages
    return Trained(backbone, head, f"{path}, step {meta['step']:,}{words}")


def _built(key: str, path: Path, backbone: DictConfig, head: DictConfig) -> tuple[Any, Any]:
    """The networks that a checkpoint names, with values of their own."""
    try:
        network = build_backbone(backbone, load=False)
        return network, instantiate(head, embedding_size=network.embedding_size)
    except Exception as error:  # arguments that nobody has written so
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        raise ValueError(f"{key}={path}: its network cannot be built ({' '.join(str(root).split())})") from error


def out_of_weights(key: str, path: Path, node: DictConfig | None, option: str, ema: bool | None) -> Trained:
    """The network of published weights.

    Args:
        key: where the configuration names the file, for messages.
        path: the file.
        node: the `backbone` node that says which network they are of.
        option: how a network is chosen on the command line, for messages.
        ema: see `out_of_checkpoint`; there is no average here.

    Raises:
        ValueError: nobody says which network it is, or the weights are those of another.
    """
    if node is None or "_target_" not in node:
        known = ", ".join(sorted(file.stem for file in (configuration_folder() / "backbone").glob("*.yaml")))
        raise ValueError(
            f"{key}={path}: is no checkpoint of facelab (or a damaged one), so it does not say which network it "
            f"is of: add {option}=…, one of {known}"
        )
    if ema is True:
        raise ValueError(
            f"{key.removesuffix('checkpoint')}ema=true, but {key}={path} is no checkpoint of facelab: leave it out"
        )
    node = node.copy()
    with open_dict(node):
        node.weights = str(path)
    try:
        return Trained(build_backbone(node, load=True), nn.Identity(), f"{path}, published weights")
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(str(error).replace("backbone.weights=", f"{key}=", 1)) from error
