"""The classes chunk by chunk: the same loss and gradients, and never a (B,C) matrix.

The forward pass keeps of each chunk only what its rows add up to; the backward pass computes a chunk's logits again.
That makes 4 matrix products of B×C×D in place of 3, and O(B·chunk) memory. Two functions do it: one calls the margin's
hooks (``chunked_hooks``), one is written out for margins that leave the other classes alone (``chunked_softmax``).

The centres' gradient has two sources, the rows' own centres and the columns. Autograd would add two (C,D) matrices up;
here ``_TakeRows``, which hands out the own centres, adds their part to the columns' matrix and delivers it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from facelab.loss.chunked_hooks import Call, Hooks
from facelab.loss.chunked_softmax import LOG2E, Softmax
from facelab.loss.collective import enter_shards
from facelab.loss.columns import Columns, Others, directed

_CENTRES = "classifier.weight"


class Chunks:
    """The classes chunk by chunk, for one step; has the methods of ``Whole``.

    Args:
        loss: the margin.
        columns: those that take part.
        product: the number format of the products.
        size: columns in a chunk.
    """

    def __init__(self, loss: Any, columns: Columns, product: torch.dtype, size: int):
        self.loss, self.columns, self.product, self.size = loss, columns, product, size
        self.weight: Tensor = loss.classifier.weight
        self.gradient = _Gradient(columns, torch.is_grad_enabled() and self.weight.requires_grad)

    def own_centres(self) -> Tensor:
        """(B,D) the centre of each row's own class, normalised if the loss is; any row where it is not here."""
        self.taken = _TakeRows.apply(self.weight, self.gradient)
        return directed(self.loss, self.taken)

    def others(self, embeddings: Tensor, target: Tensor, scale: float | Tensor, context: Any) -> Others:
        """See Whole; ``own_centres`` is called before."""
        if self.loss.others_are_plain:
            return self._softmax(embeddings, enter_shards(scale)[:, None] if isinstance(scale, Tensor) else scale)
        own = [(name, p) for name, p in self.loss.named_parameters() if name != _CENTRES]
        sharded = self.loss.sharded_parameters()
        inputs = {"embeddings": embeddings, "target": enter_shards(target), "norms": enter_shards(context.norms)}
        if isinstance(scale, Tensor):
            inputs["scale"] = enter_shards(scale)
        inputs |= {f"loss.{name}": p if name in sharded else enter_shards(p) for name, p in own}
        hooks = Call(self, context, scale, tuple(inputs))
        return Others(*Hooks.apply(self.taken, self.weight, hooks, *inputs.values()))

    def _softmax(self, embeddings: Tensor, scale: float | Tensor) -> Others:
        threshold, limit = self.loss.options.interclass_filter, None
        if threshold is not None:
            limit = (embeddings.new_full((len(embeddings), 1), threshold * LOG2E) * scale).detach()
        return Others(*Softmax.apply(self.taken, self.weight, self, embeddings * (scale * LOG2E), limit))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The first column of each chunk, and one past its last."""
        for start in range(0, self.columns.count, self.size):
            yield start, min(start + self.size, self.columns.count)

    def centres(self, weight: Tensor, start: int, stop: int) -> Tensor:
        """(c,D) the rows of a chunk."""
        rows = self.columns.rows
        return weight[start:stop] if rows is None else weight.index_select(0, rows[start:stop])


class _Gradient:
    """The centres' gradient while a backward pass puts it together, and what its memory is used for until then.

    Args:
        columns: the n classes that it is of.
        wanted: whether there will be a backward pass.
    """

    def __init__(self, columns: Columns, wanted: bool):
        self.columns, self.wanted = columns, wanted
        self.rows: Tensor | None = None  # (n,D)
        self.kept = 0  # of how many embeddings the memory still keeps exponentials
        self.format = torch.float32  # of these

    def reserve(self, weight: Tensor, batch: int, product: torch.dtype) -> None:
        """Take the memory before its time."""
        if self.wanted:
            self.rows = weight.new_empty(self.columns.count, weight.shape[1])
            self.kept = min(batch, weight.shape[1] * weight.element_size() // product.itemsize)
            self.format = product

    def room(self, start: int, columns: int) -> Tensor:
        """(kept,c) where the exponentials of the first rows and of a chunk are, or are to be put."""
        assert self.rows is not None
        room = self.rows[start : start + columns].view(-1).view(self.format)
        return room[: self.kept * columns].view(self.kept, columns)

    def open(self, weight: Tensor) -> Tensor:
        """(n,D) to be written, chunk after chunk: what was kept in a chunk's rows is lost with it."""
        if self.rows is None:
            self.rows = weight.new_empty(self.columns.count, weight.shape[1])
        return self.rows

    def close(self) -> None:
        """Now it is a gradient."""
        self.kept = 0

    def deliver(self, own: Tensor, shape: torch.Size) -> Tensor:
        """Add the (B,D) gradient of the own centres, and let go: dense, or the sampled rows as a sparse tensor."""
        rows, self.rows = self.rows, None
        if rows is None or self.kept:  # no gradient came to the columns
            rows, self.kept = own.new_zeros(self.columns.count, shape[1]), 0
        if len(rows):
            rows.index_add_(0, self.columns.own, own.to(rows.dtype))
        if self.columns.rows is None:
            return rows
        return torch.sparse_coo_tensor(self.columns.rows[None], rows, shape, is_coalesced=True, check_invariants=False)


class _TakeRows(torch.autograd.Function):
    """The own centres (B,D). They go into the columns' function too, so this backward pass comes after that one."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gradient: _Gradient) -> Tensor:
        """See the class."""
        columns = gradient.columns
        ctx.gradient, ctx.shape = gradient, weight.shape
        if columns.count == 0:
            return weight.new_zeros(len(columns.own), weight.shape[1])
        return weight.index_select(0, columns.own if columns.rows is None else columns.rows[columns.own])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The own centres' part goes to that of the columns, and with it to the weight."""
        return ctx.gradient.deliver(grads[0], ctx.shape), None
