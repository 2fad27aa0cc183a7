"""Where a vector points, whatever its length and its number format."""

import torch
from torch import Tensor

_FLOOR = 1e-12  # below it a length says nothing about a direction


def precise(values: Tensor) -> Tensor:
    """Half precision → float32; float32 and float64 stay."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def unit(vectors: Tensor) -> Tensor:
    """(…,D) → (…,D) of length 1; what has no length stays 0, without a gradient."""
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / lengths.masked_fill(lengths < _FLOOR, torch.inf)


def one_minus_cosine(a: Tensor, b: Tensor) -> Tensor:
    """(…,D), (…,D) → (…) 1 − cos, as ½·‖â − b̂‖²: exactly 0 between equals, where 1 − cos would be left with rounding.

    A vector of length 0 has no cosine: ½ to any other, 0 to another of length 0, without a gradient.
    """
    return (unit(a) - unit(b)).square().sum(dim=-1) / 2
