"""The few collectives of a class-sharded loss, with their gradients; with one process each of them does nothing.

One convention makes the gradients right: *a tensor that all ranks hold alike also has the same, complete gradient on
all ranks*. Everything between two such tensors is ordinary code, be it a margin, a regulariser or a parameter of the
loss. Only two borders matter, those of the computation that every rank does for its own classes:

    alike on all ranks ──enter_shards──▶ this rank's (B,C_rank) ──sum_over_shards──▶ alike on all ranks

(the pair of operators of Megatron-LM, arXiv:1909.08053, section 3). So a tensor with a gradient that is alike on all
ranks and is used on the (B,C_rank) columns has to pass through ``enter_shards``: a scale per row, a learnable bias.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) where nothing is distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_rows(local: Tensor) -> Tensor:
    """(b,…) of this rank → (W·b,…) of all ranks, in the order of ranks; b must be the same on every rank.

    The gradient is this rank's part of the complete one, times W, because DDP will average it over W ranks.
    """
    return local if rank_and_world()[1] == 1 else _GatherRows.apply(local)


def enter_shards(replicated: Tensor) -> Tensor:
    """The same values, about to be used by every rank for its own classes; the ranks' gradients are summed."""
    return replicated if rank_and_world()[1] == 1 else _EnterShards.apply(replicated)


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
    def forward(ctx: Any, local: Tensor) -> Tensor:
        world = dist.get_world_size()
        gathered = local.new_empty(world * local.shape[0], *local.shape[1:])
        dist.all_gather_into_tensor(gathered, local.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        rank, world = rank_and_world()
        return grads[0].chunk(world)[rank] * world


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
