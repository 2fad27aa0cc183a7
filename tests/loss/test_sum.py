"""A sum of losses is the sum of what they are alone, on one rank and on two, and says what its parts were."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from facelab.loss.adam_softmax import AdaMSoftmax
from facelab.loss.arcface import ArcFace
from facelab.loss.base import NotFinite
from facelab.loss.cosface import CosFace
from facelab.loss.sum import Sum
from facelab.loss.triplet import Triplet

B, C, D = 8, 5, 4
ARCFACE = partial(ArcFace, scale=8.0, margin=0.3, gradient=True, past_pi="monotone")
ADAM = partial(AdaMSoftmax, scale=8.0, margin_low=0.2, margin_high=0.4, lambda_margin=2.0)
TRIPLET = partial(Triplet, margin=0.5, mining="batch_all", squared=True)
PARTS = {"triplet": TRIPLET, "arcface": ARCFACE, "adam": ADAM}
WEIGHTS = {"triplet": 0.1, "arcface": 1.0, "adam": 0.5}


def batch():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(B, D, generator=generator, dtype=torch.float64), torch.arange(B) % C


def made(parts=PARTS, weights=WEIGHTS):
    torch.manual_seed(0)
    return Sum(D, C, parts, weights).double()


def alone(name):
    torch.manual_seed(0)
    return PARTS[name](embedding_size=D, num_classes=C).double()


def test_value_and_gradients_are_the_weighted_sum():
    embeddings, labels = batch()
    total, found = made(), embeddings.clone().requires_grad_()
    output = total(found, labels, 3)
    output.loss.backward()
    value, gradient = 0.0, torch.zeros_like(embeddings)
    for name, weight in WEIGHTS.items():
        own, rows = alone(name), embeddings.clone().requires_grad_()
        part = own(rows, labels, 3)
        part.loss.backward()
        value += weight * part.loss.item()
        gradient += weight * rows.grad
        torch.testing.assert_close(output.logs[f"loss/{name}"], part.loss.detach(), rtol=1e-12, atol=0)
        for mine, theirs in zip(total.parts[name].parameters(), own.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, weight * theirs.grad, rtol=1e-10, atol=1e-14)
    assert output.loss.item() == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(found.grad, gradient, rtol=1e-10, atol=1e-14)
    assert torch.autograd.gradcheck(lambda x: total(x, labels, 3).loss, embeddings.requires_grad_())


def test_the_first_part_that_knows_speaks():
    embeddings, labels = batch()
    output = made()(embeddings, labels, 0)
    triplet, arcface, adam = (alone(name)(embeddings, labels, 0) for name in PARTS)
    assert set(output.logs) == {
        *("loss/triplet", "loss/arcface", "loss/adam", "accuracy"),
        *("accuracy/arcface", "accuracy/adam", "regulariser/adam"),
    }
    assert output.logs["accuracy"] == triplet.logs["accuracy"]
    assert output.logs["accuracy/arcface"] == arcface.logs["accuracy"]
    assert output.logs["regulariser/adam"] == adam.logs["regulariser"]
    assert set(output.rows) == {"norm", "right", "cosine"}
    assert torch.equal(output.rows["cosine"], arcface.rows["cosine"])
    assert not any(entry.requires_grad for entry in (*output.logs.values(), *output.rows.values()))


def test_a_part_without_weight_is_watched_only():
    embeddings, labels = batch()
    total = made(weights={**WEIGHTS, "arcface": 0})
    output = total(embeddings.requires_grad_(), labels, 0)
    output.loss.backward()
    assert output.logs["loss/arcface"] > 0
    assert not total.parts["arcface"].classifier.weight.grad.any()
    assert total.parts["adam"].classifier.weight.grad.any()


def test_a_number_that_is_none_is_refused_by_its_row():
    embeddings, labels = batch()
    embeddings[2, 1], embeddings[5, 0] = torch.nan, torch.inf
    with pytest.raises(NotFinite, match="2 of 8 rows are NaN or infinite, row 2 first"):
        made()(embeddings, labels, 0)


def test_lengths_that_overflow_are_numbers():
    embeddings, labels = batch()
    embeddings = embeddings.float()
    embeddings[2] = 1e30
    assert alone("arcface").float()(embeddings, labels, 0).loss.isfinite()


@pytest.mark.parametrize(
    ("parts", "weights", "message"),
    [
        ({}, {}, "parts are none"),
        (PARTS, {"arcface": 1.0}, "parts are triplet, arcface, adam, weights arcface: give every part a weight"),
        ({"arcface": ARCFACE}, {"arcface": -1.0}, r"weights\.arcface=-1"),
        ({"keys": ARCFACE}, {"keys": 1.0}, r"parts\.keys: a part's name"),
        ({"a b": ARCFACE}, {"a b": 1.0}, r"parts\.a b: a part's name"),
        ({"cosface": partial(CosFace, scale=8.0, margin=7)}, {"cosface": 1.0}, r"parts\.cosface: margin=7 "),
    ],
)
def test_what_cannot_be_is_refused(parts, weights, message):
    with pytest.raises(ValueError, match=message):
        made(parts, weights)


def gradients(rank, world):
    """What this rank finds of its rows of the batch, by name."""
    embeddings, labels = batch()
    total = made()
    mine = slice(rank * B // world, (rank + 1) * B // world)
    rows = embeddings[mine].clone().requires_grad_()
    output = total(rows, labels[mine], 0)
    output.loss.backward()
    own = {name: parameter.grad for name, parameter in total.named_parameters()}
    assert set(total.sharded_parameters()) == set(own)
    assert set(own) == {"parts.arcface.classifier.weight", "parts.adam.classifier.weight", "parts.adam.margins"}
    classes = slice(total.parts["adam"].classifier.start, total.parts["adam"].classifier.stop)
    return {"loss": output.loss.detach(), **output.logs}, rows.grad / world, own, mine, classes


def _rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        torch.save(gradients(rank, 2), folder / f"{rank}.pt")
        embeddings, labels = batch()
        embeddings[6, 0] = torch.nan  # a row of the last rank: both refuse it
        mine = slice(rank * B // 2, (rank + 1) * B // 2)
        with pytest.raises(NotFinite, match="row 6 first"):
            made()(embeddings[mine], labels[mine], 0)
    finally:
        dist.destroy_process_group()


def test_two_ranks_are_one(tmp_path):
    mp.spawn(_rank, args=(tmp_path,), nprocs=2)
    values, rows, own, *_ = gradients(0, 1)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        mine, classes = found[3:]
        close = {"rtol": 1e-10, "atol": 1e-14}
        torch.testing.assert_close(found[0], values, **close)
        torch.testing.assert_close(found[1], rows[mine], **close)
        torch.testing.assert_close(found[2], {name: gradient[classes] for name, gradient in own.items()}, **close)
