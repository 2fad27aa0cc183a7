"""The few collectives of a class-sharded loss, with their gradients; with one process each of them does nothing.

One convention makes the gradients right: *a tensor that all ranks hold alike also has the same, complete gradient on
all ranks*. Everything between two such tensors is ordinary code, be it a margin, a regulariser or a parameter of the
loss. Only two borders matter, those of the computation that every rank does for its own classes:

    alike on all ranks ──enter_shards──▶ this rank's (B,C_rank) ──sum_over_shards──▶ alike on all ranks

(the pair of operators of Megatron-LM, arXiv:1909.08053, section 3). So a tensor with a gradient that is alike on all
ranks and is used on the (B,C_rank) columns has to pass through ``enter_shards``: a scale per row, a learnable bias.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_inside = 0  # how many `inside_shard` are open


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) where nothing is distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@torch.no_grad()
def row_counts(local: Tensor, even: bool = False) -> list[int]:
    """The number of rows that each rank holds; every rank learns all of them, so none waits for rows that never come.

    On a GPU this has a stream of its own: the host waits for eight bytes per rank, not for the network before them.

    Args:
        local: (b,…) this rank's rows.
        even: the ranks are known to hold as many: then nobody is asked.
    """
    _, world = rank_and_world()
    if world == 1 or even:
        return [len(local)] * world
    stream: AbstractContextManager = nullcontext()
    if local.is_cuda:
        stream = torch.cuda.stream(torch.cuda.Stream(local.device))
    with stream:
        mine = torch.tensor([len(local)], device=local.device)
        counts = mine.new_empty(world)
        dist.all_gather_into_tensor(counts, mine)
        return counts.tolist()


def gather_rows(local: Tensor, counts: list[int] | None = None) -> Tensor:
    """(b,…) of this rank → (Σb,…) of all ranks, in the order of ranks; b may differ between ranks, and be 0.

    The gradient is this rank's part of the complete one, times W, because DDP will average it over W ranks.

    Args:
        local: (b,…) this rank's rows.
        counts: what ``row_counts`` gives; asked for where it is not known yet.
    """
    if rank_and_world()[1] == 1:
        return local
    return _GatherRows.apply(local, row_counts(local) if counts is None else counts)


def enter_shards(replicated: Tensor) -> Tensor:
    """The same values, about to be used by every rank for its own classes; the ranks' gradients are summed."""
    return replicated if rank_and_world()[1] == 1 or _inside else _EnterShards.apply(replicated)


@contextmanager
def inside_shard() -> Iterator[None]:
    """Within it ``enter_shards`` does nothing: who opens it sums the ranks' gradients, once and not for every chunk."""
    global _inside
    _inside += 1
    try:
        yield
    finally:
        _inside -= 1


def sum_over_shards(partial: Tensor) -> Tensor:
    """The sum over ranks; its gradient, alike on all ranks, is the gradient of every summand."""
    return partial if rank_and_world()[1] == 1 else _SumOverShards.apply(partial)


@torch.no_grad()
def max_over_shards(partial: Tensor) -> Tensor:
    """The largest value over ranks, without a gradient."""
    partial = partial.detach()
    if rank_and_world()[1] > 1:
        partial = partial.clone()
        dist.all_reduce(partial, op=dist.ReduceOp.MAX)
    return partial


def logsumexp_over_shards(partial: Tensor) -> Tensor:
    """The log of the sum over ranks of exp(partial), without overflow."""
    if rank_and_world()[1] == 1:
        return partial
    largest = max_over_shards(partial)
    return largest + sum_over_shards(torch.exp(partial - largest)).log()


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        longest = max(counts)
        even = min(counts) == longest
        padded = local.contiguous()
        if not even:  # a collective takes equal parts alone
            padded = local.new_zeros(longest, *local.shape[1:])
            padded[: len(local)] = local
        gathered = local.new_empty(len(counts) * longest, *local.shape[1:])
        dist.all_gather_into_tensor(gathered, padded)
        if even:
            return gathered
        parts = zip(gathered.split(longest), counts, strict=True)
        return torch.cat([part[:count] for part, count in parts])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        rank, world = rank_and_world()
        return grads[0].split(ctx.counts)[rank] * world, None


class _EnterShards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, replicated: Tensor) -> Tensor:
        return replicated.view_as(replicated)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class _SumOverShards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor) -> Tensor:
        total = partial.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]
