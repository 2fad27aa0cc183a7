"""Chunks of classes by a margin's own hooks: called for each, and again when autograd goes backward through it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from facelab.loss.collective import inside_shard
from facelab.loss.columns import Others, directed, part, similarities


@dataclass(frozen=True)
class Call:
    """What ``Hooks`` is told beside tensors.

    Attributes:
        chunks: the classes.
        context: as for the hooks.
        scale: of the rows; replaced by the input of that name where there is one.
        names: of the inputs; ``loss.<name>`` is a parameter.
    """

    chunks: Any
    context: Any
    scale: float | Tensor
    names: tuple[str, ...]

    def part(self, centres: Tensor, start: int, inputs: Mapping[str, Tensor]) -> Others:
        """The margin's hooks over a chunk's (c,D) centres."""
        loss = self.chunks.loss
        cosines = similarities(inputs["embeddings"], directed(loss, centres), self.chunks.product)
        scale, context = inputs.get("scale", self.scale), replace(self.context, norms=inputs["norms"])
        return part(loss, cosines, self.chunks.columns, start, inputs["target"], scale, context)


class Hooks(torch.autograd.Function):
    """The other classes by the margin's own hooks: (B,) contributions put together, (B,) best, (B,) own."""

    @staticmethod
    def forward(ctx: Any, taken: Tensor, weight: Tensor, call: Call, *values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
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
        """Chunk by chunk: the hooks once more, and autograd through them."""
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
