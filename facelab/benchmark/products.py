"""Scores of embeddings: exact ones of pairs, and blocks of float32 products that come close to them.

A score is the product x·y of two embeddings as they are given (of unit vectors the cosine), in float64. A float32
product of D terms, in whatever order it is summed up, is at most γ·‖x‖·‖y‖ from the true one, γ = D·u/(1 − D·u),
u = 2⁻²⁴ (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1; 3.1e-5 for unit vectors of 512
numbers). So blocks of them sift, and what lies that close to a bar is computed again in float64, always in the same
order of summation: equal embeddings tie, wherever they lie, and nothing depends on the size of the blocks, on the
device, or on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

Progress = Callable[[int, int], None]
"""Told of comparisons: so many are done, of so many."""

TILES = {"cpu": (512, 4096), "cuda": (8192, 8192)}  # probes × gallery rows: scores that stay near the processor
SEGMENT = 128  # neighbouring scores of which the largest is compared with a bar
PAIRS = 256  # pairs that are scored at once in float64, in the cache


def pair_scores(one: np.ndarray, other: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(N,) float64 products of rows, summed up in float64 and always in the same order.

    Args:
        one: (P,D) float.
        other: (G,D) float.
        pairs: (N,2) int, a row of each.
    """
    found = np.empty(len(pairs))
    for start in range(0, len(pairs), PAIRS):
        first, second = pairs[start : start + PAIRS].T
        products = np.asarray(one[first], np.float64) * np.asarray(other[second], np.float64)
        found[start : start + PAIRS] = products.sum(axis=1)  # einsum's order would depend on how many pairs there are
    return found


def unit(embeddings: np.ndarray) -> np.ndarray:
    """(M,D) float32 of length 1; rows that are zero stay zero."""
    embeddings = np.array(embeddings, np.float32)
    for start in range(0, len(embeddings), PAIRS):
        rows = embeddings[start : start + PAIRS].astype(np.float64)
        norm = np.sqrt(np.einsum("md,md->m", rows, rows))
        embeddings[start : start + PAIRS] = rows / np.where(norm == 0, 1, norm)[:, None]
    return embeddings


def rounding(size: int, one: float, other: float) -> float:
    """How far a float32 product may be from the true one.

    Args:
        size: D.
        one: the largest norm of one side.
        other: of the other.
    """
    share = size * 2.0**-24
    return share / (1 - share) * one * other + size * 2.0**-126  # and what is too small for a float32


def norms(embeddings: np.ndarray, what: str) -> np.ndarray:
    """(M,) float64 norms.

    Raises:
        ValueError: not a matrix, or rows that are not finite: counted, the first named.
    """
    if embeddings.ndim != 2 or not np.issubdtype(embeddings.dtype, np.floating):
        raise ValueError(
            f"{what}: of shape {embeddings.shape} and type {embeddings.dtype}; (rows, D) of float is needed"
        )
    found = np.empty(len(embeddings))
    for start in range(0, len(embeddings), PAIRS):
        rows = np.asarray(embeddings[start : start + PAIRS], np.float64)
        found[start : start + PAIRS] = np.sqrt(np.einsum("md,md->m", rows, rows))
    bad = ~np.isfinite(found)
    if bad.any():
        raise ValueError(
            f"{what}: {int(bad.sum())} of {len(bad)} embeddings are not finite, the first is row {int(np.argmax(bad))}"
            "; check the model's weights and its precision"
        )
    return found


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 are float32, and not TF32 or bfloat16, whatever the caller has chosen for a network."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class Product:
    """Tiles of float32 products, all written into one piece of memory.

    Args:
        tile: the most rows of either side.
        device: where.
    """

    def __init__(self, tile: tuple[int, int], device: torch.device):
        self.device = device
        self._memory = torch.empty(tile[0] * _padded(tile[1]), device=device)

    def __call__(self, one: Tensor, other: Tensor) -> Tensor:
        """(p,D) and (g,D) → (p,n,SEGMENT), the g scores of a row in stretches, −inf behind them; until the next call.

        Of most stretches only the maximum has to be looked at.
        """
        width = _padded(len(other))
        scores = self._memory[: len(one) * width].view(len(one), width)
        torch.mm(one, other.T, out=scores[:, : len(other)])
        scores[:, len(other) :] = -torch.inf
        return scores.view(len(one), -1, SEGMENT)

    def rows(self, embeddings: np.ndarray, start: int, stop: int) -> Tensor:
        """(n,D) float32 of a part of an array."""
        part = np.require(embeddings[start:stop], np.float32, ["C", "W"])  # torch takes none that cannot be written
        return torch.from_numpy(part).to(self.device)


def _padded(width: int) -> int:
    return -(-width // SEGMENT) * SEGMENT
