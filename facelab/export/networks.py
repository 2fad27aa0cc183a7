"""Networks that facelab itself runs: out of a checkpoint, an exported safetensors, or published weights."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from facelab.backbone.weights import HOUSE, Input, set_input
from facelab.export.base import Opened, Runtime, as_torch
from facelab.export.model import EmbeddingModel

USUAL_SIZE = 112  # pixels, of nearly all published weights


def open_weights(path: Path, runtime: Runtime, node: Mapping[str, Any] | None = None) -> Opened:
    """Weights by their published names.

    Args:
        path: the file.
        runtime: says which backbone they are of, where `node` does not.
        node: `_target_` and arguments of the network, where the file says them.

    Raises:
        ValueError: it is not said which backbone they are of, or they are of another.
    """
    from facelab.training.trained import out_of_weights
    from facelab.trusted import safe

    size = runtime.size or USUAL_SIZE
    if node is not None:
        chosen = safe("model", node, "backbone", path)
        size = node.get("image_size", size)
    else:
        chosen = node_of(runtime.backbone, size)
    trained = out_of_weights("model", path, chosen, "backbone", None)
    if runtime.convention is not None:
        set_input(trained.backbone, runtime.convention)
    return open_trained(trained, int(size), {}, runtime)


def open_trained(trained: Any, size: int, metadata: dict[str, Any], runtime: Runtime) -> Opened:
    """A network that is there, as `facelab.training.trained` gives it.

    Args:
        trained: backbone and head.
        size: pixels, H = W.
        metadata: what its file says of itself.
        runtime: how it is run.
    """
    convention = getattr(trained.backbone, "input_convention", HOUSE)
    model = EmbeddingModel(trained.backbone, trained.head, convention, preprocessing=True, mirror=False, unit=False)
    model.backbone.to(memory_format=torch.channels_last)
    model.eval()
    about = {
        "size": size,
        "input": asdict(convention),
        "embedding_size": trained.backbone.embedding_size,
        "unit": False,
        "mirror": False,
        **metadata,
    }
    return Opened(as_torch(model, runtime), about, model, Input(**about["input"]), size, inside=True)


def node_of(backbone: Any, size: int) -> Any:
    """The `backbone` node of a name of conf/backbone; a node stays as it is, None stays None.

    Raises:
        ValueError: there is no such name.
    """
    from omegaconf import OmegaConf

    from facelab.configuration import configuration_folder

    if backbone is None or OmegaConf.is_config(backbone):
        return backbone
    if not isinstance(backbone, str):
        return OmegaConf.create({"backbone": dict(backbone), "data": {"size": size}}).backbone
    files = {file.stem: file for file in (configuration_folder() / "backbone").glob("*.yaml")}
    node = OmegaConf.load(files[backbone]) if backbone in files else None
    if node is None or "defaults" in node:
        raise ValueError(f"backbone={backbone}: there is no such network; give one of {', '.join(sorted(files))}")
    return OmegaConf.create({"backbone": node, "data": {"size": size}}).backbone
