"""An evaluation's configuration against that of its checkpoint's training: what is taken over, what is refused."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from facelab.backbone.weights import Input
from facelab.training.network import COMMON, read_input
from facelab.training.sameness import differences
from facelab.trusted import values

NO_HEAD = "torch.nn.Identity"


def take_over(config: DictConfig, meta: Mapping[str, Any], typed: Collection[str]) -> None:
    """Puts what a checkpoint says of its training in place of values that nobody has typed."""
    before = meta["config"]
    trainer, data = before["trainer"], before["data"]
    found = {
        "batch_size": max(1, trainer["batch_size"] // (trainer["devices"] * trainer["num_nodes"])),
        "precision": trainer["precision"],
        "data.size": data["size"],
        "data.root": data.get("root"),
        "data.roots": data.get("roots"),
    }
    if config.benchmark.get("path") is None and before["benchmark"]["_target_"] == config.benchmark._target_:
        where = ("_target_", "name", "path", "pairs", "size")
        kept = config.benchmark.keys() - set(where)
        found |= {f"benchmark.{key}": value for key, value in before["benchmark"].items() if key in kept}
    if "data.size" in typed and config.data.size != data["size"]:
        raise ValueError(
            f"data.size is {config.data.size}, but the checkpoint was trained on {data['size']} pixels: leave it out"
        )
    for key, value in _leaves(values(found, f"checkpoint={config.checkpoint}")):
        if key in typed:
            continue
        try:
            OmegaConf.update(config, key, value)
        except (OmegaConfBaseException, TypeError):  # a part of what has none; a list in place of a node
            raise ValueError(
                f"checkpoint={config.checkpoint}: its {key} is {value!r:.80}, which has no place in a configuration; "
                "get the file again, or take the facelab that wrote it"
            ) from None


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values: of a node whose parts can be typed one by one, the parts."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{below}", one) for below, one in _leaves(value))
        else:
            yield key, value


def compare_backbones(config: DictConfig, path: Path, before: Mapping[str, Any], stated: Input) -> None:
    """Refuses a backbone that was typed and is not that of the checkpoint."""
    if read_input(config.backbone.input, stated) != stated:
        raise ValueError(
            f"backbone.input is {config.backbone.input}, but checkpoint={path} takes {stated.color}, "
            f"(x − {stated.mean:g})/{stated.std:g}: leave it out"
        )
    if "_target_" not in config.backbone:
        return
    now = OmegaConf.to_container(config.backbone, resolve=True)
    assert isinstance(now, dict)
    trained, chosen = ({k: v for k, v in node.items() if k not in COMMON} for node in (before, now))
    differing = differences({"backbone": trained}, {"backbone": chosen})
    if differing:
        raise ValueError(
            f"checkpoint={path} is of another backbone ({'; '.join(differing)}): leave backbone=… out, the checkpoint "
            "says what it is"
        )


def compare_heads(config: DictConfig, path: Path, meta: Mapping[str, Any], typed: Collection[str]) -> None:
    """Refuses a head that was typed, or came along with a backbone, and is not that of the checkpoint."""
    now: Any = OmegaConf.to_container(config.head, resolve=True)
    if now == {"_target_": NO_HEAD} and not any(key.split(".")[0] == "head" for key in typed):
        return
    differing = differences({"head": meta["config"]["head"]}, {"head": now})
    if differing:
        raise ValueError(
            f"checkpoint={path} is of another head ({'; '.join(differing)}): leave head=… out, the checkpoint says "
            "what it is"
        )
