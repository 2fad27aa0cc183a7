"""OpenVINO's own format, `.xml` with its weights beside it in `.bin`."""

import json
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from facelab.export.base import METADATA, Format, Opened, Run, Runtime, Seen, Writing, described, opened
from facelab.export.to_torchscript import traced

ENTRY = [METADATA, "metadata"]  # where it stands in rt_info
HINTS = {"bf16": "bf16"}  # what the processor is told to multiply in; fp32 for all other precisions


class OpenVino(Format):
    """Two files; what they say of themselves stands in the model's rt_info.

    Args:
        quantisation: how int8 is made: performance (symmetric), or mixed (activations asymmetric), which networks with
            PReLU or GELU want.
    """

    suffix = ".xml"
    precisions = ("fp32", "fp16", "bf16", "int8")
    runtime = ("openvino",)
    quantisers = ("nncf",)

    def __init__(self, quantisation: str):
        if quantisation not in ("performance", "mixed"):
            raise ValueError(f"format.quantisation is {quantisation!r}: give performance or mixed")
        self.quantisation = quantisation

    def write(self, writing: Writing, file: Path) -> None:
        """See `Format.write`. In half precision the file is half as large; what the processor multiplies in is told
        when it is opened: bf16 in bf16, all others in fp32.
        """
        import openvino

        script = traced(writing.model, writing.example)
        shape = openvino.PartialShape([-1 if writing.batch is None else writing.batch, *writing.example.shape[1:]])
        try:
            model = openvino.convert_model(script, example_input=writing.example, input=[shape])
        except Exception as error:
            raise ValueError(f"format=openvino: {unsupported(script, error)}") from error
        model.inputs[0].get_tensor().set_names({"images"})
        model.outputs[0].get_tensor().set_names({"embeddings"})
        if writing.precision == "int8":
            model = quantised(model, writing.calibration, self.quantisation)
        model.set_rt_info(json.dumps(dict(writing.metadata)), ENTRY)
        openvino.save_model(model, file, compress_to_fp16=writing.precision == "fp16")

    def open(self, path: Path, runtime: Runtime) -> Opened:
        """See `Format.open`."""
        import openvino

        model = _read(path)
        if len(model.inputs) != 1:
            raise ValueError(f"{path}: takes {len(model.inputs)} inputs: give an embedding model, images alone")
        text = model.get_rt_info(ENTRY).astype(str) if model.has_rt_info(ENTRY) else None
        metadata = described(text, path)
        shape = [side.get_length() if side.is_static else None for side in model.inputs[0].get_partial_shape()]
        # OpenVINO would choose bf16 by itself where a processor has it.
        precision = runtime.precision or HINTS.get(metadata.get("precision", "fp32"), "fp32")
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision)}
        if runtime.threads is not None:
            settings |= {"INFERENCE_NUM_THREADS": runtime.threads, "NUM_STREAMS": 1}
        compiled = openvino.Core().compile_model(model, "CPU", settings)
        return opened(_run(compiled), metadata, shape, path, runtime)

    def layers(self, path: Path, seen: Seen) -> Iterator[tuple[str, np.ndarray]]:
        """See `Format.layers`: the same file with the last value of each layer as a further output."""
        import openvino

        model = _read(path)
        last = {
            name: operation.output(0)
            for operation in model.get_ordered_ops()
            for name in [_layer(operation.get_friendly_name())]
            if name in seen.outputs and operation.get_type_name() != "Constant"
        }
        ports = [model.add_outputs([value])[0].get_node().get_friendly_name() for value in last.values()]
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(model, "CPU", settings)
        found = compiled(seen.images)
        values = list(found.values())[-len(ports) :] if ports else []
        yield from zip(last, (np.asarray(value) for value in values), strict=True)


def _read(path: Path) -> Any:
    import openvino

    if not path.with_suffix(".bin").is_file():
        raise ValueError(f"{path}: its weights, {path.with_suffix('.bin').name}, are not beside it: copy both files")
    try:
        return openvino.Core().read_model(path)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"{path}: cannot be opened by OpenVINO ({reason}); export it again") from error


def _run(compiled: Any) -> Run:
    def run(images: np.ndarray) -> np.ndarray:
        return np.array(compiled(images)[0])

    return run


def _layer(name: str) -> str:
    """The module of an operation called __module.backbone.conv1/aten::_convolution/Convolution."""
    found = re.match(r"__module\.([^/]+)/", name)
    return found[1] if found else ""


def unsupported(script: Any, error: Exception) -> str:
    """A sentence about an operator that OpenVINO does not have, and the layer that needs it."""
    text = str(error)
    # Its log names all that depends on such an operator too; the summary names the operators alone.
    _, _, summary = text.partition("No conversion rule found for operations:")
    for name in re.findall(r"\b(?:aten|quantized|torchvision)::\w+", summary or text):
        for node in script.inlined_graph.nodes():
            if node.kind() == name:
                layer = node.scopeName().rpartition("/")[2].removeprefix("__module.")
                return f"has no operator for {name}, which the layer {layer or 'around the network'} needs"
    return f"cannot take this model ({text.strip().splitlines()[-1]})"


def quantised(model: Any, batches: list[np.ndarray], preset: str) -> Any:
    """Convolutions and matrix products in int8 by NNCF, scales learned from batches of images."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    attends = any(one.get_type_name() == "ScaledDotProductAttention" for one in model.get_ops())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nncf.quantize(
            model,
            nncf.Dataset(batches),
            preset=nncf.QuantizationPreset(preset),
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER if attends else None,
        )
