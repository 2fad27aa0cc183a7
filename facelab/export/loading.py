"""Any file that holds a face model, opened: `load_embedder(path).embed(images)`.

Neither Lightning nor a configuration is needed for an exported file, only its runtime.
"""

from collections.abc import Iterator
from functools import cache
from os import PathLike
from pathlib import Path
from pydoc import locate
from typing import Any

import numpy as np

from facelab.backbone.weights import Input
from facelab.export.base import Format, Opened, Runtime
from facelab.export.networks import open_weights

__all__ = ["Embedder", "Runtime", "formats", "load_embedder"]

AS_IT_COMES = Runtime()  # as many threads as the runtime takes, in the file's own precision


class Embedder:
    """An opened model.

    Attributes:
        path: its file.
        size: pixels of an aligned face, H = W.
        convention: what the network's weights are used to; applied inside, for whatever is handed over is RGB.
        metadata: what the file says of itself; empty of a file that says nothing.
        mirror: whether the mirrored image's embedding is in the file's results already.
        network: the module, where torch runs it; None of other runtimes.
        batch_size: images at once.
    """

    def __init__(self, path: Path, opened: Opened, batch_size: int):
        self.path, self.batch_size = path, batch_size
        self._opened = opened
        self.size, self.convention, self.metadata = opened.size, opened.convention, opened.metadata
        self.mirror, self.network = opened.mirror, opened.network

    def embed(self, images: np.ndarray, mirror: bool = False) -> np.ndarray:
        """Unit embeddings.

        Args:
            images: (B,H,W,3) uint8, RGB, aligned faces of `size`.
            mirror: whether the mirrored images' embeddings are added, where the file does not do so itself.

        Returns:
            (B,D) float32, of length 1 each.

        Raises:
            ValueError: images of another shape or kind; embeddings that are zero or not finite.
        """
        rows = self.features(images)
        if mirror and not self.mirror:
            rows = rows + self.features(np.ascontiguousarray(images[:, :, ::-1]))
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        wrong = ~(np.isfinite(lengths) & (lengths > 0))
        if wrong.any():
            raise ValueError(
                f"{self.path}: {int(wrong.sum())} of {len(rows)} embeddings are zero or not finite, the first is that "
                f"of image {int(np.argmax(wrong))}: export it again, in another precision"
            )
        return rows / lengths

    def features(self, images: np.ndarray) -> np.ndarray:
        """What the file itself gives: (B,D) float32, of length 1 or not, as `metadata["unit"]` says.

        Args:
            images: (B,H,W,3) uint8, RGB, aligned faces of `size`.

        Raises:
            ValueError: images of another shape or kind.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != (self.size, self.size, 3) or images.dtype != np.uint8:
            raise ValueError(
                f"{self.path}: takes uint8 images of shape {('B', self.size, self.size, 3)}, RGB, and was given "
                f"{images.dtype} of {images.shape}: align the faces first, to {self.size} pixels"
            )
        if not len(images):
            return np.zeros((0, self.embedding_size), np.float32)
        return np.concatenate([self._run(part) for part in self._parts(images)])

    @property
    def embedding_size(self) -> int:
        """D; where the file does not say, an image without a face is embedded to find out."""
        if "embedding_size" not in self.metadata:
            blank = np.zeros((1, self.size, self.size, 3), np.uint8)
            self.metadata["embedding_size"] = self._run(blank).shape[1]
        return int(self.metadata["embedding_size"])

    def _parts(self, images: np.ndarray) -> Iterator[np.ndarray]:
        count = self._opened.batch or self.batch_size
        for start in range(0, len(images), count):
            yield images[start : start + count]

    def _run(self, images: np.ndarray) -> np.ndarray:
        """Features of no more images than it takes at once; a fixed batch is filled up."""
        there, fixed = len(images), self._opened.batch
        if fixed is not None and there < fixed:
            images = np.concatenate([images, np.repeat(images[-1:], fixed - there, axis=0)])
        given = np.ascontiguousarray(images) if self._opened.inside else as_outside(images, self.convention)
        return np.asarray(self._opened.run(given)[:there], np.float32)


def as_outside(images: np.ndarray, convention: Input) -> np.ndarray:
    """Images (B,H,W,3) uint8 RGB → (B,3,H,W) float32 as the weights are used to them."""
    if convention.color != "rgb":
        images = images[..., ::-1]
    pixels = images.transpose(0, 3, 1, 2).astype(np.float32)
    return np.ascontiguousarray((pixels - np.float32(convention.mean)) * np.float32(1 / convention.std))


@cache
def formats() -> tuple[Format, ...]:
    """All formats of conf/format, those first that hold whole models."""
    import yaml

    from facelab.configuration import configuration_folder

    found = []
    for file in sorted((configuration_folder() / "format").glob("*.yaml")):
        node = yaml.safe_load(file.read_text(encoding="utf-8"))
        kind: Any = locate(node.pop("_target_"))
        found.append(kind(**node))
    return tuple(sorted(found, key=lambda one: not one.embeds))


def load_embedder(
    path: str | PathLike[str],
    runtime: Runtime = AS_IT_COMES,
    batch_size: int = 64,
) -> Embedder:
    """Opens a model: an exported .onnx, OpenVINO .xml, TorchScript .pt, .pt2 or .safetensors, a checkpoint, or weights.

    Args:
        path: the file. An .onnx, .xml or .pt of somebody else is taken too, where it takes a batch of square images.
        runtime: threads, precision, and what the file does not say: which backbone, which convention.
        batch_size: images at once, where the file takes any number; 32 to 256.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of no kind that is known, is damaged, or its runtime is missing.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give the file in it, such as model.onnx or model.xml")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give an exported model, a checkpoint or published weights")
    kind = next((one for one in formats() if one.reads(path)), None)
    if kind is None and runtime.backbone is not None:
        return Embedder(path, open_weights(path, runtime), batch_size)
    if kind is None:
        known = ", ".join(dict.fromkeys(one.suffix for one in formats()))
        raise ValueError(
            f"{path}: is no model that is known here: give one of {known}, or weights and the backbone that they are of"
        )
    kind.check()
    return Embedder(path, kind.open(path, runtime), batch_size)
