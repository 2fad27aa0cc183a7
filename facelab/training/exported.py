"""What can be evaluated and is no network of torch: exported models, and embeddings that somebody made already."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from facelab.backbone.weights import HOUSE
from facelab.benchmark.scores import DAMAGED
from facelab.export.loading import Embedder, Runtime, formats, load_embedder
from facelab.training.options import PRECISIONS
from facelab.training.trained import Trained

__all__ = ["Exported", "Given", "out_of_another"]

ROWS = "embeddings"  # the array of an .npz that holds them


class Exported(nn.Module):
    """An exported model where a benchmark looks for a backbone: (B,3,H,W) in [−1,1] → (B,D), as the file gives them.

    Args:
        embedder: the opened file. Its images are whole pixel values, so they come back from [−1,1] exactly.
    """

    def __init__(self, embedder: Embedder):
        super().__init__()
        self.embedder, self.embedding_size = embedder, embedder.embedding_size
        self.input_convention = embedder.convention

    @property
    def about(self) -> str:
        """In words, for the summary."""
        told = self.embedder.metadata
        known = (told.get(key) for key in ("format", "precision"))
        words = [str(word) for word in known if word is not None] or ["no word about itself"]
        return f"exported, {', '.join(words)}, {self.embedder.size}×{self.embedder.size}, D={self.embedding_size}"

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        pixels = (images.float() * HOUSE.std + HOUSE.mean).round().clamp(0, 255).to(torch.uint8)
        rows = self.embedder.features(pixels.permute(0, 2, 3, 1).cpu().numpy())
        return torch.from_numpy(rows).to(images.device)


class Given(nn.Module):
    """Embeddings of a benchmark's images, in their order, in place of a backbone.

    Args:
        rows: (M,D).
    """

    input_convention = HOUSE

    def __init__(self, rows: Tensor):
        super().__init__()
        self.rows, self.embedding_size = rows, rows.shape[1]

    @property
    def about(self) -> str:
        """In words, for the summary."""
        return f"none: {len(self.rows):,} embeddings as they are given, D={self.embedding_size}"

    def of(self, images: Any, path: Path) -> Tensor:
        """(M,D) of a benchmark's images.

        Raises:
            ValueError: it has another number of them.
        """
        if len(self.rows) != len(images):
            raise ValueError(
                f"checkpoint={path}: has {len(self.rows):,} embeddings, but the benchmark has {len(images):,} images: "
                "give one row for each, in the order in which the benchmark names them first"
            )
        return self.rows


def out_of_another(path: Path, config: DictConfig, typed: Collection[str]) -> Trained | None:
    """An exported model, or embeddings; None for other files.

    Args:
        path: what `checkpoint=` names.
        config: an evaluation's; `data.size` becomes the model's where nobody has typed it.
        typed: the keys that somebody has.

    Raises:
        ValueError: the file cannot be read, or the configuration contradicts it.
    """
    rows = _rows(path)
    if rows is None and not any(one.embeds and one.reads(path) for one in formats()):
        return None
    if "_target_" in config.backbone:
        raise ValueError(f"checkpoint={path} is no bare weights: leave backbone=… out")
    if rows is not None:
        return Trained(Given(torch.from_numpy(rows)), nn.Identity(), f"{path}, embeddings")
    if config.precision not in PRECISIONS:
        raise ValueError(f"precision is {config.precision!r}: give one of {', '.join(PRECISIONS)}")
    precision = None if config.precision == "auto" else config.precision
    given = config.backbone.input
    convention = None
    if given is not None:
        from facelab.training.network import read_input

        convention = read_input(given, HOUSE)
    told = Runtime(precision=precision, convention=convention, size=config.data.size)
    embedder = load_embedder(path, told, config.batch_size)
    if "data.size" in typed and config.data.size != embedder.size:
        raise ValueError(f"data.size is {config.data.size}, but checkpoint={path} takes {embedder.size} pixels")
    OmegaConf.update(config, "data.size", embedder.size)
    if embedder.mirror and config.benchmark.get("mirror") is False:
        raise ValueError(
            f"benchmark.mirror=false, but checkpoint={path} adds the mirrored image itself: export it without mirror"
        )
    return Trained(Exported(embedder), nn.Identity(), f"{path}, exported")


def _rows(path: Path) -> np.ndarray | None:
    """(M,D) float32 of a `.npy`, or of the array `embeddings` of an `.npz`; None for other files.

    Raises:
        ValueError: that array has another shape or kind.
    """
    if path.suffix not in (".npy", ".npz"):
        return None
    try:
        found: Any = np.load(path, allow_pickle=False)
        if path.suffix == ".npz":
            if ROWS not in found.files:
                return None  # weights with MXNet's names
            found = found[ROWS]
    except DAMAGED as error:
        raise ValueError(f"checkpoint={path}: cannot be read ({error}); write it with numpy.save") from error
    if found.ndim != 2 or found.dtype.kind != "f":
        raise ValueError(
            f"checkpoint={path}: holds {found.dtype} of shape {found.shape}: give embeddings (M,D), one row an image"
        )
    return np.ascontiguousarray(found, np.float32)
