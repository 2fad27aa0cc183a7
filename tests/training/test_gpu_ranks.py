"""`make test-gpu`: processes on GPUs train as one does; over NCCL with a GPU each, over gloo where two share one."""

import os
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_fit_on_ranks import tensors
from test_many_processes import STATES, history, images, noting, run

pytestmark = pytest.mark.gpu
GPU = (*STATES, "trainer.accelerator=gpu")
EQUAL = 1e-6  # in float64, with sums in the order in which threads arrive


def one_of(rank, world, sharing, folder, port):
    """A process of a machine with a GPU each; or, where they share one, of as many machines: NCCL refuses that."""
    local, node = (0, rank) if sharing else (rank, 0)
    launched = {"RANK": rank, "LOCAL_RANK": local, "GROUP_RANK": node, "WORLD_SIZE": world, "MASTER_PORT": port}
    launched |= {"LOCAL_WORLD_SIZE": 1 if sharing else world, "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({key: str(value) for key, value in launched.items()})
    if sharing:
        meeting = f"file://{folder}/rendezvous"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    with noting(folder / "ranks"):
        devices, nodes = (1, world) if sharing else (world, 1)
        run(folder / "ranks", devices, *GPU, f"trainer.num_nodes={nodes}")
    assert dist.get_backend() == ("gloo" if sharing else "nccl")


def assert_equal_to_one(folder, world, sharing):
    with noting(folder / "1"):
        run(folder / "1", 1, *GPU)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(one_of, args=(world, sharing, folder, port), nprocs=world)
    assert images(folder / "ranks") == images(folder / "1")
    for wanted, row in zip(history(folder / "1"), history(folder / "ranks"), strict=True):
        for key in ("train/loss", "train/grad_norm", "val/auc"):
            if wanted[key]:
                assert float(row[key]) == pytest.approx(float(wanted[key]), rel=EQUAL), (row["step"], key)
    wanted, found = tensors(folder / "1"), tensors(folder / "ranks")
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, rtol=0, atol=EQUAL * abs(value).max() + 1e-9, err_msg=key)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices, one for each process of NCCL")
def test_a_gpu_each_over_nccl(tmp_path):
    assert_equal_to_one(tmp_path, min(torch.cuda.device_count(), 4) // 2 * 2, sharing=False)


@pytest.mark.skipif(torch.cuda.device_count() < 1, reason="needs a CUDA device, which two processes share")
def test_two_share_one_gpu_over_gloo(tmp_path):
    assert_equal_to_one(tmp_path, 2, sharing=True)
