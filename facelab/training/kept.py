"""Embeddings that were computed once, kept for the next benchmark option that asks for the same ones.

A file's name says what its rows depend on: <network and its view of an image>-<number of images>-<their pixels>.npy.
Neither paths nor dates are part of it: another file under the same name gives other rows here, a copy gives the same.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facelab.atomic import atomic
from facelab.benchmark.scores import DAMAGED
from facelab.data.torch_loader import Batch

log = logging.getLogger(__name__)


class Pixels:
    """SHA-256 of images in their order, taken while they pass by."""

    def __init__(self) -> None:
        self._sum, self._shape = hashlib.sha256(), ""

    def passing(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, unchanged."""
        for batch in batches:
            self.add(batch)
            yield batch

    def add(self, batch: Batch) -> None:
        """A batch's pixels; how they were cut into batches leaves no trace."""
        self._shape = str(tuple(batch.images.shape[1:]))  # that of all
        self._sum.update(batch.images.numpy().data)

    @property
    def digest(self) -> str:
        """Of all that has passed, as 32 hexadecimal digits."""
        return hashlib.sha256(self._shape.encode() + self._sum.digest()).hexdigest()[:32]


class KeptEmbeddings:
    """A folder of embeddings.

    Args:
        folder: where they lie; None keeps nothing.
        network: all that the rows depend on besides the images: weights, precision, mirror, …; plain values.
    """

    def __init__(self, folder: str | Path | None, network: Mapping[str, Any]):
        self.folder = None if folder is None else Path(folder).expanduser()
        named = json.dumps({"torch": torch.__version__, **network}, sort_keys=True, default=str)
        self.network = hashlib.sha256(named.encode()).hexdigest()[:32]

    def has_some(self, images: int) -> bool:
        """Whether this network has embedded as many images before: else nobody need decode them first to know them."""
        return self.folder is not None and any(self.folder.glob(f"{self.network}-{images}-*.npy"))

    def file(self, pixels: str, images: int) -> Path:
        """Where the rows of these images lie, if they do."""
        assert self.folder is not None
        return self.folder / f"{self.network}-{images}-{pixels}.npy"

    def load(self, pixels: str, images: int) -> Tensor | None:
        """(M,D) float32 of the images with this digest, or None; a damaged file is told, and made anew."""
        path = self.file(pixels, images)
        if not path.is_file():
            return None
        try:
            rows = np.load(path, allow_pickle=False)
        except DAMAGED as error:
            log.warning(f"{path}: is damaged ({error}); its images are embedded again")
            return None
        if rows.dtype != np.float32 or rows.ndim != 2 or len(rows) != images:
            log.warning(f"{path}: holds {rows.dtype} of shape {rows.shape}, not {images} rows; they are embedded again")
            return None
        return torch.from_numpy(rows)

    def save(self, pixels: str, rows: Tensor) -> None:
        """Keeps (M,D) float32; a folder that takes nothing is told, and costs nothing else."""
        if self.folder is None:
            return
        try:
            with atomic(self.file(pixels, len(rows))) as path:
                np.save(path, rows.numpy())
        except OSError as error:
            log.warning(f"embeddings={self.folder}: nothing is kept there ({error.strerror or error})")
