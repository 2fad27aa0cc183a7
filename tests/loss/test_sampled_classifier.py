"""Sampled classes: the same on any number of ranks, the own classes always among them, and nothing else moves."""

import copy

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import nn

from facelab.loss.adam_softmax import AdaMSoftmax
from facelab.loss.classifier import ClassifierOptions, MarginLoss
from facelab.loss.cosface import CosFace
from facelab.loss.sampled import draw
from facelab.loss.sphereface2 import SphereFace2
from facelab.training import checkpoint
from facelab.training.optimization import SGD, AdamW, Poly
from facelab.training.strategy import clip_gradients

B, D, C = 12, 6, 31
RATE = 0.3
STEPS = 4
WORLDS = (2, 3, 4)
CPU = torch.device("cpu")
RECIPES = {
    "sgd": lambda: SGD(0.1, 0.9, False, 0.1, None, Poly(0, 1), 1.0, 1.0),
    "nesterov": lambda: SGD(0.1, 0.9, True, 0.0, None, Poly(0, 1), 1.0, 1.0),
    "plain": lambda: SGD(0.1, 0.0, False, 0.1, None, Poly(0, 1), 1.0, 1.0),
    "adamw": lambda: AdamW(0.02, (0.9, 0.99), 1e-8, 0.1, None, Poly(0, 1), 1.0, 1.0),
}
LOSSES = {
    "cosface": lambda c=C: CosFace(D, c, scale=20.0, margin=0.3),
    "sphereface2": lambda c=C: SphereFace2(D, c, scale=20.0, margin=0.4, exponent=3.0, balance=0.7, gradient=True),
}


def batch(step, classes=C):
    generator = torch.Generator().manual_seed(5 + step)
    images = torch.randn(B, D, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (B,), generator=generator) // 4 * 4  # a quarter of the classes, often twice
    return images, labels


def made(build, rate, chunk="auto"):
    torch.manual_seed(3)
    loss = build().double()
    loss.configure(ClassifierOptions(chunk, rate, None))
    return loss


def taken(loss, labels, step, rate):
    part = loss.classifier
    chosen = draw(part.start, part.stop, rate, part.seed, step, CPU)
    chosen[labels] = True
    return chosen


def test_a_draw_depends_on_seed_step_and_class_alone():
    whole = draw(0, 100_000, 0.1, 1, 7, CPU)
    assert torch.equal(torch.cat([draw(0, 333, 0.1, 1, 7, CPU), draw(333, 100_000, 0.1, 1, 7, CPU)]), whole)
    assert abs(whole.sum().item() - 10_000) < 5 * 95  # five standard deviations
    for seed, step in ((2, 7), (1, 8), (1 + 2**32, 7), (-1, 7)):
        both = (whole & draw(0, 100_000, 0.1, seed, step, CPU)).sum().item()
        assert abs(both - 1000) < 5 * 32  # as often as by chance
    assert draw(0, 1000, 1.0, 1, 7, CPU).all()


def test_every_class_has_its_turn():
    times = sum(draw(0, 1000, 0.1, 4, step, CPU).int() for step in range(1000))
    assert abs(times.float().mean() - 100) < 1.5
    assert times.min() > 50
    assert times.max() < 150
    assert abs(times.float().std() - 9.5) < 1.5  # binomial: neither in turn nor some classes more often


@pytest.mark.parametrize("chunk", ["auto", 1, 4])
@pytest.mark.parametrize("name", LOSSES)
def test_a_step_is_that_of_the_sampled_classes(name, chunk):
    images, labels = batch(0)
    loss = made(LOSSES[name], RATE, chunk)
    rows = taken(loss, labels, 2, RATE).nonzero()[:, 0]
    assert len(labels.unique()) < len(rows) < C - 8
    small = made(lambda: LOSSES[name](len(rows)), 1.0, None)
    small.classifier.weight.data = loss.classifier.weight.data[rows].clone()
    if name == "sphereface2":
        small.bias.data = loss.bias.data.clone()
    results = []
    for each, own in ((loss, labels), (small, torch.searchsorted(rows, labels))):
        leaf = images.clone().requires_grad_()
        value, logs, _ = each(leaf, own, 2)
        value.backward()
        results.append((value.detach(), logs["accuracy"], leaf.grad))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
    gradient = loss.classifier.weight.grad
    assert gradient.is_sparse
    assert torch.equal(gradient.coalesce().indices()[0], rows)
    torch.testing.assert_close(gradient.coalesce().values(), small.classifier.weight.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(loss.eval()(images, labels, 2), made(LOSSES[name], 1.0, None)(images, labels, 2))


def test_own_classes_are_there_when_nothing_else_is():
    images, labels = batch(0)
    loss = made(LOSSES["cosface"], 1e-9)
    loss(images.requires_grad_(), labels, 0).loss.backward()
    assert torch.equal(loss.classifier.weight.grad.coalesce().indices()[0], labels.unique())


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_class_has_an_optimizer_of_its_own(recipe):
    """Which is the reference: torch's, over C parameters, of which those without a gradient stay."""
    loss = made(LOSSES["cosface"], RATE)
    optimizer = RECIPES[recipe]().build(loss)
    centres = nn.ParameterList(nn.Parameter(row[None].clone()) for row in loss.classifier.weight.detach())
    others = RECIPES[recipe]().build(centres)
    others.__class__ = next(base for base in type(others).__mro__ if base.__module__.startswith("torch"))  # torch's own
    moved = torch.zeros(C, dtype=torch.int64)
    for step in range(STEPS):
        images, labels = batch(step)
        before = copy.deepcopy(loss.classifier.weight.detach())
        state = copy.deepcopy(dict(optimizer.state[loss.classifier.weight]))
        optimizer.zero_grad()
        for part in range(2):  # accumulated: the second half has rows of its own
            half = slice(part * B // 2, (part + 1) * B // 2)
            loss(images[half], labels[half], step).loss.backward()
        rows = taken(loss, labels, step, RATE)
        gradient = loss.classifier.weight.grad.to_dense()
        for number, centre in enumerate(centres):
            centre.grad = gradient[number : number + 1].clone() if rows[number] else None
        optimizer.step()
        others.step()
        moved += rows
        after = loss.classifier.weight.detach()
        assert torch.equal(after[~rows], before[~rows])
        assert (after[rows] != before[rows]).any(dim=1).all()
        for name, value in optimizer.state[loss.classifier.weight].items():
            if name in state:
                assert torch.equal(value[~rows], state[name][~rows])
        torch.testing.assert_close(after, torch.cat(list(centres)).detach(), rtol=1e-12, atol=1e-12)
    assert moved.min() == 0 or moved.min() < moved.max()


@pytest.mark.parametrize("recipe", RECIPES)
def test_ordinary_gradients_are_left_to_torch(recipe):
    results = []
    for own in (True, False):
        loss = made(LOSSES["cosface"], 1.0)
        optimizer = RECIPES[recipe]().build(loss)
        if not own:
            optimizer.__class__ = next(base for base in type(optimizer).__mro__ if base.__module__.startswith("torch"))
        for step in range(STEPS):
            optimizer.zero_grad()
            loss(*batch(step), step).loss.backward()
            optimizer.step()
        results.append(loss.classifier.weight)
    assert torch.equal(*results)


def test_clipping_counts_a_row_once():
    loss, dense = made(LOSSES["cosface"], RATE), made(LOSSES["cosface"], RATE)
    for each in (loss, dense):
        for step in range(2):
            each(*batch(step), 0).loss.backward()
    dense.classifier.weight.grad = dense.classifier.weight.grad.to_dense()
    for limit in (None, 0.1):
        norm = clip_gradients(list(loss.parameters()), [], limit)
        assert norm == pytest.approx(clip_gradients(list(dense.parameters()), [], limit).item())
        torch.testing.assert_close(loss.classifier.weight.grad.to_dense(), dense.classifier.weight.grad)


class Model(nn.Module):
    """What a checkpoint needs to know of a module in training."""

    def __init__(self, build, rate):
        super().__init__()
        torch.manual_seed(3)
        self.backbone = nn.Linear(D, D).double()
        self.loss = made(build, rate)
        self.sharded = [f"loss.{name}" for name in self.loss.sharded_parameters()]
        self.shard_start, self.shard_stop = self.loss.classifier.start, self.loss.classifier.stop


RUNS = {
    "sgd": (lambda: CosFace(D, C, scale=20.0, margin=0.3), "sgd", RATE),
    "adamw": (lambda: CosFace(D, C, scale=20.0, margin=0.3), "adamw", RATE),
    "bias": (LOSSES["sphereface2"], "sgd", RATE),
    "margins": (lambda: AdaMSoftmax(D, C, 20.0, 0.3, 0.4, 5.0), "sgd", RATE),
    "few": (lambda: MarginLoss(D, C, 20.0), "sgd", 0.01),  # some ranks have no class to look at
}


def train(run, rank, world, folder, resume=None):
    """Some steps, the last after a checkpoint: what each gave, and where this rank's rows ended."""
    build, recipe, rate = RUNS[run]
    model = Model(build, rate)
    optimizer = RECIPES[recipe]().build(model)
    first = 0
    if resume is not None:
        first = checkpoint.load(folder / f"{run}-{resume}.ckpt", model, optimizer)["step"]
    results = []
    for step in range(first, STEPS):
        if step == STEPS - 1 and resume is None:
            checkpoint.save(folder / f"{run}-{world}.ckpt", model, optimizer, {"step": step})
        images, labels = batch(step, 8 if run == "few" else C)
        mine = slice(rank * B // world, (rank + 1) * B // world)
        optimizer.zero_grad()
        value = model.loss(model.backbone(images[mine]), labels[mine], step)
        value.loss.backward()
        for name, parameter in model.named_parameters():  # DDP's affair in a training
            if world > 1 and name not in model.sharded:
                dist.all_reduce(parameter.grad)
                parameter.grad /= world
        optimizer.step()
        results.append((value.loss.detach(), value.logs["accuracy"]))
    return {
        "steps": results[-1:],
        "backbone": model.backbone.weight.detach(),
        **{name: parameter.detach() for name, parameter in model.loss.named_parameters()},
    }


def job(rank, world, folder):
    results = {run: train(run, rank, world, folder) for run in RUNS}
    if world == 3:  # what one and two processes left
        for resume in (1, 2):
            results |= {(run, resume): train(run, rank, world, folder, resume) for run in RUNS}
    torch.save(results, folder / f"{world}-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    for run in RUNS:
        torch.save(train(run, 0, 1, folder), folder / f"1-{run}.pt")
    on_ranks(WORLDS, job, folder)
    return folder


def assert_one_process(folder, run, parts):
    expected = torch.load(folder / f"1-{run}.pt")
    sharded = RUNS[run][0]().sharded_parameters()
    for key, value in expected.items():
        found = [torch.cat([part[key] for part in parts])] if key in sharded else [part[key] for part in parts]
        for each in found:
            torch.testing.assert_close(each, value, rtol=1e-9, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("world", WORLDS)
def test_ranks_sample_and_move_what_one_process_does(folder, world, run):
    assert_one_process(folder, run, [torch.load(folder / f"{world}-{rank}.pt")[run] for rank in range(world)])


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("resume", [1, 2])
def test_a_checkpoint_goes_on_with_three_ranks(folder, resume, run):
    assert_one_process(folder, run, [torch.load(folder / f"3-{rank}.pt")[run, resume] for rank in range(3)])


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("resume", [2, 3])
def test_a_checkpoint_goes_on_with_one_process(folder, resume, run):
    assert_one_process(folder, run, [train(run, 0, 1, folder, resume)])
