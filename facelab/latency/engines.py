"""The same network under several runtimes and precisions, each ready to be called."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facelab.export.base import Runtime, Writing, as_torch
from facelab.export.folding import fold
from facelab.export.loading import Embedder, formats

__all__ = ["OFFERS", "PRECISIONS", "Engine", "Maker", "build", "of_file"]

PRECISIONS = ("fp32", "bf16", "int8")


@dataclass(frozen=True)
class Engine:
    """A network that can be called.

    Attributes:
        network: its name.
        runtime: eager, compile, torchscript, onnx or openvino.
        precision: fp32, bf16 or int8.
        run: (1,S,S,3) uint8 RGB → (1,D) float32.
        size: S.
        embedding_size: D.
        prepared: seconds that it took to be made ready.
    """

    network: str
    runtime: str
    precision: str
    run: Callable[[np.ndarray], np.ndarray]
    size: int
    embedding_size: int
    prepared: float

    @property
    def name(self) -> str:
        """In a table."""
        return f"{self.network} {self.runtime} {self.precision}"


@dataclass(frozen=True)
class Maker:
    """What engines are made of.

    Attributes:
        network: a name.
        module: an `EmbeddingModel` with preprocessing inside, in eval mode.
        size: pixels, H = W.
        embedding_size: D.
        threads: that an engine may use.
        folder: where files are written.
        calibration: (N,S,S,3) uint8 RGB faces, of which int8 learns its scales.
    """

    network: str
    module: Any
    size: int
    embedding_size: int
    threads: int
    folder: Path
    calibration: np.ndarray


def _eager(maker: Maker, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    return as_torch(maker.module, Runtime(maker.threads, precision))


def _compiled(maker: Maker, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    return as_torch(torch.compile(copy.deepcopy(maker.module)), Runtime(maker.threads, precision))


def _written(name: str, casts: bool) -> Callable[[Maker, str], Callable[[np.ndarray], np.ndarray]]:
    """Through the file of a format; casts: bf16 is of the file, not of the runtime."""

    def make(maker: Maker, precision: str) -> Callable[[np.ndarray], np.ndarray]:
        kind = next(one for one in formats() if one.name == name)
        kind.check(precision)
        module = copy.deepcopy(maker.module)
        fold(module, torch.from_numpy(maker.calibration[:2]))  # as exports do it
        if casts and precision == "bf16":
            module = module.cast(torch.bfloat16)
        file = maker.folder / f"{maker.network}-{name}-{precision}{kind.suffix}"
        faces = [face[None] for face in maker.calibration] if precision == "int8" else []
        about = {"size": maker.size, "input": None, "precision": precision}
        kind.write(Writing(module, torch.from_numpy(maker.calibration[:1]), 1, precision, about, faces), file)
        chosen = None if casts or precision == "int8" else precision
        return kind.open(file, Runtime(maker.threads, chosen)).run

    return make


# Runtime → the precisions that it offers on a CPU, and who makes such an engine.
OFFERS: dict[str, tuple[tuple[str, ...], Callable[[Maker, str], Callable[[np.ndarray], np.ndarray]]]] = {
    "eager": (("fp32", "bf16"), _eager),
    "compile": (("fp32", "bf16"), _compiled),
    "torchscript": (("fp32", "bf16"), _written("torchscript", casts=True)),
    "onnx": (("fp32", "int8"), _written("onnx", casts=True)),
    "openvino": (PRECISIONS, _written("openvino", casts=False)),
}


def build(maker: Maker, runtime: str, precision: str) -> Engine:
    """Makes an engine and calls it once.

    Raises:
        ValueError: its embedding of a face is not finite: what is measured would not be the network.
        Exception: whatever the runtime has to say; a runtime that is missing is a ValueError with what to install.
    """
    began = time.perf_counter()
    run = OFFERS[runtime][1](maker, precision)
    if not np.isfinite(run(np.ascontiguousarray(maker.calibration[:1]))).all():
        raise ValueError("its embedding of a rendered face is not finite")
    prepared = time.perf_counter() - began
    return Engine(maker.network, runtime, precision, run, maker.size, maker.embedding_size, prepared)


def of_file(embedder: Embedder, path: Path) -> Engine:
    """An exported file as it is, under its own runtime."""
    kind = next(one for one in formats() if one.reads(path))
    precision = str(embedder.metadata.get("precision", "fp32"))
    size = embedder.embedding_size
    return Engine(path.stem, kind.name, precision, embedder.features, embedder.size, size, 0.0)
