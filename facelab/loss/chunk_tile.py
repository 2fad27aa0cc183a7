"""One chunk of classes at a time in memory that is used again, and the passes over it in torch: the reference."""

from typing import Any

import torch
from torch import Tensor

from facelab.loss.columns import NORM_FLOOR


class Tile:
    """Scratch for one chunk of c columns, used again for the next: nothing of the size of a chunk is allocated twice.

    Two number formats meet: that of the products (``product``, perhaps bf16) and the wide one of all the rest.

    Args:
        chunks: the classes.
        weight: (C_rank,D) centres.
        scaled: (B,D) embeddings times scale times log2(e).
        limit: (B,1) above which logits are left out, in the same units; ``None`` for no limit.
    """

    def __init__(self, chunks: Any, weight: Tensor, scaled: Tensor, limit: Tensor | None):
        self.chunks, self.columns, self.weight, self.limit = chunks, chunks.columns, weight, limit
        self.scaled, self.low = scaled, scaled.to(chunks.product)
        self.mixed = self.low.dtype != scaled.dtype
        self.normalised = chunks.loss.normalised
        columns, (batch, size) = min(chunks.size, chunks.columns.count), scaled.shape
        self._matrix = self.low.new_empty(batch * columns)
        self._low_rows = torch.empty_like(self.low)
        self._reserve(columns, batch, size)

    def _reserve(self, columns: int, batch: int, size: int) -> None:
        """Take the memory that only these passes need."""
        self._units = self.scaled.new_empty(columns * size)
        self._scratch = self.scaled.new_empty(columns * size)
        self._wide = self.scaled.new_empty(batch * columns) if self.mixed else self._matrix
        self._low_units = self.low.new_empty(columns * size) if self.mixed else self._units
        self._low_scratch = self.low.new_empty(columns * size) if self.mixed else self._scratch
        self._grad = self.scaled.new_empty(columns * size if self.weight.dtype != self.scaled.dtype else 0)
        self._rows = torch.empty_like(self.scaled)

    def load(self, start: int, stop: int) -> None:
        """Fetch the centres of a chunk, and give them their direction."""
        self.start, self.shape = start, (stop - start, self.scaled.shape[1])
        self.low_units = self._view(self._low_units)
        self.direct(self.chunks.centres(self.weight, start, stop))

    def direct(self, rows: Tensor) -> None:
        """(c,D) centres → ``low_units``."""
        self.units = self._view(self._units)
        if self.normalised:
            norms = torch.linalg.vector_norm(rows, dim=1, dtype=self.units.dtype)
            self.inverse = norms.masked_fill_(norms < NORM_FLOOR, torch.inf).reciprocal_()[:, None]
            torch.mul(rows, self.inverse, out=self.units)
        else:
            self.units.copy_(rows)
        if self.mixed:
            self.low_units.copy_(self.units)

    def _view(self, flat: Tensor) -> Tensor:
        return flat[: self.shape[0] * self.shape[1]].view(self.shape)

    def _square(self, flat: Tensor, first: int) -> Tensor:
        return flat[: len(self.low) * self.shape[0]].view(len(self.low), self.shape[0])[first:]

    def product(self, first: int) -> Tensor:
        """(B−first,c) logits in the products' format, of the embeddings from ``first`` on."""
        return torch.mm(self.low[first:], self.low_units.T, out=self._square(self._matrix, first))

    def scan(self, gradient: Any, largest: Tensor, sums: Tensor, best: Tensor, own: Tensor) -> None:
        """Go through a chunk's logits.

        Args:
            gradient: keeps the exponentials of its first rows.
            largest: (B,) is written: the largest logit, own class and those above the limit left out.
            sums: (B,) is written: the sum of 2^(logit − largest) over the same.
            best: (B,) is raised to the largest logit, the own class left out.
            own: (B,) where the own class is in this chunk, its logit is written.
        """
        logits = self._widen(self.product(0), 0)
        torch.maximum(own, self._hide_own(logits, 0), out=own)
        if self.limit is not None:
            torch.maximum(best, logits.amax(dim=1), out=best)
            self._filter(logits, 0)
        torch.amax(logits, dim=1, out=largest)
        if self.limit is None:
            torch.maximum(best, largest, out=best)
        torch.sum(logits.sub_(largest[:, None]).exp2_(), dim=1, out=sums)
        if gradient.kept:
            gradient.room(self.start, self.shape[0]).copy_(logits[: gradient.kept])

    def exponentials(self, gradient: Any, largest: Tensor) -> Tensor:
        """(B,c) in the products' format: those that were kept, and the others once more."""
        matrix, first = self._square(self._matrix, 0), gradient.kept
        if first < len(matrix):
            self.raise_two(self.product(first), first, largest)
        if first:
            matrix[:first].copy_(gradient.room(self.start, self.shape[0]))
        return matrix

    def raise_two(self, product: Tensor, first: int, largest: Tensor) -> None:
        """(B−first,c) logits become 2^(logit − largest), in place; of what is hidden as in ``scan``."""
        logits = self._widen(product, first)
        self._hide_own(logits, first)
        self._filter(logits, first)
        logits.sub_(largest[first:, None]).exp2_()
        if self.mixed:
            product.copy_(logits)

    def _widen(self, product: Tensor, first: int) -> Tensor:
        return self._square(self._wide, first).copy_(product) if self.mixed else product

    def _hide_own(self, logits: Tensor, first: int) -> Tensor:
        """Make the own classes the smallest of numbers; → (B−first,) what they were, −∞ where they are not here."""
        column, inside = self.columns.within(self.start, self.start + logits.shape[1], first)
        own = logits.gather(1, column)
        logits.scatter_(1, column, torch.where(inside, torch.finfo(logits.dtype).min, own))
        return torch.where(inside, own, -torch.inf)[:, 0]

    def _filter(self, logits: Tensor, first: int) -> None:
        """Make logits above the limit the smallest of numbers."""
        if self.limit is not None:
            logits.masked_fill_(logits > self.limit[first:], torch.finfo(logits.dtype).min)

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
        if self.normalised:
            # Of w/‖w‖: the part along w goes, the rest is divided by ‖w‖.
            along = torch.mul(grad, self.units, out=self._view(self._scratch)).sum(dim=1, keepdim=True)
            grad.mul_(self.inverse).addcmul_(self.units, along.mul_(self.inverse), value=-1)
        if grad is not out:
            out.copy_(grad)
