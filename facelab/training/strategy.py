"""How many processes train, and what they agree upon.

The contract between data parallelism and class shards, stated once:

* Replicated parameters (backbone, head, a loss's own few) have the same value on every rank. DistributedDataParallel
  averages their gradients over the W ranks; the loss's gather of embeddings multiplies by W in its backward pass, so
  that the average is the gradient of the global batch's mean loss.
* Sharded parameters (class centres) are different rows on every rank. DistributedDataParallel must neither broadcast
  nor average them; their gradients are complete as they are.
* The norm by which gradients are clipped counts the replicated ones once and the shards of all ranks.
"""

import ctypes
import os
import resource
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from facelab.loss.collective import rank_and_world


def launched_rank() -> int:
    """The rank by the launcher's environment, known before the processes have found each other."""
    # A script of Slurm has a SLURM_PROCID too, which the processes inherit that Lightning starts in it.
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name])
    return 0


def keep_memory() -> None:
    """Lets glibc keep what a training step frees, for the next step to use again.

    Its default gives large blocks back to the system at once, which fills every page of them with zeros anew: a tenth
    of a step's time and more on a CPU. Without glibc nothing happens.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # their numbers in malloc.h
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 2**26)


def peak_memory(on_gpu: bool) -> int:
    """Bytes that a run has held at most: on a GPU what torch had given out on it, on a CPU all of the process."""
    if on_gpu:
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def strategy(world: int, company: Any) -> Any:
    """Lightning's strategy for `world` processes: plain for one, DistributedDataParallel for more.

    Args:
        world: the number of processes.
        company: who looks after them (facelab.training.company).
    """
    if world == 1:
        return "auto"
    from facelab.training.company import Watched

    return Watched(company, gradient_as_bucket_view=True, broadcast_buffers=False)


def exclude_from_ddp(module: nn.Module, names: Iterable[str]) -> None:
    """Marks the dotted names of sharded parameters and buffers, so that DistributedDataParallel leaves them alone."""
    module._ddp_params_and_buffers_to_ignore = list(names)  # type: ignore[assignment]


def no_sync(strategy: Any) -> AbstractContextManager:
    """A context in which backward passes add up gradients locally; for all but the last part of a batch."""
    block = getattr(strategy, "block_backward_sync", None)
    return nullcontext() if block is None else block()


@torch.no_grad()
def clip_gradients(replicated: list[nn.Parameter], sharded: list[nn.Parameter], limit: float | None) -> Tensor:
    """Scales all gradients so that their global L2 norm is at most `limit`; gives the norm before.

    Args:
        replicated: parameters that every rank holds alike; they count once.
        sharded: parameters of which every rank holds its own rows; they count on every rank.
        limit: largest norm, or None to measure only.
    """
    device = next((p.device for p in (*replicated, *sharded)), torch.device("cpu"))
    squares = torch.zeros(2, device=device, dtype=torch.float64)
    gradients: list[Tensor] = []
    for slot, parameters in enumerate((replicated, sharded)):
        grads = [_numbers(p) for p in parameters if p.grad is not None]
        if grads:
            norms = torch.stack(torch._foreach_norm(grads))
            squares[slot] = norms.double().square().sum()
        gradients += grads
    if rank_and_world()[1] > 1:
        shards = squares[1:].clone()
        dist.all_reduce(shards)
        squares[1:] = shards
    norm = squares.sum().sqrt()
    if limit is not None and gradients:
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))
    return norm


def _numbers(parameter: nn.Parameter) -> Tensor:
    """The gradient's memory, without the zeros of a sparse one."""
    assert parameter.grad is not None
    if parameter.grad.is_sparse:
        parameter.grad = parameter.grad.coalesce()  # the parts of a batch have rows in common
        return parameter.grad.values()
    return parameter.grad


@torch.no_grad()
def share_buffers(*modules: nn.Module) -> None:
    """Gives every rank the buffers of rank 0, such as the running statistics of batch norms.

    Each rank gathers its own in training, which never reads them; a checkpoint holds those of rank 0.
    """
    if rank_and_world()[1] > 1:
        for module in modules:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)


def deal_in(rows: Tensor, total: int) -> Tensor:
    """Puts together what the ranks hold of a list dealt out like cards: rank r has rows r, r+W, r+2W, … of `total`.

    Args:
        rows: (n_r, …) this rank's rows, in order.
        total: number of rows of all ranks.

    Returns:
        (total, …) all rows in their order, on every rank.
    """
    _, world = rank_and_world()
    if world == 1:
        return rows
    longest = -(-total // world)
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.stack(parts, 1).flatten(0, 1)[:total]
