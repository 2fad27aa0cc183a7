"""Class centres out of a checkpoint: kept, replaced or frozen, whatever the number of ranks that wrote them."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from ranks import on_ranks
from safetensors.torch import save_file
from torch import nn

from facelab.training import checkpoint
from facelab.training.objective import build_loss
from facelab.training.optimization import SGD, Poly

C, D = 11, 4
PLAIN = {"chunk": "auto", "sample_rate": 1.0, "interclass_filter": None, "weights": None, "frozen": False}
COSFACE = {"_target_": "facelab.loss.cosface.CosFace", "scale": 30.0, "margin": 0.3}
TRIPLET = {"_target_": "facelab.loss.triplet.Triplet", "margin": 0.2, "mining": "semi_hard", "squared": True}
ADAM = {
    "_target_": "facelab.loss.adam_softmax.AdaMSoftmax",
    **{"scale": 30.0, "margin_low": 0.2, "margin_high": 0.4, "lambda_margin": 10.0},
}
ADAFACE = {
    "_target_": "facelab.loss.adaface.AdaFace",
    **{"scale": 30.0, "margin": 0.4, "concentration": 0.333, "t_alpha": 0.01},
}
SUM = {
    "_target_": "facelab.loss.sum.Sum",
    "parts": {"cosface": COSFACE, "triplet": TRIPLET, "adam": ADAM},
    "weights": {"cosface": 1.0, "triplet": 0.1, "adam": 0.5},
}
LOSSES = {"cosface": COSFACE, "adam": ADAM, "adaface": ADAFACE, "sum": SUM, "triplet": TRIPLET}


def build(node, classes=C, size=D, **options):
    options = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    return build_loss(OmegaConf.create({**node, "classifier": {**PLAIN, **options}}), size, classes)


class Model(nn.Module):
    """What a checkpoint needs to know of a FaceModule."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss
        self.sharded = [f"loss.{name}" for name in loss.sharded_parameters()]
        shards = [part for part in loss.modules() if hasattr(part, "start")]
        self.shard_start, self.shard_stop = (shards[0].start, shards[0].stop) if shards else (0, 0)


@torch.no_grad()
def filled(node):
    """A model whose numbers belong to their names and classes, on any number of ranks."""
    model = Model(build(node))
    for name, value in model.state_dict().items():
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        if name in model.sharded:
            rows = torch.rand(C, *value.shape[1:], generator=generator)
            value.copy_(rows[model.shard_start : model.shard_stop])
        else:
            value.copy_(torch.rand(value.shape, generator=generator))
    return model


def assert_as_filled(loss, node):
    expected = filled(node).loss.state_dict()
    for name, value in loss.state_dict().items():
        assert torch.equal(value, expected[name]), name


def job(rank, world, folder):
    for name, node in LOSSES.items():
        checkpoint.save(folder / f"{name}-{world}.ckpt", filled(node), None, {"step": 1})
    for name, node in LOSSES.items():
        for other in range(1, world + 1):
            path = folder / f"{name}-{other}.ckpt"
            if name != "triplet":
                torch.manual_seed(8)
                assert_as_filled(build(node, weights=path, frozen=True), node)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("centres")
    job(0, 1, folder)
    on_ranks((2,), job, folder)  # which read what one and two have written
    return folder


@pytest.mark.parametrize("name", ["cosface", "adam", "adaface", "sum"])
def test_one_process_reads_what_any_number_has_written(folder, name):
    for world in (1, 2):
        assert_as_filled(build(LOSSES[name], weights=folder / f"{name}-{world}.ckpt"), LOSSES[name])


def test_another_loss_takes_the_centres_alone(folder):
    kept = filled(COSFACE).loss.classifier.weight
    torch.manual_seed(5)
    fresh = build(ADAM)
    torch.manual_seed(5)
    loss = build(ADAM, weights=folder / "cosface-2.ckpt")
    assert torch.equal(loss.classifier.weight, kept)
    assert torch.equal(loss.margins, fresh.margins)
    assert build(ADAFACE, weights=folder / "adam-1.ckpt").mean_norm == 20
    one = {**SUM, "parts": {"only": COSFACE, "triplet": TRIPLET}, "weights": {"only": 1.0, "triplet": 1.0}}
    assert torch.equal(build(one, weights=folder / "cosface-1.ckpt").parts["only"].classifier.weight, kept)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("cosface", {"classes": 9}, "centres of 11 classes, and the data have 9: leave loss.classifier.weights=null"),
        ("cosface", {"classes": 1200}, "of 11 classes, and the data have 1,200: .*replaces the classifier by a fresh"),
        ("cosface", {"size": 8}, r"centres of 4 numbers, .* embeddings have 8: set backbone\.embedding_size=4"),
        ("triplet", {}, "has no class centres"),
        ("sum", {}, r"has the classifiers loss\.parts\.\w+, loss\.parts\.\w+, and this loss has loss: name the parts"),
    ],
)
def test_what_does_not_fit_is_refused(folder, world, name, given, message):
    with pytest.raises(ValueError, match=message):
        build(COSFACE, weights=folder / f"{name}-{world}.ckpt", **given)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt is not there"):
        build(COSFACE, weights=tmp_path / "nowhere.ckpt")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="not written by facelab"):
        build(COSFACE, weights=tmp_path / "other.ckpt")


@pytest.mark.parametrize(
    ("node", "options", "message"),
    [
        (COSFACE, {"frozen": True}, r"loss\.classifier\.frozen=true .* loss\.classifier\.weights="),
        (COSFACE, {"frozen": "yes", "weights": "x"}, r"loss\.classifier\.frozen is 'yes'"),
        (COSFACE, {"weights": 3}, r"loss\.classifier\.weights is 3"),
        (TRIPLET, {"weights": "x"}, r"loss\.classifier\.weights is x, and Triplet has no classifier: leave it at null"),
        (TRIPLET, {"frozen": True}, r"loss\.classifier\.frozen is True, and Triplet has no .*: leave it at false"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(node, options, message):
    with pytest.raises(ValueError, match=message):
        build(node, **options)


def backward(loss, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(6, D, generator=generator).requires_grad_()
    output = loss(embeddings, torch.arange(6), 0)
    output.loss.backward()
    return output.loss.detach(), embeddings.grad, {n: p.grad for n, p in loss.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["cosface", "adam", "adaface", "sum"])
@pytest.mark.parametrize("options", [{"chunk": None}, {"chunk": 3}, {"sample_rate": 0.5}, {"interclass_filter": 0.2}])
def test_frozen_centres_give_the_same_and_have_no_gradient(folder, name, options):
    path = folder / f"{name}-2.ckpt"
    free = backward(build(LOSSES[name], weights=path, **options))
    loss = build(LOSSES[name], weights=path, frozen=True, **options)
    value, gradient, own = backward(loss)
    torch.testing.assert_close(value, free[0])
    torch.testing.assert_close(gradient, free[1])
    assert set(own) == {key for key in free[2] if not key.endswith("classifier.weight")}
    for key, value in own.items():  # a margin's own numbers go on learning
        torch.testing.assert_close(value, free[2][key])
    recipe = SGD(0.1, 0.9, True, 0.5, None, Poly(0, 1), 1.0, 1.0)
    if own:
        optimizer, before = recipe.build(loss), {key: value.clone() for key, value in loss.state_dict().items()}
        for _ in range(2):
            optimizer.step()
        moved = {key for key, value in loss.state_dict().items() if not torch.equal(value, before[key])}
        assert moved == set(own)
    else:
        assert recipe.groups(loss) == []


def test_margins_inside_a_sum_have_no_weight_decay():
    loss = build(SUM)
    decayed, free = SGD(0.1, 0.9, True, 0.5, None, Poly(0, 1), 1.0, 1.0).groups(loss)
    assert {id(p) for p in decayed["params"]} == {id(p) for n, p in loss.named_parameters() if n.endswith("weight")}
    assert [id(p) for p in free["params"]] == [id(loss.parts["adam"].margins)]
