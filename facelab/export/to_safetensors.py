"""A backbone's weights by their published names, with what the network takes in the metadata."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from facelab.backbone.weights import CONVENTION
from facelab.export.base import METADATA, Format, Opened, Runtime, Seen, Writing, described
from facelab.export.networks import open_weights
from facelab.export.watching import watched

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Safetensors(Format):
    """One `.safetensors`, which `backbone.weights=…` reads; facelab, or the published code, has the network."""

    suffix = ".safetensors"
    precisions = ("fp32", "fp16", "bf16")
    embeds = False

    def write(self, writing: Writing, file: Path) -> None:
        """See `Format.write`; in half precision the weights alone are, statistics and gains stay in float32.

        Raises:
            ValueError: there is a head on top of the backbone.
        """
        model = writing.model
        if not isinstance(model.head, nn.Identity):
            raise ValueError(
                f"the checkpoint has a {type(model.head).__name__} on top of its backbone, and format=safetensors "
                "holds a backbone alone: give another format=, such as onnx, or keep the checkpoint, which "
                "facelab.evaluate reads as it is"
            )
        kind = TYPES[writing.precision]
        tensors = {
            name: (tensor.to(kind) if tensor.is_floating_point() and tensor.dim() > 1 else tensor).detach().contiguous()
            for name, tensor in model.backbone.state_dict().items()
        }
        about = dict(writing.metadata)
        metadata = {
            CONVENTION: json.dumps(about["input"]),
            "backbone": json.dumps(about["backbone"]),
            "about": json.dumps(about),
            "format": "pt",
        }
        save_file(tensors, file, metadata=metadata)

    def open(self, path: Path, runtime: Runtime) -> Opened:
        """See `Format.open`; a file of somebody else does not say which backbone it is of."""
        try:
            with safe_open(path, "pt") as file:
                told = file.metadata() or {}
        except SafetensorError as error:
            raise ValueError(f"{path}: cannot be read ({error!s:.200}); get the file again") from error
        found = open_weights(path, runtime, described(told.get("backbone"), path) or None)
        found.metadata.update(described(told.get("about"), path))
        return found

    def layers(self, path: Path, seen: Seen) -> Iterator[tuple[str, np.ndarray]]:
        """See `Format.layers`."""
        network = self.open(path, Runtime()).network
        assert network is not None
        for name, value in watched(network, torch.from_numpy(seen.images)).outputs.items():
            yield name, value.numpy()


assert METADATA not in (CONVENTION, "backbone", "about")  # which would make it a checkpoint
