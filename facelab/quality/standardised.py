"""The class-standardised norm: how long an embedding is for its person, and not how often its person was trained on.

The length of an embedding grows with the images that its class had in training. What is left of it, when mean and
spread of the class are taken out, (‖z‖ − μ_y)/σ_y, speaks of the image. Classes with few images, which do not know
their σ, take that of the population; they keep their own μ.

An unseen face has no class. Its μ and σ are those of the classes most like it: of the k classes whose centres have the
largest cosines, weighted by max(cosθ, 0),

    μ = Σ w_j·μ_j        σ² = Σ w_j·σ_j²        w_j = max(cosθ_j, 0) / Σ max(cosθ_i, 0)

and those of the population where k = 0, or where no class has a cosine above 0.

N images, C classes, D numbers of an embedding, k nearest classes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from facelab.atomic import atomic

BLOCK = 2**24  # cosines that exist at a time


@dataclass(frozen=True)
class Standardiser:
    """What is known of the lengths of each class's embeddings.

    Attributes:
        counts: (C,) int64 images of each class; classes without one have NaN as mean and σ.
        means: (C,) float64 mean length.
        stds: (C,) float64 σ that is used: the class's own (unbiased), or the population's.
        centres: (C,D) float32 directions, of length 1 or 0.
        mean: of all lengths, the population's μ.
        std: of all lengths, the population's σ (unbiased).
        smallest: images below which a class takes the population's σ.
    """

    counts: np.ndarray
    means: np.ndarray
    stds: np.ndarray
    centres: np.ndarray
    mean: float
    std: float
    smallest: int

    def own(self, norms: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """(N,) lengths and classes of images that were counted → (N,) float64 standardised lengths."""
        return (np.asarray(norms, np.float64) - self.means[labels]) / self.stds[labels]

    def population(self, norms: np.ndarray) -> np.ndarray:
        """(N,) lengths → (N,) float64, standardised by the population."""
        return (np.asarray(norms, np.float64) - self.mean) / self.std

    def score(self, norms: np.ndarray, embeddings: np.ndarray, nearest: int) -> np.ndarray:
        """The quality of unseen faces.

        Args:
            norms: (N,) lengths.
            embeddings: (N,D), of which the directions count.
            nearest: k, 0 for the population.

        Returns:
            (N,) float64, higher is better.

        Raises:
            ValueError: embeddings of another length, or a k below 0.
        """
        if nearest < 0:
            raise ValueError(f"nearest is {nearest}: give the number of classes to look at, or 0 for the population")
        if embeddings.ndim != 2 or embeddings.shape[1] != self.centres.shape[1]:
            raise ValueError(
                f"embeddings of shape {embeddings.shape}: the classes' centres have {self.centres.shape[1]} numbers; "
                "they are another network's"
            )
        norms = np.asarray(norms, np.float64)
        there = np.flatnonzero(self.counts)
        nearest = min(nearest, len(there))
        if nearest == 0:
            return self.population(norms)
        mean, variance = np.empty(len(norms)), np.empty(len(norms))
        centres, means, variances = self.centres[there], self.means[there], self.stds[there] ** 2
        rows = max(1, BLOCK // len(there))
        for start in range(0, len(norms), rows):
            part = slice(start, start + rows)
            cosines = _unit(np.asarray(embeddings[part], np.float32)) @ centres.T
            best = np.argpartition(cosines, -nearest, axis=1)[:, -nearest:]
            weights = np.maximum(np.take_along_axis(cosines, best, axis=1), 0).astype(np.float64)
            total = weights.sum(1)
            known = total > 0
            weights /= np.where(known, total, 1)[:, None]
            mean[part] = np.where(known, (weights * means[best]).sum(1), self.mean)
            variance[part] = np.where(known, (weights * variances[best]).sum(1), self.std**2)
        return (norms - mean) / np.sqrt(variance)

    def save(self, path: str | PathLike[str]) -> Path:
        """Writes it as safetensors, whole or not at all."""
        path = Path(path)
        arrays = {field.name: np.ascontiguousarray(getattr(self, field.name)) for field in fields(self)}
        with atomic(path) as temporary:
            save_file(arrays, temporary, metadata={"facelab": "quality.standardised"})
        return path

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Standardiser:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is another one.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; python -m facelab.quality writes standardised.safetensors")
        try:
            found = load_file(path)
            mean, std, smallest = (found.pop(name).item() for name in ("mean", "std", "smallest"))
            return cls(**found, mean=mean, std=std, smallest=smallest)
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not what python -m facelab.quality writes ({error!s:.200})") from error


def fit(norms: np.ndarray, labels: np.ndarray, centres: np.ndarray, smallest: int) -> Standardiser:
    """Counts the lengths of each class.

    Args:
        norms: (N,) lengths of the embeddings.
        labels: (N,) classes, 0 … C−1.
        centres: (C,D) any vectors in the classes' directions, as the sums of their unit embeddings.
        smallest: images below which a class takes the population's σ; 2 and more.

    Raises:
        ValueError: fewer than two images, lengths that are not finite, or all alike, or `smallest` below 2.
    """
    norms, labels = np.asarray(norms, np.float64), np.asarray(labels, np.int64)
    assert norms.shape == labels.shape, "a label for each length"
    if smallest < 2:
        raise ValueError(f"smallest is {smallest}: one image has no spread; give 2 or more")
    if not np.isfinite(norms).all():
        raise ValueError(f"{int((~np.isfinite(norms)).sum())} of {len(norms)} lengths are not finite: check the model")
    if len(norms) < 2 or norms.min() == norms.max():
        raise ValueError(f"all {len(norms)} embeddings have the same length: there is nothing to standardise")
    classes = len(centres)
    counts = np.bincount(labels, minlength=classes)
    assert len(counts) == classes, "a centre for each class"
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.bincount(labels, weights=norms, minlength=classes) / counts
        squares = np.bincount(labels, weights=(norms - means[labels]) ** 2, minlength=classes)
        own = np.sqrt(squares / (counts - 1))
    population = float(norms.std(ddof=1))
    stds = np.where((counts >= smallest) & (own > 0), own, population)
    stds[counts == 0] = np.nan
    return Standardiser(
        counts, means, stds, _unit(np.asarray(centres, np.float32)), float(norms.mean()), population, smallest
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)
