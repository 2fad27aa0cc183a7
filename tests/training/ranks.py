"""Starts processes that meet over gloo, for tests of what ranks do together."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(worlds: tuple[int, ...], job: Callable[[int, int, Path], None], folder: Path) -> None:
    """Calls job(rank, world, folder) on every rank of each world size, one world after another.

    The processes are started once, since importing torch is what takes the time. `job` is a module's function.
    """
    mp.spawn(_work, args=(worlds, job, folder), nprocs=max(worlds))


def _work(rank: int, worlds: tuple[int, ...], job: Callable[[int, int, Path], None], folder: Path) -> None:
    torch.set_num_threads(1)
    for world in worlds:
        if rank < world:
            meeting = f"file://{folder}/rendezvous{world}"
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
            try:
                job(rank, world, folder)
                dist.barrier()
            finally:
                dist.destroy_process_group()
