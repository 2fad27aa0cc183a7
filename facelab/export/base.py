"""What a format is: how a model is written to a file, how the file is opened again, and what goes on inside it."""

import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from facelab.backbone.weights import Input

METADATA = "facelab"  # under this name a file says what it is, as JSON

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Runtime:
    """How a file is run.

    Attributes:
        threads: that one call may use; None: as many as the runtime takes. Of torch's formats it is the number of the
            whole process.
        precision: fp32 or bf16, in which the processor multiplies, where the runtime can choose (OpenVINO) or the
            network is torch's; None: as the file says.
        backbone: which network bare weights are of: a name of conf/backbone, or such a node.
        convention: what the network takes, where the file does not say; None: the house's.
        size: pixels, H = W, where the file does not say.
        ema: of a checkpoint with averaged weights: whether these are taken; None: where there are any.
    """

    threads: int | None = None
    precision: str | None = None
    backbone: Any = None
    convention: Input | None = None
    size: int | None = None
    ema: bool | None = None


@dataclass(frozen=True)
class Opened:
    """A file that can be run.

    Attributes:
        run: what the file takes, (B,H,W,3) uint8 or (B,3,H,W) float32 → (B,D) float32.
        metadata: what it says of itself; see `facelab.export.metadata`.
        network: the same as a module, where torch runs it; None of other runtimes.
        convention: what is handed to `run`, where preprocessing is outside; what the network is used to, where inside.
        size: pixels, H = W.
        inside: whether preprocessing is inside: RGB, uint8, (B,H,W,3).
        batch: how many images it takes at once; None: any number.
        mirror: whether the mirrored image's embedding is in the result already.
    """

    run: Run
    metadata: dict[str, Any]
    network: nn.Module | None
    convention: Input
    size: int
    inside: bool
    batch: int | None = None
    mirror: bool = False


@dataclass(frozen=True)
class Writing:
    """What a format is given to write.

    Attributes:
        model: an `EmbeddingModel`, in eval mode, in the precision of the export.
        example: images as it takes them, two, or as many as the fixed batch.
        batch: the fixed number of images; None: any.
        precision: fp32, fp16, bf16 or int8.
        metadata: to be written into the file.
        calibration: images as the model takes them, one batch each, of which int8 learns its scales; none otherwise.
    """

    model: Any
    example: Tensor
    batch: int | None
    precision: str
    metadata: Mapping[str, Any]
    calibration: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class Seen:
    """What the original's layers took and gave for some images, by the layers' names in their order.

    Attributes:
        images: (B,H,W,3) or (B,3,H,W), as the exported file takes them.
        inputs: of each layer.
        outputs: of each layer, what the exported file's layer of this name should give.
    """

    images: np.ndarray
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


class Format:
    """One kind of file. Its settings are the keys of its yaml in conf/format.

    Attributes:
        suffix: of its files; what is opened is recognised by it.
        precisions: in which it can be written.
        runtime: modules that running needs.
        writers: modules that writing needs besides.
        quantisers: modules that writing int8 needs besides.
        embeds: whether it holds the whole model, images to embeddings, or a network that facelab runs.
    """

    suffix: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    runtime: ClassVar[tuple[str, ...]] = ()
    writers: ClassVar[tuple[str, ...]] = ()
    quantisers: ClassVar[tuple[str, ...]] = ()
    embeds: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """As `format=` has it."""
        return type(self).__module__.rpartition(".")[2].removeprefix("to_")

    def reads(self, path: Path) -> bool:
        """Whether a file is of this format; so far as can be told without its runtime."""
        return path.suffix == self.suffix

    def check(self, precision: str | None = None) -> None:
        """Refuses to begin where something is missing.

        Args:
            precision: in which a model is to be written; None: a file is to be read.

        Raises:
            ValueError: with what to install.
        """
        writers = self.writers * (precision is not None) + self.quantisers * (precision == "int8")
        require(self.runtime + writers, f"format={self.name}")

    def write(self, writing: Writing, file: Path) -> None:
        """Writes a model.

        Raises:
            ValueError: an operator that the format does not have; it is named, and the layer that needs it.
        """
        raise NotImplementedError

    def open(self, path: Path, runtime: Runtime) -> Opened:
        """Opens a file of this format.

        Raises:
            ValueError: it cannot be read, or its runtime is missing.
        """
        raise NotImplementedError

    def layers(self, path: Path, seen: Seen) -> Iterator[tuple[str, np.ndarray]]:
        """What the file's layers give, by the names that they have in the original, in their order.

        Args:
            path: a file that `write` wrote.
            seen: the original's; a format whose layers cannot be watched while it runs asks each alone.
        """
        return iter(())


def require(modules: Iterable[str], what: str) -> None:
    """Refuses to go on without modules of the extra `export`.

    Raises:
        ValueError: one is missing; `what` needs it.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(f"{what} needs {module}, which is not installed: pip install 'facelab[export]'") from error


def described(text: str | None, path: Path) -> dict[str, Any]:
    """What a file says of itself.

    Args:
        text: its metadata; None or empty: it has none.
        path: the file.

    Raises:
        ValueError: metadata that cannot be read.
    """
    try:
        found = json.loads(text) if text else {}
        if not isinstance(found, dict) or not isinstance(found.get("size") or 1, int):
            raise ValueError("size or names are missing")
        if found.get("input"):
            Input(**found["input"])
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: what it says of itself cannot be read ({error}); export it again") from error
    return found


def opened(
    run: Run, metadata: dict[str, Any], shape: list[int | None], path: Path, runtime: Runtime, network: Any = None
) -> Opened:
    """A file and what it says of itself, or, of a file of somebody else, what is known otherwise.

    Args:
        run: see `Opened`.
        metadata: see `Opened`; empty of a file of somebody else.
        shape: of its input, None where any number will do.
        path: the file.
        runtime: says the convention of such a file.
        network: see `Opened`.

    Raises:
        ValueError: it does not take a batch of square colour images.
    """
    inside = len(shape) == 4 and shape[3] == 3
    sides = [side for place, side in enumerate(shape) if place not in (0, 3 if inside else 1)]
    side: Any = metadata.get("size") or next(iter(sides[::-1]), None) or runtime.size
    if len(shape) != 4 or 3 not in (shape[1], shape[3]) or len({*sides, side} - {None}) != 1:
        raise ValueError(
            f"{path}: takes {shape}, no batch of square colour images (B,H,H,3) or (B,3,H,H): give an embedding model"
        )
    stated = metadata.get("input")
    convention = Input(**stated) if stated else runtime.convention or Input("rgb", 127.5, 127.5)
    return Opened(run, metadata, network, convention, int(side), inside, shape[0], bool(metadata.get("mirror", False)))


def as_torch(network: Callable[[Tensor], Tensor], runtime: Runtime) -> Run:
    """Lets numpy arrays through a module."""
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    half = runtime.precision == "bf16"

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            return network(torch.from_numpy(images)).float().numpy()

    return run
