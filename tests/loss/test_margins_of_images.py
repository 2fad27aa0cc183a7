"""A margin for each image in place of the loss's own, as a teacher may give it."""

import math

import pytest
import torch
from ranks import on_ranks
from torch import distributed as dist

from facelab.loss.arcface import ArcFace
from facelab.loss.cosface import CosFace
from facelab.loss.softmax import Softmax

B, D, C = 6, 5, 7


def built(kind, margin, **options):
    torch.manual_seed(0)
    made = kind(embedding_size=D, num_classes=C, scale=8.0, margin=margin, **options).double()
    torch.nn.init.normal_(made.classifier.weight)
    return made


def batch():
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(B, D, generator=generator, dtype=torch.float64, requires_grad=True)
    return rows, torch.randint(C, (B,), generator=generator)


ARC = {"gradient": True, "past_pi": "monotone"}
KINDS = [
    pytest.param(ArcFace, ARC, lambda angle, m: torch.cos(angle + m), id="arcface"),
    pytest.param(CosFace, {}, lambda angle, m: torch.cos(angle) - m, id="cosface"),
]


@pytest.mark.parametrize(("kind", "options", "target"), KINDS)
def test_each_image_has_its_own(kind, options, target):
    loss = built(kind, 0.3, **options)
    rows, labels = batch()
    margins = torch.linspace(0.05, 0.5, B, dtype=torch.float64)
    found = loss(rows, labels, 0, margins).loss
    cosines = torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(loss.classifier.weight).T
    logits = cosines.clone()
    own = torch.arange(B)
    angles = cosines[own, labels].acos()
    assert bool((angles + margins < math.pi).all())
    logits[own, labels] = target(angles, margins)
    wanted = torch.nn.functional.cross_entropy(8.0 * logits, labels)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    for mine, reference in zip(
        torch.autograd.grad(found, [rows, loss.classifier.weight]),
        torch.autograd.grad(wanted, [rows, loss.classifier.weight]),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "options", "target"), KINDS)
def test_equal_margins_are_the_loss_with_that_margin(kind, options, target):
    rows, labels = batch()
    margins = torch.full((B,), 0.45, dtype=torch.float64)
    given = built(kind, 0.1, **options)(rows, labels, 0, margins).loss
    torch.testing.assert_close(given, built(kind, 0.45, **options)(rows, labels, 0).loss, rtol=1e-14, atol=0)


@pytest.mark.parametrize("past", ["monotone", "unguarded", "clip", "clamp_angle"])
def test_past_pi_too(past):
    rows = -torch.nn.functional.one_hot(torch.arange(D)).double()  # straight away from their centres
    rows = rows + 0.01 * torch.randn(D, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(D)
    made = [built(ArcFace, margin, gradient=True, past_pi=past) for margin in (0.1, 0.4)]
    for loss in made:
        with torch.no_grad():
            loss.classifier.weight[:D] = torch.eye(D)
    given = made[0](rows, labels, 0, torch.full((D,), 0.4, dtype=torch.float64)).loss
    torch.testing.assert_close(given, made[1](rows, labels, 0).loss, rtol=1e-14, atol=0)


def test_a_loss_without_a_margin_takes_none():
    with pytest.raises(AssertionError, match="Softmax has no margin"):
        Softmax(D, C)(*batch(), 0, torch.zeros(B))


def _on_a_rank(rank, world, folder):
    loss = built(ArcFace, 0.3, **ARC)
    rows, labels = batch()
    cut = slice(rank * B // world, (rank + 1) * B // world)
    margins = torch.linspace(0.05, 0.5, B, dtype=torch.float64)
    mine = rows.detach()[cut].requires_grad_()
    with torch.no_grad():
        torch.manual_seed(0)
        whole = torch.empty(C, D, dtype=torch.float64)
        torch.nn.init.normal_(whole)
        loss.classifier.weight.copy_(whole[loss.classifier.start : loss.classifier.stop])
    found = loss(mine, labels[cut], 0, margins[cut]).loss
    found.backward()
    torch.save((found.detach(), mine.grad / world), folder / f"{world}-{rank}.pt")
    dist.barrier()


def test_on_several_ranks(tmp_path):
    on_ranks((1, 2, 3), _on_a_rank, tmp_path)
    loss, gradient = torch.load(tmp_path / "1-0.pt")
    for world in (2, 3):
        parts = [torch.load(tmp_path / f"{world}-{rank}.pt") for rank in range(world)]
        for value, _ in parts:
            torch.testing.assert_close(value, loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(torch.cat([part for _, part in parts]), gradient, rtol=1e-10, atol=1e-14)
