"""The average of a network's weights: against a plain reference, bit for bit after a stop, and alike on all ranks."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from killing import compose
from ranks import on_ranks
from safetensors import safe_open
from torch import nn

from facelab.loss.cosface import CosFace
from facelab.training import checkpoint, fit
from facelab.training.averaging import Average, shipped
from facelab.training.module import FaceModule
from facelab.training.strategy import share_buffers

C, D, DECAY = 11, 4, 0.9


class Model(nn.Module):
    """What the average and a checkpoint need to know of a FaceModule."""

    def __init__(self, decay=DECAY):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6, D))
        self.backbone = self.backbone.to(memory_format=torch.channels_last)
        self.head = nn.BatchNorm1d(D)
        self.loss = CosFace(embedding_size=D, num_classes=C, scale=30.0, margin=0.2)
        self.sharded = [f"loss.{name}" for name in self.loss.sharded_parameters()]
        self.shard_start, self.shard_stop = self.loss.classifier.start, self.loss.classifier.stop
        self.average = None if decay is None else Average(self.backbone, self.head, decay)


def optimizer_of(model):
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)


def train(model, optimizer, steps, rank=0):
    """Gradients are the same on all ranks; batch norms see other images on each."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(8, 3, 3, 3, generator=generator) + rank
        model.head(model.backbone(images))
        optimizer.zero_grad()
        for parameter in [*model.backbone.parameters(), *model.head.parameters()]:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        model.average.update(model.backbone, model.head, step)


def reference(steps):
    """The same in float64, written out."""
    model = Model()
    optimizer = optimizer_of(model)
    parts = {"backbone": model.backbone, "head": model.head}
    values = {f"{part}.{key}": v.double().clone() for part, net in parts.items() for key, v in net.state_dict().items()}
    for step in range(steps):
        train(model, optimizer, [step])
        decay = min(DECAY, (1 + step) / (10 + step))
        for part, network in parts.items():
            for key, value in network.state_dict().items():
                old = values[f"{part}.{key}"]
                new = value.double() if value.is_floating_point() else value
                values[f"{part}.{key}"] = decay * old + (1 - decay) * new if value.is_floating_point() else new.clone()
    return values


def test_it_is_the_average_that_the_formula_says():
    """100 steps, of which the first 80 are shortened to let go of the random values of the beginning."""
    model = Model()
    train(model, optimizer_of(model), range(100))
    expected = reference(100)
    state = model.average.state_dict()
    assert state.keys() == expected.keys()
    for key, value in state.items():
        if value.is_floating_point():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value.double(), expected[key], rtol=2e-6, atol=2e-6)
        else:
            assert value == expected[key] == 100
    now = model.state_dict()
    assert not torch.allclose(state["backbone.0.weight"], now["backbone.0.weight"], rtol=1e-2)
    assert not torch.allclose(state["backbone.1.running_mean"], now["backbone.1.running_mean"], rtol=1e-2)


def test_the_first_steps_forget_the_beginning():
    model = Model(decay=0.9999)
    began = model.average.backbone[3].weight.clone()
    train(model, optimizer_of(model), range(30))
    now, average = model.backbone[3].weight, model.average.backbone[3].weight
    left = 1.0
    for step in range(30):
        left *= (1 + step) / (10 + step)
    assert left < 1e-7
    assert (average - now).norm() < (average - began).norm()


def test_it_is_a_network_of_its_own():
    model = Model()
    assert not any(parameter.requires_grad for parameter in model.average.parameters())
    assert model.average.backbone[0].weight.data_ptr() != model.backbone[0].weight.data_ptr()
    assert model.average.backbone[0].weight.stride() == model.backbone[0].weight.stride()
    model.train()
    assert not any(module.training for module in model.average.modules())
    before = {key: value.clone() for key, value in model.average.state_dict().items()}
    model.average(torch.randn(4, 3, 3, 3))
    assert all(torch.equal(value, before[key]) for key, value in model.average.state_dict().items())


def test_it_can_begin_again():
    model = Model()
    train(model, optimizer_of(model), range(3))
    model.average.restart(model.backbone, model.head)
    for part in ("backbone", "head"):
        pairs = zip(
            getattr(model.average, part).state_dict().values(), getattr(model, part).state_dict().values(), strict=True
        )
        assert all(torch.equal(a, b) for a, b in pairs)


def test_what_is_shipped_has_the_names_of_any_network(tmp_path):
    model = Model()
    train(model, optimizer_of(model), range(5))
    checkpoint.save(tmp_path / "best.ckpt", shipped(model), None, {"step": 5})
    checkpoint.save(tmp_path / "last.ckpt", model, None, {"step": 5})
    assert not checkpoint.has_average(tmp_path / "best.ckpt")
    assert checkpoint.has_average(tmp_path / "last.ckpt")
    averages, weights = model.average.backbone.state_dict(), model.backbone.state_dict()
    for name, averaged, expected in (
        ("best.ckpt", False, averages),
        ("last.ckpt", True, averages),
        ("last.ckpt", False, weights),
    ):
        other = Model(decay=None)
        checkpoint.load_network(tmp_path / name, other.backbone, other.head, averaged)
        assert all(torch.equal(value, expected[key]) for key, value in other.backbone.state_dict().items())
    plain = Model(decay=None)
    assert shipped(plain) is plain
    with pytest.raises(ValueError, match=r"another model: it lacks model\.backbone\.2\.bias.*; set backbone as in"):
        checkpoint.load_network(tmp_path / "best.ckpt", nn.Sequential(*[nn.Linear(1, 1)] * 4), plain.head, False)
    with pytest.raises(ValueError, match=r"head\.weight has shape \(4,\), the model \(5,\); set head as in"):
        checkpoint.load_network(tmp_path / "best.ckpt", plain.backbone, nn.BatchNorm1d(D + 1), False)


# Several ranks


def job(rank, world, folder):
    straight, stopped = Model(), Model()
    train(straight, optimizer_of(straight), range(6), rank)
    optimizer = optimizer_of(stopped)
    train(stopped, optimizer, range(3), rank)
    checkpoint.save(folder / f"last{world}.ckpt", stopped, optimizer, {"step": 3})
    resumed = Model()
    train(resumed, optimizer_of(resumed), range(1))  # other values, to be replaced
    optimizer = optimizer_of(resumed)
    checkpoint.load(folder / f"last{world}.ckpt", resumed, optimizer)
    train(resumed, optimizer, range(3, 6), rank)
    share_buffers(straight.average, resumed.average)
    torch.save((straight.average.state_dict(), resumed.average.state_dict()), folder / f"{world}-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    on_ranks((2,), job, folder)
    return folder


def test_ranks_hold_the_same_average_and_go_on_with_it(folder):
    (first, resumed), (second, _) = (torch.load(folder / f"2-{rank}.pt") for rank in range(2))
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
        assert torch.equal(value, resumed[key]), key


# In a run; killed and resumed runs with an average are in test_resume.py


def stored(where: Path, name: str):
    with safe_open(where / "checkpoints" / name, "np") as file:
        names = list(file.keys())
        return {key: file.get_tensor(key) for key in names}, json.loads(file.metadata()["facelab"])


def run(where: Path, *overrides: str):
    config, plain = compose("trainer.epochs=2", *overrides)
    return fit.train(config, plain, where, one_process=False)


def test_validation_and_report_are_on_the_average(tmp_path, monkeypatch):
    seen = []
    original = FaceModule.validation_step

    def noted(self, batch, number):
        seen.append(SimpleNamespace(step=self.progress.step, own=len(self._embedded)))
        with torch.inference_mode():
            expected = self.average(torch.zeros(1, 3, 48, 48)).float(), self(torch.zeros(1, 3, 48, 48)).float()
            given = self.embed(torch.zeros(1, 3, 48, 48)).float()
        seen[-1].averaged, seen[-1].raw = torch.equal(given, expected[0]), torch.equal(given, expected[1])
        original(self, batch, number)

    monkeypatch.setattr(FaceModule, "validation_step", noted)
    run(tmp_path / "run", "trainer.ema=0.9")
    assert {one.step for one in seen} >= {0, 10}
    assert all(one.averaged for one in seen)
    assert all(one.raw == (one.step == 0) for one in seen if one.step in (0, 10))
    monkeypatch.undo()
    last, _ = stored(tmp_path / "run", "last.ckpt")
    best, meta = stored(tmp_path / "run", "best.ckpt")
    assert not any("average" in key for key in best)
    assert meta["config"]["trainer"]["ema"] == 0.9
    key = "backbone.fc.weight"
    assert (last[f"model.{key}"] != last[f"model.average.{key}"]).any()
    if meta["step"] == json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"]:
        np.testing.assert_array_equal(best[f"model.{key}"], last[f"model.average.{key}"])


def test_averaging_changes_no_step_of_training_and_without_it_there_is_none(tmp_path):
    run(tmp_path / "with", "trainer.ema=0.9")
    run(tmp_path / "without")
    averaged, plain = stored(tmp_path / "with", "last.ckpt")[0], stored(tmp_path / "without", "last.ckpt")[0]
    assert not any("average" in key for key in plain)
    assert {key for key in averaged if "average" not in key} == plain.keys()
    for key, value in plain.items():
        assert value.tobytes() == averaged[key].tobytes(), key
