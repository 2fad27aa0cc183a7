"""What every distiller promises: derivatives, nothing to learn from oneself, half precision, and 1 = N processes."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from seen import (
    STUDENT,
    TEACHER,
    B,
    C,
    GlooRanks,
    changed,
    gradients,
    labels,
    seen,
    tensors,
    together,
    with_gradients,
)

from facelab.distill import logits, relational
from facelab.distill.attention_similarity import AttentionSimilarity
from facelab.distill.attention_transfer import AttentionTransfer
from facelab.distill.base import Distiller, Seen
from facelab.distill.embedding import Embedding
from facelab.distill.fitnet import FitNet
from facelab.distill.inherited_classifier import InheritedClassifier
from facelab.distill.logits import Logits
from facelab.distill.margin import Margin
from facelab.distill.relational import Relational
from facelab.distill.sum import Sum

ASKD = partial(AttentionSimilarity, weight=5.0, channel=True, spatial=True, blocks=None, teacher_blocks=None)
LOGITS = partial(Logits, weight=2.0, temperature=4.0, scale=None)
MARGIN = partial(Margin, low=0.2, high=0.5)
DISTILLERS = {
    "attention_similarity": ASKD,
    "l2": partial(Embedding, weight=0.5, form="l2"),
    "cosine": partial(Embedding, weight=0.5, form="cosine"),
    "angular": partial(Embedding, weight=0.5, form="angular"),
    "unit_l2": partial(Embedding, weight=0.5, form="unit_l2"),
    "fitnet": partial(FitNet, weight=3.0),
    "attention_transfer": partial(AttentionTransfer, weight=1000.0),
    "relational": partial(Relational, distance=1.0, angle=2.0, unit_student=False, unit_teacher=True),
    "logits": LOGITS,
    "sum": partial(Sum, parts={"a": ASKD, "b": LOGITS, "c": MARGIN}, weights={"a": 0.5, "b": 2.0, "c": 1.0}),
}
WITHOUT_A_TERM = {
    "margin": MARGIN,
    "inherited_classifier": InheritedClassifier,
    "none": lambda student, teacher: Distiller(),
}


SMALL = ((2, 3, 3), (3, 2, 2))


def made(name, student=STUDENT, teacher=TEACHER):
    torch.manual_seed(1)
    return DISTILLERS[name](student=student, teacher=teacher).double()


@pytest.mark.parametrize("name", DISTILLERS)
def test_the_gradient_is_the_derivative(name, monkeypatch):
    monkeypatch.setattr(logits, "_ELEMENTS", 4 * 4)  # four classes at a time
    monkeypatch.setattr(relational, "_ELEMENTS", 3 * 4 * 5)  # three images at a time
    networks = [replace(shapes, features=SMALL, attention=SMALL) for shapes in (STUDENT, TEACHER)]
    mine, theirs = (seen(seed, shapes, batch=4) for seed, shapes in enumerate(networks))
    distiller, mine = made(name, *networks), with_gradients(mine)

    def value(*flat):
        return distiller(together(flat, mine), theirs, labels(4))

    assert value(*tensors(mine)) > 0
    assert torch.autograd.gradcheck(value, tensors(mine))


@pytest.mark.parametrize("name", sorted({*DISTILLERS, *WITHOUT_A_TERM} - {"fitnet", "relational", "sum"}))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_learned_from_oneself(name, dtype):
    """FitNet has its regressor between them; RKD's default brings one network's embeddings to length 1 alone."""
    distiller = {**DISTILLERS, **WITHOUT_A_TERM}[name](student=STUDENT, teacher=STUDENT)
    mine = with_gradients(seen(0, dtype=dtype))
    value = distiller(mine, changed(mine, torch.Tensor.detach), labels())
    assert value.item() == 0.0
    if name in WITHOUT_A_TERM:
        assert not value.requires_grad
        return
    value.backward()
    rounding = 1e-6 if name == "logits" else 0.0
    for gradient in gradients(mine):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=rounding)


@pytest.mark.parametrize("name", DISTILLERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name, dtype):
    """Maps come in half precision and as large as it holds them; what is computed of them is float32."""
    distiller = made(name).float()
    exact, halved = [], []
    for kept, found in ((torch.float32, exact), (dtype, halved)):
        mine, theirs = (seen(seed, dtype=torch.float32) for seed in (0, 1))
        mine, theirs = (
            Seen(
                of.embeddings,
                tuple(100 * part.to(dtype).to(kept) for part in of.features),
                tuple((channel.to(dtype).to(kept), spatial.to(dtype).to(kept)) for channel, spatial in of.attention),
                of.centres,
            )
            for of in (mine, theirs)
        )
        mine = with_gradients(mine)
        with torch.autocast("cpu", dtype=dtype, enabled=kept == dtype):
            value = distiller(mine, theirs, labels())
        value.backward()
        assert value.dtype == torch.float32
        assert all(gradient.isfinite().all() for gradient in gradients(mine))
        found.append(value.detach())
    torch.testing.assert_close(halved, exact, rtol=2e-2, atol=0)  # 100·x itself is rounded


@pytest.mark.parametrize("name", DISTILLERS)
def test_what_has_no_length_has_finite_gradients(name):
    distiller = made(name).float()
    for zeros, others in ((seen(0), seen(1)), (seen(1), seen(0))):
        mine = with_gradients(changed(zeros, lambda part: torch.zeros_like(part, dtype=torch.float32)))
        value = distiller(mine, changed(others, torch.Tensor.float), labels())
        value.backward()
        assert value.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients(mine))
        assert distiller(changed(others, torch.Tensor.float), changed(mine, torch.Tensor.detach), labels()).isfinite()


# Ranks: equal parts, and unequal ones where a distiller looks at the global batch by itself

UNEVEN = ("relational", "logits", "margin")
SIZES = {2: {"even": (3, 3), "uneven": (5, 1)}, 3: {"even": (2, 2, 2), "uneven": (1, 5, 0)}}
CASES = [(name, "even") for name in (*DISTILLERS, "margin")] + [(name, "uneven") for name in UNEVEN]


def part(of, rows, classes):
    """What one rank has of it."""
    flat = [tensor[rows] for tensor in tensors(of)[:-1]]
    whole = together([*flat, of.centres[classes]], of)
    return Seen(whole.embeddings, whole.features, whole.attention, whole.centres, classes.start)


def found(name, rank=0, world=1, sizes=(B,)):
    """The value, gradients (images, centres, the distiller's own) and margins that a rank finds."""
    build = {**DISTILLERS, "margin": MARGIN}[name]
    torch.manual_seed(1)
    distiller = build(student=STUDENT, teacher=TEACHER).double()
    for module in distiller.modules():
        if isinstance(module, Distiller):
            module.ranks = GlooRanks()
    start, share = sum(sizes[:rank]), -(-C // world)
    rows, classes = slice(start, start + sizes[rank]), slice(rank * share, min(C, (rank + 1) * share))
    mine, theirs = with_gradients(part(seen(0), rows, classes)), part(seen(1), rows, classes)
    value = distiller(mine, theirs, labels()[rows])
    if value.requires_grad:
        value.backward()
    *images, centres = gradients(mine)
    own = [parameter.grad for parameter in distiller.parameters()]
    for shared in (value, *own) if world > 1 else ():  # as DistributedDataParallel does
        shared = shared.data
        dist.all_reduce(shared)
        shared /= world
    margins = distiller.margins(theirs, labels()[rows]) if distiller.gives_margins else torch.zeros(len(labels()[rows]))
    return {
        "value": value.detach(),
        "rows": [margins, *(gradient / world for gradient in images)],
        "centres": centres,
        "own": own,
    }


def job(rank, world, folder):
    every = {(name, how): found(name, rank, world, SIZES[world][how]) for name, how in CASES}
    torch.save(every, folder / f"{world}-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    on_ranks(tuple(SIZES), job, folder)
    return folder


@pytest.mark.parametrize("world", SIZES)
@pytest.mark.parametrize(("name", "how"), CASES)
def test_ranks_are_one(folder, name, how, world):
    ranks = [torch.load(folder / f"{world}-{rank}.pt")[name, how] for rank in range(world)]
    alone = found(name)
    close = {"rtol": 1e-9, "atol": 1e-12}
    for rank in ranks:
        torch.testing.assert_close(rank["value"], alone["value"], **close)
        torch.testing.assert_close(rank["own"], alone["own"], **close)
    rows = [torch.cat(parts) for parts in zip(*(rank["rows"] for rank in ranks), strict=True)]
    torch.testing.assert_close(rows, alone["rows"], **close)
    torch.testing.assert_close(torch.cat([rank["centres"] for rank in ranks]), alone["centres"], **close)
