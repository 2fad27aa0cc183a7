"""Networks that were trained before: out of a checkpoint of facelab, which says what it is, or published weights."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from safetensors import SafetensorError, safe_open
from torch import nn

from facelab.backbone.weights import Input, set_input
from facelab.door import configuration_folder
from facelab.training import checkpoint
from facelab.training.network import build_backbone, completed


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
        ValueError: a checkpoint of facelab that is one shard of several, or of another format.
    """
    try:
        with safe_open(path, "pt") as file:
            if "facelab" not in (file.metadata() or {}):
                return None
    except (SafetensorError, OSError):
        return None
    return checkpoint.read_meta(path)


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
    backbone = build_backbone(safe(key, completed(before["backbone"]), "backbone", path), load=False)
    set_input(backbone, Input(**meta["input"]))
    head = instantiate(safe(key, before["head"], "head", path), embedding_size=backbone.embedding_size)
    beside = checkpoint.has_average(path)
    averages = before["trainer"].get("ema") is not None
    option = key.removesuffix("checkpoint") + "ema"
    if ema is True and not averages:
        raise ValueError(f"{option}=true, but {key}={path} was trained without trainer.ema: leave it out")
    if ema is False and averages and not beside:
        raise ValueError(f"{option}=false, but {key}={path} holds the averaged weights alone: take the run's last.ckpt")
    averaged = beside and ema is not False
    checkpoint.load_network(path, backbone, head, averaged)
    words = ", averaged weights" if averages and ema is not False else ", weights in training" * averages
    return Trained(backbone, head, f"{path}, step {meta['step']:,}{words}")


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


def safe(key: str, node: Mapping[str, Any], group: str, path: Path) -> DictConfig:
    """A node out of a checkpoint, to be instantiated: what it calls must be a choice of conf/<group>/.

    A checkpoint may come from a stranger, and `_target_` names what is called.

    Args:
        key: where the configuration names the file, for messages.
        node: what the checkpoint says.
        group: of which group.
        path: the file.

    Raises:
        ValueError: it would call something else.
    """
    known = {
        target
        for file in (configuration_folder() / group).glob("*.yaml")
        for target in _targets(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    }
    strange = sorted(set(_targets(node)) - known)
    if strange:
        raise ValueError(
            f"{key}={path} asks for {strange[0]} as its {group}, which no file of conf/{group} offers, and which "
            "is not called on a checkpoint's word alone: add such a file if you trust it"
        )
    return OmegaConf.create(dict(node))


def _targets(tree: Any) -> Iterator[str]:
    if isinstance(tree, Mapping):
        if "_target_" in tree:
            yield str(tree["_target_"])
        for value in tree.values():
            yield from _targets(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _targets(value)
