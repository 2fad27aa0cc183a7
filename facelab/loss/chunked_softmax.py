"""Chunks of classes under a logsumexp, for margins that leave the other classes as they are: most of them.

The elementwise passes are written out, in place, over a chunk that stays in the cache, and seldom are logits computed
again: **the memory of the centres' gradient, (C,D), is idle until the backward pass, and keeps the exponentials of
min(B, D) rows until then** (2D rows where the product is in bf16). So where B ≤ D there are 3 matrix products, and no
byte more than the gradient needs.

What happens within a chunk is a tile's affair: torch's passes (``chunk_tile``), or kernels on a GPU
(``chunk_kernels``).
"""

import math
from typing import Any

import torch
from torch import Tensor

from facelab.loss.chunk_tile import Tile

LOG2E = math.log2(math.e)


class Softmax(torch.autograd.Function):
    """The other classes' logsumexp. Inside, logits have the base 2: on a CPU exp2 is three times as fast as exp.

    (B,D) row centres, (C_rank,D), chunks, (B,D) embeddings times scale times log2(e), (B,1) limit of the filter →
    (B,) logsumexp, (B,) best, (B,) own.
    """

    @staticmethod
    def forward(
        ctx: Any, taken: Tensor, weight: Tensor, chunks: Any, scaled: Tensor, limit: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        batch, smallest = len(scaled), torch.finfo(scaled.dtype).min
        chunks.gradient.reserve(weight, batch, chunks.product)
        tile = _tile(chunks, weight, scaled, limit)
        best, own = scaled.new_full((batch,), smallest), scaled.new_full((batch,), -torch.inf)
        number = -(-chunks.columns.count // chunks.size)
        largest, sums = scaled.new_empty(number, batch), scaled.new_empty(number, batch)
        for index, (start, stop) in enumerate(chunks):
            tile.load(start, stop)
            tile.scan(chunks.gradient, largest[index], sums[index], best, own)
        total = scaled.new_full((batch,), smallest)
        if number:
            peak = largest.amax(dim=0)
            total = peak + (sums * torch.exp2(largest - peak)).sum(dim=0).log2()
        ctx.chunks = chunks
        ctx.save_for_backward(weight, scaled, limit, largest, total)
        ctx.mark_non_differentiable(best, own)
        return total / LOG2E, best, own

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The centres' gradient is written into its memory, the embeddings' returned."""
        weight, scaled, limit, largest, total = ctx.saved_tensors
        chunks, gradient = ctx.chunks, ctx.chunks.gradient
        _, wants_weight, _, wants_scaled, _ = ctx.needs_input_grad
        tile = _tile(chunks, weight, scaled, limit)
        grad_scaled = torch.zeros_like(scaled) if wants_scaled else None
        grad_weight = gradient.open(weight) if wants_weight else None
        # An exponential times its row's factor is the gradient of its logit.
        factors = torch.exp2(largest - total).mul_(grads[0] / LOG2E)
        for index, (start, stop) in enumerate(chunks):
            tile.load(start, stop)
            exponentials = tile.exponentials(gradient, largest[index])
            factor = factors[index, :, None]
            if grad_scaled is not None:
                grad_scaled.addcmul_(tile.times_centres(exponentials), factor)
            if grad_weight is not None:
                tile.times_embeddings(exponentials, factor, grad_weight[start:stop])
        if grad_weight is not None:
            gradient.close()
        return None, None, None, grad_scaled, None  # _TakeRows delivers the centres'


def _tile(chunks: Any, weight: Tensor, scaled: Tensor, limit: Tensor | None) -> Tile:
    if fused(scaled, chunks.product):
        from facelab.loss.chunk_kernels import FusedTile

        return FusedTile(chunks, weight, scaled, limit)
    return Tile(chunks, weight, scaled, limit)


def fused(scaled: Tensor, product: torch.dtype) -> bool:
    """Whether the passes over a chunk are kernels: on a GPU, where Triton is, in what formats it is for."""
    if not scaled.is_cuda or scaled.dtype != torch.float32:
        return False
    if product not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    try:  # only here: Triton comes with torch for Linux and CUDA, and elsewhere nobody needs it
        from facelab.loss.chunk_kernels import runs_on
    except ImportError:
        return False
    return runs_on(scaled.device)
