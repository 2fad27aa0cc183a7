"""The classes chunk by chunk: the same loss and gradients, and never a (B,C) matrix.

The forward pass keeps of each chunk only what its rows add up to; the backward pass computes a chunk's logits again.
That makes 4 matrix products of B×C×D in place of 3, and O(B·chunk) memory. Two functions do it:

- ``_Hooks`` calls the margin's hooks for every chunk, and has autograd go backward through one chunk at a time;
- ``_Softmax`` is for margins that leave the other classes as they are: most of them. Its elementwise passes are written
  out, in place, over a chunk that stays in the cache. And it seldom computes logits again: **the memory of the centres'
  gradient, (C,D), is idle until the backward pass, and keeps the exponentials of min(B, D) rows until then** (2D rows
  where the product is in bf16). So where B ≤ D there are 3 products, and no byte more than the gradient needs.

The centres' gradient has two sources, the rows' own centres and the columns. Autograd would add two (C,D) matrices up;
here ``_TakeRows``, which hands out the own centres, adds their part to the columns' matrix and delivers it.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from facelab.loss.collective import enter_shards, inside_shard
from facelab.loss.columns import NORM_FLOOR, Columns, Others, directed, part, similarities

_LOG2E = math.log2(math.e)
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
        hooks = _Call(self, context, scale, tuple(inputs))
        return Others(*_Hooks.apply(self.taken, self.weight, hooks, *inputs.values()))

    def _softmax(self, embeddings: Tensor, scale: float | Tensor) -> Others:
        threshold, limit = self.loss.options.interclass_filter, None
        if threshold is not None:
            limit = (embeddings.new_full((len(embeddings), 1), threshold * _LOG2E) * scale).detach()
        return Others(*_Softmax.apply(self.taken, self.weight, self, embeddings * (scale * _LOG2E), limit))

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

    def keep(self, start: int, exponentials: Tensor) -> None:
        """Put the first rows of a chunk's (B,c) exponentials away."""
        if self.kept:
            self._room(start, exponentials.shape[1]).copy_(exponentials[: self.kept])

    def give_back(self, start: int, exponentials: Tensor) -> None:
        """Fill the first rows again."""
        if self.kept:
            exponentials[: self.kept].copy_(self._room(start, exponentials.shape[1]))

    def _room(self, start: int, columns: int) -> Tensor:
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
        columns = gradient.columns
        ctx.gradient, ctx.shape = gradient, weight.shape
        if columns.count == 0:
            return weight.new_zeros(len(columns.own), weight.shape[1])
        return weight.index_select(0, columns.own if columns.rows is None else columns.rows[columns.own])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient.deliver(grads[0], ctx.shape), None


class _Softmax(torch.autograd.Function):
    """The other classes' logsumexp. Inside, logits have the base 2: on a CPU exp2 is three times as fast as exp.

    (B,D) row centres, (C_rank,D), chunks, (B,D) embeddings times scale times log2(e), (B,1) limit of the filter →
    (B,) logsumexp, (B,) best, (B,) own.
    """

    @staticmethod
    def forward(
        ctx: Any, taken: Tensor, weight: Tensor, chunks: Chunks, scaled: Tensor, limit: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
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
        return total / _LOG2E, best, own

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, scaled, limit, largest, total = ctx.saved_tensors
        chunks, gradient = ctx.chunks, ctx.chunks.gradient
        _, wants_weight, _, wants_scaled, _ = ctx.needs_input_grad
        tile = _Tile(chunks, weight, scaled, limit)
        grad_scaled = torch.zeros_like(scaled) if wants_scaled else None
        grad_weight = gradient.open(weight) if wants_weight else None
        # An exponential times its row's factor is the gradient of its logit.
        factors = torch.exp2(largest - total).mul_(grads[0] / _LOG2E)
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

    def __init__(self, chunks: Chunks, weight: Tensor, scaled: Tensor, limit: Tensor | None):
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

    def exponentials(self, start: int, gradient: _Gradient, largest: Tensor) -> Tensor:
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


@dataclass(frozen=True)
class _Call:
    """What ``_Hooks`` is told beside tensors.

    Attributes:
        chunks: the classes.
        context: as for the hooks.
        scale: of the rows; replaced by the input of that name where there is one.
        names: of the inputs; ``loss.<name>`` is a parameter.
    """

    chunks: Chunks
    context: Any
    scale: float | Tensor
    names: tuple[str, ...]

    def part(self, centres: Tensor, start: int, inputs: Mapping[str, Tensor]) -> Others:
        loss = self.chunks.loss
        cosines = similarities(inputs["embeddings"], directed(loss, centres), self.chunks.product)
        scale, context = inputs.get("scale", self.scale), replace(self.context, norms=inputs["norms"])
        return part(loss, cosines, self.chunks.columns, start, inputs["target"], scale, context)


class _Hooks(torch.autograd.Function):
    """The other classes by the margin's own hooks: (B,) contributions put together, (B,) best, (B,) own."""

    @staticmethod
    def forward(ctx: Any, taken: Tensor, weight: Tensor, call: _Call, *values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        chunks, inputs = call.chunks, dict(zip(call.names, values, strict=True))
        adds = chunks.loss.combine == "sum"
        embeddings = inputs["embeddings"]
        smallest = torch.finfo(embeddings.dtype).min
        total = embeddings.new_full((len(embeddings),), 0 if adds else smallest)
        best, own = torch.full_like(total, smallest), torch.full_like(total, -torch.inf)
        # In place: small tensors that stay, between large ones that go, would leave the heap full of holes.
        totals = total.new_empty(-(-chunks.columns.count // chunks.size), len(total))
        for index, (start, stop) in enumerate(chunks):
            found = call.part(chunks.centres(weight, start, stop), start, inputs)
            totals[index] = found.total
            torch.maximum(best, found.best, out=best)
            torch.maximum(own, found.own, out=own)
        if len(totals):
            total = totals.sum(dim=0) if adds else totals.logsumexp(dim=0)
        buffers = dict(chunks.loss.named_buffers())
        ctx.call, ctx.adds, ctx.buffers = call, adds, tuple(f"loss.{name}" for name in buffers)
        ctx.save_for_backward(weight, total, *values, *buffers.values())
        ctx.mark_non_differentiable(best, own)
        return total, best, own

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        call, chunks = ctx.call, ctx.call.chunks
        weight, total, *values = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:]
        leaves = [value.detach().requires_grad_(wants) for value, wants in zip(values, wanted, strict=False)]
        inputs = dict(zip(call.names, leaves, strict=True))
        # The hooks read the loss: it gets the leaves as its parameters, and the buffers of the forward pass.
        state = {**inputs, **dict(zip(ctx.buffers, values[len(leaves) :], strict=True))}
        state = {name.removeprefix("loss."): value for name, value in state.items() if name.startswith("loss.")}
        sums = [torch.zeros_like(leaf) if leaf.requires_grad else None for leaf in leaves]
        grad_weight = chunks.gradient.open(weight) if ctx.needs_input_grad[1] else None
        sources = [leaf for leaf in leaves if leaf.requires_grad]
        with torch.enable_grad(), inside_shard(), _holding(chunks.loss, state):
            for start, stop in chunks:
                centres = chunks.centres(weight, start, stop).detach().requires_grad_(grad_weight is not None)
                found = call.part(centres, start, inputs).total
                outer = grads[0] if ctx.adds else grads[0] * torch.exp(found.detach() - total)
                wrt = [*sources, centres] if grad_weight is not None else sources
                found_grads = iter(torch.autograd.grad(found, wrt, outer, allow_unused=True))
                for sum_ in sums:
                    if sum_ is not None and (grad := next(found_grads)) is not None:
                        sum_ += grad
                if grad_weight is not None:
                    grad_weight[start:stop] = next(found_grads)
        return None, None, None, *sums


@contextmanager
def _holding(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it the module's parameters and buffers of these dotted names are these tensors."""
    held = []
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        table: dict[str, Any] = owner._parameters if leaf in owner._parameters else owner._buffers
        held.append((table, leaf, table[leaf]))
        table[leaf] = tensor
    try:
        yield
    finally:
        for table, leaf, tensor in held:
            table[leaf] = tensor
