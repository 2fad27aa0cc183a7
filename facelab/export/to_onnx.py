"""ONNX, run by ONNX Runtime."""

import json
import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facelab.export.base import METADATA, Format, Opened, Run, Runtime, Seen, Writing, described, opened
from facelab.export.program import layer_of, to_program

SCOPES = "pkg.torch.onnx.name_scopes"  # of a node: the modules that it comes from


class Onnx(Format):
    """One `.onnx` file; what it says of itself stands in its metadata_props.

    Args:
        opset: version of ONNX's operators.
    """

    suffix = ".onnx"
    precisions = ("fp32", "fp16", "int8")
    runtime = ("onnxruntime",)
    writers = ("onnx", "onnxscript")

    def __init__(self, opset: int):
        self.opset = opset

    def write(self, writing: Writing, file: Path) -> None:
        """See `Format.write`; int8 is ONNX Runtime's static quantisation, a scale for each channel."""
        import onnx

        program = to_program(writing.model, writing.example, writing.batch)
        model = self._converted(program)
        if writing.batch is None:
            for value in (*model.graph.input, *model.graph.output):
                value.type.tensor_type.shape.dim[0].dim_param = "batch"
        if writing.precision == "int8":
            model = quantised(model, writing.calibration)
        del model.metadata_props[:]
        entry = model.metadata_props.add()
        entry.key, entry.value = METADATA, json.dumps(dict(writing.metadata))
        onnx.save(model, file)

    def _converted(self, program: Any) -> Any:
        """The graph in ONNX's operators."""
        try:
            with hushed(logging.INFO):  # each node that is removed
                made: Any = torch.onnx.export(
                    program,
                    dynamo=True,
                    opset_version=self.opset,
                    input_names=["images"],
                    output_names=["embeddings"],
                    verbose=False,
                )
        except Exception as error:
            raise ValueError(f"format=onnx: {unsupported(program, error)}") from error
        return made.model_proto

    def open(self, path: Path, runtime: Runtime) -> Opened:
        """See `Format.open`."""
        session = start(path, runtime.threads)
        (taken, *others) = session.get_inputs()
        if others or len(session.get_outputs()) < 1:
            raise ValueError(f"{path}: takes {1 + len(others)} inputs: give an embedding model, images alone")
        metadata = described(session.get_modelmeta().custom_metadata_map.get(METADATA), path)
        shape = [side if isinstance(side, int) else None for side in taken.shape]
        return opened(_run(session), metadata, shape, path, runtime)

    def layers(self, path: Path, seen: Seen) -> Iterator[tuple[str, np.ndarray]]:
        """See `Format.layers`: the same file with the last value of each layer as a further output."""
        import onnx

        model = onnx.load(path)
        last = {name: node.output[0] for node in model.graph.node for name in [_layer(node)] if name in seen.outputs}
        own = {value.name for value in model.graph.output}
        for value in dict.fromkeys(last.values()):
            if value not in own:
                model.graph.output.add().name = value
        session = start(path, None, model.SerializeToString())
        found = session.run(list(last.values()), {session.get_inputs()[0].name: seen.images})
        yield from zip(last, found, strict=True)


def start(path: Path, threads: int | None, content: bytes | None = None) -> Any:
    """An ONNX Runtime session on the CPU, of a file or, with `content`, of what could stand in its place.

    Raises:
        ValueError: the file cannot be read.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    try:
        return onnxruntime.InferenceSession(content or path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path}: cannot be opened by ONNX Runtime ({reason}); export it again") from error


def _run(session: Any) -> Run:
    taken, given = session.get_inputs()[0].name, session.get_outputs()[0].name

    def run(images: np.ndarray) -> np.ndarray:
        return session.run([given], {taken: images})[0]

    return run


def _layer(node: Any) -> str:
    """The innermost module of a node, out of "['', 'backbone', 'backbone.conv1', 'conv2d']"."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "[]")
    names = re.findall(r"'([^']*)'", scopes)
    return names[-2] if len(names) > 1 else ""


def unsupported(program: Any, error: Exception) -> str:
    """A sentence about an operator that a format does not have, and the layer that needs it."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    text = "\n".join(str(one) for one in chain)
    for node in program.graph.nodes:
        if node.op == "call_function" and re.search(rf"\b{re.escape(str(node.target))}\b|'{node.target}'", text):
            return f"has no operator for {node.target}, which the layer {layer_of(node) or 'around the network'} needs"
    return f"cannot take this model ({text.strip().splitlines()[0]})"


class _Faces:
    """Calibration batches, as ONNX Runtime asks for them."""

    def __init__(self, name: str, batches: list[np.ndarray]):
        self.name, self.batches = name, iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {self.name: batch}


def quantised(model: Any, batches: list[np.ndarray]) -> Any:
    """Convolutions and matrix products in int8, scales learned from batches of images."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder, hushed(logging.WARNING):  # it advises to fold norms, which is done
        before, after = Path(folder) / "floats.onnx", Path(folder) / "integers.onnx"
        onnx.save(model, before)
        quantize_static(
            before,
            after,
            _Faces(model.graph.input[0].name, batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(after)


@contextmanager
def hushed(level: int) -> Iterator[None]:
    """Keeps what libraries log up to this level from the user meanwhile."""
    loud = logging.root.manager.disable
    logging.disable(max(level, loud))
    try:
        yield
    finally:
        logging.disable(loud)
