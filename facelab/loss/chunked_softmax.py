"""Chunks of classes under a logsumexp, for margins that leave the other classes as they are: most of them.

The elementwise passes are written out, in place, over a chunk that stays in the cache, and seldom are logits computed
again: **the memory of the centres' gradient, (C,D), is idle until the backward pass, and keeps the exponentials of
min(B, D) rows until then** (2D rows where the product is in bf16). So where B ≤ D there are 3 matrix products, and no
byte more than the gradient needs.
"""

import math
from typing import Any

import torch
from torch import Tensor

from facelab.loss.columns import NORM_FLOOR

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
        tile = _Tile(chunks, weight, scaled, limit)
        best, own = scaled.new_full((batch,), smallest), scaled.new_full((batch,), -torch.inf)
        number = -(-chunks.columns.count // chunks.size)
        largest, sums = scaled.new_empty(number, batch), scaled.new_empty(number, batch)
        for index, (start, stop) in enumerate(chunks):
            tile.load(start, stop)
            logits = tile.logits(0)
            torch.maximum(own, tile.hide_own(logits, 0), out=own)
            if limit is not None:
                torch.maximum(best, logits.amax(dim=1), out=best)
                tile.filter(logits, 0)
            torch.amax(logits, dim=1, out=largest[index])
            exponentials = logits.sub_(largest[index, :, None]).exp2_()
            torch.sum(exponentials, dim=1, out=sums[index])
            chunks.gradient.keep(start, exponentials)
        total = scaled.new_full((batch,), smallest)
        if number:
            peak = largest.amax(dim=0)
            total = peak + (sums * torch.exp2(largest - peak)).sum(dim=0).log2()
            best = peak if limit is None else best
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
        tile = _Tile(chunks, weight, scaled, limit)
        grad_scaled = torch.zeros_like(scaled) if wants_scaled else None
        grad_weight = gradient.open(weight) if wants_weight else None
        # An exponential times its row's factor is the gradient of its logit.
        factors = torch.exp2(largest - total).mul_(grads[0] / LOG2E)
        for index, (start, stop) in enumerate(chunks):
            tile.load(start, stop)
            exponentials = tile.exponentials(start, gradient, largest[index])
            factor = factors[index, :, None]
            if grad_scaled is not None:
                grad_scaled.addcmul_(tile.times_centres(exponentials), factor)
            if grad_weight is not None:
                tile.times_embeddings(exponentials, factor, grad_weight[start:stop])
        if grad_weight is not None:
            gradient.close()
        return None, None, None, grad_scaled, None  # _TakeRows delivers the centres'


class _Tile:
    """Scratch for one chunk of c columns, used again for the next: nothing of the size of a chunk is allocated twice.

    Two number formats meet: that of the products (``product``, perhaps bf16) and the wide one of all the rest.
    """

    def __init__(self, chunks: Any, weight: Tensor, scaled: Tensor, limit: Tensor | None):
        self.chunks, self.columns, self.weight, self.limit = chunks, chunks.columns, weight, limit
        self.scaled, self.low = scaled, scaled.to(chunks.product)
        self.mixed = self.low.dtype != scaled.dtype
        columns, (batch, size) = min(chunks.size, chunks.columns.count), scaled.shape
        self._units = scaled.new_empty(columns * size)
        self._scratch = scaled.new_empty(columns * size)
        self._matrix = self.low.new_empty(batch * columns)
        self._wide = scaled.new_empty(batch * columns) if self.mixed else self._matrix
        self._low_units = self.low.new_empty(columns * size) if self.mixed else self._units
        self._low_scratch = self.low.new_empty(columns * size) if self.mixed else self._scratch
        self._grad = scaled.new_empty(columns * size if weight.dtype != scaled.dtype else 0)
        self._rows, self._low_rows = torch.empty_like(scaled), torch.empty_like(self.low)

    def load(self, start: int, stop: int) -> None:
        """Fetch the centres of a chunk, and give them their direction."""
        self.start, self.shape = start, (stop - start, self.scaled.shape[1])
        rows = self.chunks.centres(self.weight, start, stop)
        units = self._view(self._units)
        if self.chunks.loss.normalised:
            norms = torch.linalg.vector_norm(rows, dim=1, dtype=units.dtype)
            self.inverse = norms.masked_fill_(norms < NORM_FLOOR, torch.inf).reciprocal_()[:, None]
            torch.mul(rows, self.inverse, out=units)
        else:
            units.copy_(rows)
        self.units, self.low_units = units, self._view(self._low_units)
        if self.mixed:
            self.low_units.copy_(units)

    def _view(self, flat: Tensor) -> Tensor:
        return flat[: self.shape[0] * self.shape[1]].view(self.shape)

    def _square(self, flat: Tensor, rows: int) -> Tensor:
        return flat[: rows * self.shape[0]].view(rows, self.shape[0])

    def logits(self, first: int) -> Tensor:
        """(B−first,c) wide, of the embeddings from ``first`` on; nothing is hidden yet."""
        rows = len(self.low) - first
        product = self._square(self._matrix[first * self.shape[0] :], rows)
        torch.mm(self.low[first:], self.low_units.T, out=product)
        return self._square(self._wide, rows).copy_(product) if self.mixed else product

    def hide_own(self, logits: Tensor, first: int) -> Tensor:
        """Make the own classes the smallest of numbers; → (B−first,) what they were, −∞ where they are not here."""
        column, inside = self.columns.within(self.start, self.start + logits.shape[1], first)
        own = logits.gather(1, column)
        logits.scatter_(1, column, torch.where(inside, torch.finfo(logits.dtype).min, own))
        return torch.where(inside, own, -torch.inf)[:, 0]

    def filter(self, logits: Tensor, first: int) -> None:
        """Make logits above the limit the smallest of numbers."""
        if self.limit is not None:
            logits.masked_fill_(logits > self.limit[first:], torch.finfo(logits.dtype).min)

    def exponentials(self, start: int, gradient: Any, largest: Tensor) -> Tensor:
        """(B,c) in the products' format: those that were kept, and the others once more."""
        matrix, first = self._square(self._matrix, len(self.low)), gradient.kept
        if first < len(matrix):
            logits = self.logits(first)
            self.hide_own(logits, first)
            self.filter(logits, first)
            logits.sub_(largest[first:, None]).exp2_()
            if self.mixed:
                matrix[first:].copy_(logits)
        gradient.give_back(start, matrix)
        return matrix

    def times_centres(self, exponentials: Tensor) -> Tensor:
        """(B,c) → (B,D)."""
        return torch.mm(exponentials, self.low_units, out=self._low_rows).to(self.scaled.dtype)

    def times_embeddings(self, exponentials: Tensor, factor: Tensor, out: Tensor) -> None:
        """(B,c), (B,1) → the gradient (c,D) of the centres, written into ``out``."""
        embeddings = torch.mul(self.scaled, factor, out=self._rows)
        grad = out if out.dtype == self.scaled.dtype else self._view(self._grad)
        if self.mixed:
            low = torch.mm(exponentials.T, self._low_rows.copy_(embeddings), out=self._view(self._low_scratch))
            grad.copy_(low)
        else:
            torch.mm(exponentials.T, embeddings, out=grad)
        if self.chunks.loss.normalised:
            # Of w/‖w‖: the part along w goes, the rest is divided by ‖w‖.
            along = torch.mul(grad, self.units, out=self._view(self._scratch)).sum(dim=1, keepdim=True)
            grad.mul_(self.inverse).addcmul_(self.units, along.mul_(self.inverse), value=-1)
        if grad is not out:
            out.copy_(grad)
