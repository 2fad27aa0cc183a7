"""Formats that a model can be exported to; each is read again and compared before its file has its name."""

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from torch import nn

from facelab import __version__
from facelab.atomic import atomic
from facelab.backbone.weights import CONVENTION, HOUSE, load_weights
from facelab.training.network import COMMON, build_backbone
from facelab.training.options import check_kind
from facelab.training.trained import digest_of, file_of, meta_of, out_of_checkpoint, out_of_weights

FORMATS = ("safetensors",)


def export(config: DictConfig, where: Path) -> Path:
    """Exports a backbone: model.safetensors, and export.json, which tells where it comes from.

    The tensors have the names of their family's published weights, unchanged by any conversion of colours: what the
    network takes is said in the metadata, which `backbone.weights=…` and `checkpoint=…` read.

    Args:
        config: conf/export.yaml.
        where: the folder.

    Returns:
        The file.

    Raises:
        ValueError, FileNotFoundError: something in the configuration or its file is wrong; nothing was written.
    """
    if config.format not in FORMATS:
        raise ValueError(f"format is {config.format!r}: give one of {', '.join(FORMATS)}")
    check_kind("ema", config.ema, bool | None)
    path = file_of("checkpoint", config.checkpoint)
    meta = meta_of(path)
    if meta is None:
        trained = out_of_weights("checkpoint", path, config.backbone, "backbone", config.ema)
        node: Any = OmegaConf.to_container(config.backbone, resolve=True)
    else:
        if "_target_" in config.backbone or config.backbone.input is not None:
            raise ValueError(f"checkpoint={path} says itself which network it is of: leave backbone… out")
        trained = out_of_checkpoint("checkpoint", path, meta, config.ema)
        node = meta["config"]["backbone"]
    if not isinstance(trained.head, nn.Identity):
        raise ValueError(
            f"checkpoint={path} has a {type(trained.head).__name__} on top of its backbone, and {config.format} holds "
            "a backbone alone: keep the checkpoint, which facelab.evaluate reads as it is"
        )
    node = {key: value for key, value in node.items() if key not in COMMON}
    file = where / f"model.{config.format}"
    _safetensors(file, trained.backbone, node)
    about = {
        "checkpoint": str(path),
        "checkpoint_sha256": digest_of(path),
        "sha256": digest_of(file),
        "input": asdict(_input(trained.backbone)),
        "backbone": node,
        "step": None if meta is None else meta["step"],
        "facelab": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    with atomic(where / "export.json") as temporary:
        temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    taken = _input(trained.backbone)
    print(f"{trained.about}\nexported to {file}, which takes {taken.color} (x − {taken.mean:g})/{taken.std:g}")
    return file


def _safetensors(file: Path, backbone: nn.Module, node: dict[str, Any]) -> None:
    """Weights by their published names; reading them into another such network gives the same numbers."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in backbone.state_dict().items()}
    metadata = {CONVENTION: json.dumps(asdict(_input(backbone))), "backbone": json.dumps(node), "format": "pt"}
    with atomic(file) as temporary:
        save_file(tensors, temporary, metadata=metadata)
        again = build_backbone(OmegaConf.create(node), load=False)
        stated = load_weights(again, temporary)
        assert stated == _input(backbone)
        assert all(torch.equal(value, tensors[name]) for name, value in again.state_dict().items())


def _input(backbone: nn.Module) -> Any:
    return getattr(backbone, "input_convention", HOUSE)
