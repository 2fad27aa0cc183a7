"""Batch norms over ranks: forward, backward and running statistics of one process, in float64."""

import copy

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from timm.layers import BatchNormAct2d
from torch import nn

from facelab.backbone.freezing import _Resting
from facelab.backbone.iresnet import IResNet
from facelab.backbone.recomputing import _Recomputed
from facelab.backbone.synchronised import SYNCHRONISED, synchronise
from facelab.head.groupface import GroupFace

B, C = 12, 5
SIZES = {2: (7, 5), 3: (3, 9, 0), 4: (1, 4, 5, 2)}  # rows of each rank: uneven, one alone, none
SHAPES = {"rows": (C,), "signals": (C, 3), "images": (C, 3, 2), "act": (C, 3, 2), "plain": (C, 3, 2), "mean": (C, 3, 2)}


def build(kind):
    torch.manual_seed(1)
    norm = {
        "rows": lambda: nn.BatchNorm1d(C),
        "signals": lambda: nn.BatchNorm1d(C, eps=2e-5),
        "images": lambda: nn.BatchNorm2d(C, momentum=0.3),
        "act": lambda: BatchNormAct2d(C),
        "plain": lambda: nn.BatchNorm2d(C, affine=False),
        "mean": lambda: nn.BatchNorm2d(C, momentum=None),
    }[kind]()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm.double()


def whole(kind, step):
    """Images (B,C,…) far from zero, where a difference of squares would lose digits; and what leads back."""
    generator = torch.Generator().manual_seed(step)
    made = torch.randn(2, B, *SHAPES[kind], dtype=torch.float64, generator=generator)
    return 1e4 + made[0], made[1]


def train(kind, mine, world):
    """Two steps: outputs, gradients of images and, averaged over ranks, of parameters; then the buffers."""
    norm = build(kind)
    if world > 1:
        synchronise(norm)
    found = []
    for step in range(2):
        images, back = whole(kind, step)
        images = images[mine].clone().requires_grad_()
        # As in training: what leads back is W times a rank's own, and gradients of parameters are then averaged.
        output = norm(images)
        (output * back[mine] * world).sum().backward()
        found += [output.detach(), images.grad / world]
    for parameter in norm.parameters():
        if world > 1:
            dist.all_reduce(parameter.grad)
    alike = [parameter.grad / world for parameter in norm.parameters()] + list(norm.buffers())
    norm.eval()
    found.append(norm(whole(kind, 2)[0][mine]).detach())
    return found, alike


def recomputed(world, mine):
    """A unit in recomputation counts once; a frozen one asks nobody: rank 0 alone calls it."""
    unit = nn.Sequential(build("images"), build("images"))
    if world > 1:
        synchronise(unit)
    vars(unit)["forward"] = _Recomputed(unit)
    images = whole("images", 0)[0][mine].clone().requires_grad_()
    (unit(images).square() * world).sum().backward()
    if dist.is_initialized() and dist.get_rank() == 0:
        frozen = copy.deepcopy(unit[0])
        vars(frozen)["train"] = _Resting(frozen)
        frozen.train()
        frozen.train(True)
        frozen(images)
    return [images.grad / world, unit[1].running_var, unit[0].num_batches_tracked]


def job(rank, world, folder):
    start = sum(SIZES[world][:rank])
    mine = slice(start, start + SIZES[world][rank])
    found = {kind: train(kind, mine, world) for kind in SHAPES}
    found["recomputed"] = recomputed(world, mine)
    torch.save(found, folder / f"{world}-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    on_ranks(tuple(SIZES), job, folder)
    return folder


@pytest.mark.parametrize("world", SIZES)
def test_ranks_normalise_as_one_process_does(folder, world):
    ranks = [torch.load(folder / f"{world}-{rank}.pt") for rank in range(world)]
    everything = slice(0, B)
    for kind in SHAPES:
        wanted, alike = train(kind, everything, 1)
        for number, value in enumerate(wanted):
            together = torch.cat([rank[kind][0][number] for rank in ranks])
            torch.testing.assert_close(together, value, rtol=1e-7, atol=1e-9, msg=lambda text, kind=kind: kind + text)
        for rank in ranks:
            torch.testing.assert_close(rank[kind][1], alike, rtol=1e-8, atol=1e-9)
            assert all(map(torch.equal, rank[kind][1][-3:], ranks[0][kind][1][-3:]))  # buffers, to the last bit
    wanted = recomputed(1, everything)
    torch.testing.assert_close(torch.cat([rank["recomputed"][0] for rank in ranks]), wanted[0], rtol=1e-7, atol=1e-9)
    for rank in ranks:
        torch.testing.assert_close(rank["recomputed"][1:], wanted[1:], rtol=1e-8, atol=0)
        assert rank["recomputed"][2] == 1


def test_all_norms_of_a_network_and_of_its_head_with_their_names():
    network = IResNet((1, 1, 1, 1), (16, 16, 16, 16), 2, 4, 0.0, "none", 32)
    head = GroupFace(4, groups=2, ensemble="soft", window=2, weight=0.1)
    before = [list(module.state_dict()) for module in (network, head)]
    images, one = torch.randn(3, 3, 32, 32), copy.deepcopy(network)
    synchronise(network, head)
    synchronise(network)  # once more changes nothing
    norms = [m for part in (network, head) for m in part.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > 10
    assert {type(norm) for norm in norms} <= set(SYNCHRONISED.values())
    assert [list(module.state_dict()) for module in (network, head)] == before
    assert torch.equal(network(images), one(images))  # alone it is what it was
    assert type(copy.deepcopy(head).hidden[1]) is type(head.hidden[1])


def test_a_norm_of_another_kind_is_refused():
    class Own(nn.BatchNorm2d):
        pass

    with pytest.raises(
        ValueError, match=r"sync_batchnorm=true: 0 of Sequential is a Own, which cannot be synchronised"
    ):
        synchronise(nn.Sequential(Own(2)))
