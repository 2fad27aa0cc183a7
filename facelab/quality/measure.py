"""What is measured of each image: the embedding's length and direction, and BRISQUE."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn

from facelab.data.augment import normalise
from facelab.data.torch_loader import EvalLoader
from facelab.quality.brisque import Brisque, features
from facelab.tracking import track
from facelab.training.options import EvaluationOptions
from facelab.training.strategy import keep_memory


class Measured(NamedTuple):
    """Of n images.

    Attributes:
        plain: (n,D) float32 embeddings, whose lengths are the images' norms.
        mirrored: the same of the mirrored images; None where it was not asked for.
        brisque: (n,) float64, lower is better; NaN where an image is flat, or where it was not asked for.
    """

    plain: np.ndarray
    mirrored: np.ndarray | None
    brisque: np.ndarray

    @property
    def norms(self) -> np.ndarray:
        """(n,) float64."""
        return np.linalg.norm(self.plain.astype(np.float64), axis=1)


class Meter:
    """Measures images, batch by batch.

    Args:
        network: (B,3,H,W) in [−1,1] → (B,D).
        options: on what.
        loader: `threads` that decode, and `prefetch`.
        brisque: the regression; None where it is left out.
    """

    def __init__(self, network: nn.Module, options: EvaluationOptions, loader: DictConfig, brisque: Brisque | None):
        self.options, self.loader, self.brisque = options, loader, brisque
        self.device = torch.device("cuda" if options.on_gpu else "cpu")
        if not options.on_gpu:
            keep_memory()
        self.network = network.to(self.device)

    def batches(self, images: Any, what: str, mirror: bool = False) -> Iterator[Measured]:
        """Measures images in their order.

        Args:
            images: anything with a length and ``load(i)``.
            what: for the bar.
            mirror: whether the mirrored images are embedded as well.
        """
        options = self.options
        loader = EvalLoader(
            images, options.batch_size, rank=0, world=1, threads=self.loader.threads, prefetch=self.loader.prefetch,
            pin=options.on_gpu,
        )  # fmt: skip
        with ThreadPoolExecutor(self.loader.threads) as pool:
            for batch in track(loader, len(images), what, options.progress):
                pixels = batch.images.numpy()
                waiting = pool.map(features, list(pixels)) if self.brisque is not None else None
                plain, mirrored = self._embed(batch.images, mirror)
                scores = np.full(len(pixels), np.nan)
                if waiting is not None and self.brisque is not None:
                    scores = self.brisque.predict(np.stack(list(waiting)))
                yield Measured(plain, mirrored, scores)

    def all(self, images: Any, what: str, mirror: bool = False) -> Measured:
        """The same of all images at once."""
        parts = list(self.batches(images, what, mirror))
        turned = [part.mirrored for part in parts if part.mirrored is not None]
        return Measured(
            np.concatenate([part.plain for part in parts]),
            np.concatenate(turned) if turned else None,
            np.concatenate([part.brisque for part in parts]),
        )

    def _embed(self, images: torch.Tensor, mirror: bool) -> tuple[np.ndarray, np.ndarray | None]:
        half = torch.autocast(self.device.type, torch.bfloat16) if self.options.in_bf16 else nullcontext()
        with torch.inference_mode(), half:
            inputs = normalise(images.to(self.device, non_blocking=True))
            plain = self.network(inputs).float().cpu().numpy()
            return plain, self.network(inputs.flip(3)).float().cpu().numpy() if mirror else None
