"""Processes that meet over gloo, for tests of what ranks do together."""

import pickle
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Job = Callable[[int, int, Path], None]
_started: list[tuple[mp.Process, Connection]] = []  # rank by rank; they serve all tests of a session


def on_ranks(worlds: tuple[int, ...], job: Job, folder: Path) -> None:
    """Calls job(rank, world, folder) on every rank of each world size, one world after another.

    The processes are started once a session, since importing torch is what takes the time: a job must leave them as it
    found them. It is a function of a module, which the processes import by its name.

    Raises:
        RuntimeError: a rank failed; with its traceback. The others, who may wait for it, are stopped.
    """
    while len(_started) < max(worlds):
        _started.append(_start(len(_started)))
    ranks = _started[: max(worlds)]
    for _, connection in ranks:
        connection.send(sys.path)  # before the job, which lies in a module of a test folder
        connection.send_bytes(pickle.dumps((worlds, job, Path(folder))))
    waiting = {connection: rank for rank, (_, connection) in enumerate(ranks)}
    while waiting:
        for connection in wait(list(waiting)):
            try:
                failure = connection.recv()
            except EOFError:
                failure = "it died"
            if failure:
                _stop()
                raise RuntimeError(f"rank {waiting[connection]}: {failure}")
            del waiting[connection]


def _start(rank: int) -> tuple[mp.Process, Connection]:
    context = mp.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(rank, there), daemon=True)
    process.start()
    there.close()
    return process, here


def _stop() -> None:
    for process, connection in _started:
        process.kill()
        process.join()
        connection.close()
    _started.clear()


def _serve(rank: int, connection: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            sys.path[:] = connection.recv()
        except EOFError:  # the session is over
            return
        try:
            worlds, job, folder = pickle.loads(connection.recv_bytes())
            for world in worlds:
                if rank < world:
                    _meet(rank, world, job, folder)
            connection.send(None)
        except BaseException:
            connection.send(traceback.format_exc())


def _meet(rank: int, world: int, job: Job, folder: Path) -> None:
    meeting = f"file://{folder}/rendezvous{world}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    try:
        job(rank, world, folder)
        dist.barrier()
    finally:
        dist.destroy_process_group()
