"""torch.export's format, which torch compiles ahead of time and other tools begin with."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from facelab.export.base import METADATA, Format, Opened, Runtime, Seen, Writing, as_torch, described, opened
from facelab.export.examined import examine_program
from facelab.export.program import layer_of, to_program

ENTRY = f"{METADATA}.json"  # of the archive


class ExportedProgram(Format):
    """One `.pt2`; what it says of itself is an extra file inside."""

    suffix = ".pt2"
    precisions = ("fp32", "fp16", "bf16")

    def write(self, writing: Writing, file: Path) -> None:
        """See `Format.write`."""
        program = to_program(writing.model, writing.example, writing.batch)
        torch.export.save(program, file, extra_files={ENTRY: json.dumps(dict(writing.metadata))})

    def open(self, path: Path, runtime: Runtime) -> Opened:
        """See `Format.open`."""
        program, metadata = _load(path)
        taken = next(node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
        shape = [side if isinstance(side, int) else None for side in taken.meta["val"].shape]
        network = program.module(check_guards=False)
        return opened(as_torch(network, runtime), metadata, shape, path, runtime, network)

    def layers(self, path: Path, seen: Seen) -> Iterator[tuple[str, np.ndarray]]:
        """See `Format.layers`: the graph is walked."""
        program, _ = _load(path)
        found: dict[str, np.ndarray] = {}

        class Watch(fx.Interpreter):
            def run_node(self, n: Any) -> Any:
                result = super().run_node(n)
                if n.op == "call_function" and layer_of(n) in seen.outputs and isinstance(result, torch.Tensor):
                    found[layer_of(n)] = result.float().numpy()
                return result

        with torch.inference_mode():
            Watch(program.module(check_guards=False)).run(torch.from_numpy(seen.images))
        yield from found.items()


def _load(path: Path) -> tuple[Any, dict[str, Any]]:
    examine_program(path)
    extra = {ENTRY: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # each part of the archive has its own way to be damaged
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path}: cannot be opened as an exported program ({reason}); export it again") from error
    text: Any = extra[ENTRY]
    return program, described(text.decode() if isinstance(text, bytes) else text, path)
