"""TorchScript, which C++ programs read with libtorch."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from torch import Tensor, nn

from facelab.export.base import METADATA, Format, Opened, Runtime, Seen, Writing, as_torch, described, opened
from facelab.export.examined import examine_script
from facelab.export.program import layers_named

ENTRY = f"{METADATA}.json"  # of the archive


class TorchScript(Format):
    """One `.pt`, traced, its layers under their names; what it says of itself is an extra file inside."""

    suffix = ".pt"
    precisions = ("fp32", "fp16", "bf16")

    def reads(self, path: Path) -> bool:
        """torch.save writes archives of this suffix too, but without code."""
        try:
            with ZipFile(path) as archive:
                return any(name.endswith("/constants.pkl") for name in archive.namelist())
        except (BadZipFile, OSError):
            return False

    def write(self, writing: Writing, file: Path) -> None:
        """See `Format.write`."""
        script = traced(writing.model, writing.example)
        # What the file takes cannot be told from its graph.
        metadata = {**writing.metadata, "shape": [writing.batch, *writing.example.shape[1:]]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(script, str(file), _extra_files={ENTRY: json.dumps(metadata)})

    def open(self, path: Path, runtime: Runtime) -> Opened:
        """See `Format.open`; nothing in the file can call Python, and a file that names others is refused."""
        script, metadata = _load(path)
        shape = metadata.pop("shape", [None, 3, runtime.size, runtime.size])
        return opened(as_torch(script, runtime), metadata, shape, path, runtime, script)

    def layers(self, path: Path, seen: Seen) -> Iterator[tuple[str, np.ndarray]]:
        """See `Format.layers`: each of the file's layers is given what the original's layer was given."""
        script, _ = _load(path)
        modules = dict(script.named_modules())
        dtype = next((parameter.dtype for parameter in script.parameters()), torch.float32)
        with torch.inference_mode():
            for name, given in seen.inputs.items():
                # What did nothing, such as dropout, was traced without an input.
                if name in modules and _takes_one(modules[name]):
                    yield name, modules[name](given.to(dtype)).float().numpy()


def traced(model: nn.Module, example: Tensor) -> Any:
    """A model as TorchScript, by running it once.

    Raises:
        ValueError: it cannot be traced; its layer is named.
    """
    with torch.no_grad(), warnings.catch_warnings(), layers_named(model, "TorchScript"):
        warnings.simplefilter("ignore")  # that tracing will be given up one day: OpenVINO still begins with it
        return torch.jit.trace(model, (example,), check_trace=False)


def _takes_one(module: Any) -> bool:
    forward: Any = getattr(module, "forward", None)
    return hasattr(forward, "schema") and len(forward.schema.arguments) == 2  # itself and the input


def _load(path: Path) -> tuple[Any, dict[str, Any]]:
    examine_script(path)
    extra = {ENTRY: ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            script = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path}: cannot be opened as TorchScript ({reason}); export it again") from error
    text: Any = extra[ENTRY]
    return script.eval(), described(text.decode() if isinstance(text, bytes) else text, path)
