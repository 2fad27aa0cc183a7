"""Some processes train as one does: margins with statistics, own parameters and own reductions; and pairs."""

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks

from facelab.loss.adaface import AdaFace
from facelab.loss.adaface_by_class import AdaFaceByClass
from facelab.loss.adam_softmax import AdaMSoftmax
from facelab.loss.classifier import ClassifierOptions
from facelab.loss.combined import Combined
from facelab.loss.contrastive import Contrastive
from facelab.loss.curricularface import CurricularFace
from facelab.loss.magface import MagFace
from facelab.loss.sphereface import SphereFace
from facelab.loss.sphereface2 import SphereFace2
from facelab.loss.triplet import Triplet

B, D, C = 12, 8, 11  # neither 2, 3 nor 4 divides C
SIZES = {1: (B,), 2: (7, 5), 3: (3, 9, 0), 4: (1, 4, 5, 2)}  # rows of each rank, of so many ranks
WORLDS = tuple(SIZES)
STEPS = 3

ANNEALED = {"lambda_base": 10.0, "lambda_gamma": 0.12, "lambda_power": 1.0, "lambda_min": 1.0}
LENGTHS = {"norm_low": 1.0, "norm_high": 10.0, "margin_low": 0.45, "margin_high": 0.8, "lambda_norm": 35.0}

LOSSES = {
    "adaface": lambda: AdaFace(D, C, scale=30.0, margin=0.4, concentration=0.333, t_alpha=0.3),
    "adaface_by_class": lambda: AdaFaceByClass(D, C, 30.0, 0.4, 0.333, 0.3, least=2, memory=4),
    "curricularface": lambda: CurricularFace(D, C, scale=30.0, margin=0.5, t_alpha=0.3),
    "adam_softmax": lambda: AdaMSoftmax(D, C, scale=30.0, margin_low=0.3, margin_high=0.4, lambda_margin=70.0),
    "sphereface2": lambda: SphereFace2(D, C, scale=40.0, margin=0.4, exponent=3.0, balance=0.7, gradient=True),
    "sphereface": lambda: SphereFace(D, C, scale="norm", margin=4.0, gradient=True, **ANNEALED),
    "combined": lambda: Combined(D, C, scale=30.0, m1=1.2, m2=0.3, m3=0.1, gradient=True),
    "magface": lambda: MagFace(D, C, scale=30.0, easy_margin=False, **LENGTHS),
    "contrastive": lambda: Contrastive(D, C, margin=1.2, squared=True),
    "batch_all": lambda: Triplet(D, C, margin=0.4, mining="batch_all", squared=True),
    "batch_hard": lambda: Triplet(D, C, margin=0.4, mining="batch_hard", squared=True),
    "semi_hard": lambda: Triplet(D, C, margin=0.4, mining="semi_hard", squared=False),
}
CHUNKS = (None, 2)  # all columns of a rank at once, and two at a time


def whole_batch(step):
    generator = torch.Generator().manual_seed(5 + step)
    images = torch.randn(B, D, generator=generator, dtype=torch.float64)
    labels = torch.randint(C, (B,), generator=generator)
    weight = torch.randn(C, D, generator=generator, dtype=torch.float64)
    images[::2] = weight[labels[::2]] + 0.3 * images[::2]
    return images, labels, weight


def train(build, rank, world, chunk):
    """Three steps of a linear backbone and the loss's own parameters: what each step gave, and where it ended."""
    torch.manual_seed(3)
    loss = build().double()
    if hasattr(loss, "classifier"):
        loss.configure(ClassifierOptions(chunk=chunk, sample_rate=1.0, interclass_filter=None))
        loss.classifier.weight.data = whole_batch(0)[2][loss.classifier.start : loss.classifier.stop].clone()
    backbone = torch.nn.Linear(D, D).double()
    torch.nn.init.eye_(backbone.weight)
    torch.nn.init.zeros_(backbone.bias)
    replicated = [p for name, p in loss.named_parameters() if name not in loss.sharded_parameters()]
    optimizer = torch.optim.SGD([*backbone.parameters(), *loss.parameters()], lr=0.02, momentum=0.9)
    start = sum(SIZES[world][:rank])
    mine = slice(start, start + SIZES[world][rank])
    values = []
    for step in range(STEPS):
        images, labels, _ = whole_batch(step)
        optimizer.zero_grad()
        value, logs, _ = loss(backbone(images[mine]), labels[mine], step)
        value.backward()
        if world > 1:
            for parameter in (*backbone.parameters(), *replicated):  # as DDP does
                dist.all_reduce(parameter.grad)
                parameter.grad /= world
        optimizer.step()
        values += [value.detach(), logs["accuracy"]]
    loss.eval()
    values.append(loss(backbone(images[mine]), labels[mine], STEPS).loss.detach())
    kept = {name: p.detach() for name, p in (*loss.named_parameters(), *loss.named_buffers())}
    sharded = {name: kept.pop(name) for name in loss.sharded_parameters()}
    return {
        "values": torch.stack(values),
        "backbone": backbone.weight.detach(),
        "sharded": sharded,
        "alike": kept,
    }


def job(rank, world, folder):
    found = {(name, chunk): train(LOSSES[name], rank, world, chunk) for name in LOSSES for chunk in CHUNKS}
    torch.save(found, folder / f"{world}-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    on_ranks(WORLDS, job, folder)
    return folder


def parts(folder, world):
    return [torch.load(folder / f"{world}-{rank}.pt") for rank in range(world)]


@pytest.fixture(scope="module")
def alone():
    return {name: train(build, 0, 1, None) for name, build in LOSSES.items()}


@pytest.mark.parametrize("world", WORLDS)
def test_ranks_train_as_one(folder, alone, world):
    ranks = parts(folder, world)
    for name, chunk in ((name, chunk) for name in LOSSES for chunk in CHUNKS):
        expected, found = alone[name], [rank[name, chunk] for rank in ranks]
        assert len(set(expected["values"][::2].tolist())) == STEPS + 1  # it moves

        def same(actual, wanted, about=f"{name}, chunk {chunk}: "):
            torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-10, msg=lambda text: about + text)

        for part in found:
            for key in ("values", "backbone", "alike"):
                same(part[key], expected[key])
        for key, whole in expected["sharded"].items():
            same(torch.cat([part["sharded"][key] for part in found]), whole)


def test_what_the_margins_keep(folder):
    """Named here, so that a loss that stops keeping it does not pass unseen."""
    ranks = parts(folder, 2)
    assert ranks[0]["adaface", 2]["alike"].keys() == {"mean_norm", "std_norm"}
    assert ranks[0]["adaface_by_class", 2]["alike"].keys() == {"mean_norm", "std_norm"}
    assert len(ranks[0]["adaface_by_class", 2]["sharded"]["class_mean"]) == 6
    assert ranks[0]["curricularface", 2]["alike"].keys() == {"t"}
    assert ranks[0]["sphereface2", 2]["alike"].keys() == {"bias"}
    assert ranks[0]["adam_softmax", 2]["sharded"].keys() == {"classifier.weight", "margins"}
    assert [len(rank["adam_softmax", 2]["sharded"]["margins"]) for rank in ranks] == [6, 5]
