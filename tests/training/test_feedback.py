"""Samplers in training: what the loss says reaches them, on any number of ranks, and a killed run goes on with it."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import hydra
import numpy as np
import pytest
import torch
import torch.distributed as dist
from killing import compose
from ranks import on_ranks
from safetensors import safe_open

from facelab.data.plan import Plan
from facelab.data.sampling import Adaptive, PeopleTimesImages
from facelab.data.torch_loader import TrainLoader
from facelab.door import configuration_folder
from facelab.loss.arcface import ArcFace
from facelab.loss.collective import gather_rows
from facelab.loss.triplet import Triplet
from facelab.training import checkpoint, fit
from facelab.training.feedback import SETTLE_EVERY, Feedback, about_sampler, check_feedback
from facelab.training.module import FaceModule

LOSSES = sorted(path.stem for path in (configuration_folder() / "loss").glob("*.yaml"))


def adaptive(length=40, batch_size=12, **changes):
    values = {"up": 2.0, "down": 0.5, "floor": 0.1, "noise_cosine": 0.1, "noise_after": 1.0, "cut": 0.01}
    return Adaptive(np.zeros(length, np.int64), batch_size, 0, **{**values, **changes})


# Which losses go with which sampler


@pytest.fixture(scope="module")
def nodes():
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        return {name: hydra.compose("config", [f"loss={name}"]).loss for name in LOSSES}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_says_too_little_is_refused(nodes, name):
    check_feedback(Plan(40, 12, 0), nodes[name], 8)  # who does not listen takes any
    if name in ("contrastive", "triplet"):
        with pytest.raises(ValueError, match=r"does not tell: choose a loss with a classifier"):
            check_feedback(adaptive(noise_cosine=None), nodes[name], 8)
        return
    check_feedback(adaptive(noise_cosine=None), nodes[name], 8)
    if name == "softmax":
        with pytest.raises(ValueError, match=r"noise_cosine is 0\.1, and Softmax has no cosines: set it to null"):
            check_feedback(adaptive(), nodes[name], 8)
    else:
        check_feedback(adaptive(), nodes[name], 8)


def test_who_learns_from_pairs_is_told_how_few_there_are():
    labels = np.repeat(np.arange(100), 10)
    triplet, arcface = Triplet(8, 5, 0.2, "semi_hard", True), SimpleNamespace(compares_images=False)
    said = about_sampler(Plan(1000, 64, 0), labels, triplet, 1)["sampler"]
    # 64·63/2 pairs, each of one person with probability 9/999.
    assert "a batch of 64 drawn at random has about 18: data/sampler=pk brings more" in said
    assert about_sampler(Plan(1000, 64, 0), labels, arcface, 2) == {}
    pk = PeopleTimesImages(labels, 64, 0, 4, None)
    assert about_sampler(pk, labels, triplet, 1) == {"sampler": "16 people × 4 images a batch"}
    assert about_sampler(pk, labels, triplet, 2)["sampler"].endswith("within each of the 2 parts of trainer.accumulate")


# What the loss says


def verdicts(step, positions):
    cosines = torch.from_numpy(np.float32((positions * 7 + step * 5) % 12 / 12))
    return {"right": cosines > 0.4, "cosine": cosines}


@pytest.mark.parametrize("parts", [1, 3, 5])
def test_parts_of_a_batch_find_their_images(parts):
    plan, expected = adaptive(), adaptive()
    feedback = Feedback(plan, parts)
    for step in range(8):
        batch = plan.indices(step)
        told = verdicts(step, batch)
        for number, rows in enumerate(zip(*(told[key].tensor_split(parts) for key in told), strict=True)):
            feedback.hear(step, number, dict(zip(told, rows, strict=True)))
        assert expected.indices(step).tolist() == batch.tolist()
        expected.learn(step, batch, told["right"].numpy(), told["cosine"].numpy())
        if step % 3 == 2:  # an epoch is over
            assert plan.weights.tobytes() == expected.weights.tobytes()
    assert feedback.state()["weights"].numpy().tobytes() == expected.weights.tobytes()
    assert len(set(expected.weights.tolist())) > 3


def test_what_was_heard_is_learned_in_time_whether_an_epoch_ends_or_not():
    plan = adaptive(1000, 2)
    feedback = Feedback(plan, 1)
    for step in range(SETTLE_EVERY):
        assert (plan.weights == 1).all()
        feedback.hear(step, 0, {"right": torch.tensor([True, True])})
    assert (plan.weights < 1).sum() == 2 * SETTLE_EVERY


def test_without_cosines_only_right_counts():
    plan = adaptive(noise_cosine=None)
    feedback = Feedback(plan, 1)
    feedback.hear(0, 0, {"right": torch.ones(12, dtype=torch.bool)})
    feedback.settle()
    assert sorted(set(plan.weights.tolist())) == [0.5, 1]


# Several ranks


class Faces:
    """Images of noise around a colour for each of 20 people."""

    size = 4
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(20), 6))

    def load(self, index, out=None):
        noise = np.random.default_rng(index).integers(0, 60, (4, 4, 3))
        return (noise + np.array([9, 5, 3]) * int(self.labels[index])).astype(np.uint8)


def train(plan, loss, parts, steps, rank, world):
    """Some steps of plain SGD as FaceModule makes them: → the network's weights, the images of each step, the plan."""
    faces = Faces()
    network = torch.nn.Linear(48, 8, bias=False, dtype=torch.float64)
    with torch.no_grad():
        network.weight.copy_(torch.from_numpy(np.random.default_rng(1).normal(size=(8, 48))))
    parameters = [*network.parameters(), *loss.parameters()]
    sharded = dict(loss.named_parameters()).keys() & set(loss.sharded_parameters())
    feedback = Feedback(plan, parts) if plan.adapts else None
    seen = []
    subset = np.arange(len(faces.labels))
    loader = TrainLoader(faces, subset, faces.labels, plan, 0, 1, 0, steps, rank, world, 1, 3, False)
    for step, batch in enumerate(loader):
        seen.append(gather_rows(batch.indices).tolist())
        inputs = batch.images.double().flatten(1) / 255
        cut = zip(inputs.tensor_split(parts), batch.labels.tensor_split(parts), strict=True)
        for parameter in parameters:
            parameter.grad = None
        for number, (part, labels) in enumerate(cut):
            output = loss(network(part), labels, step)
            (output.loss * len(labels) / len(batch.labels)).backward()
            if feedback is not None:
                feedback.hear(step, number, output.rows)
        with torch.no_grad():
            for parameter in parameters:
                gradient = parameter.grad
                if not any(parameter is dict(loss.named_parameters())[name] for name in sharded):
                    dist.all_reduce(gradient)
                    gradient /= world
                parameter -= 0.05 * gradient
    if feedback is not None:
        feedback.settle()
    return network.weight.detach(), seen


def job(rank, world, folder):
    torch.manual_seed(0)
    made = {
        "pk": (lambda: PeopleTimesImages(Faces.labels, 24, 0, 4, None), Triplet(8, 20, 0.2, "batch_hard", True), 1),
        "adaptive": (partial(adaptive, len(Faces.labels), 24), ArcFace(8, 20, 8.0, 0.1, True, "monotone"), 2),
    }
    found = {}
    for name, (plan_of, loss, parts) in made.items():
        plan = plan_of()
        weight, seen = train(plan, loss.double(), parts, 12, rank, world)
        found[name] = weight, seen, torch.from_numpy(plan.weights) if plan.adapts else torch.zeros(1)
    torch.save(found, folder / f"{world}-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    on_ranks((1, 2), job, folder)
    return folder


def test_pk_and_triplets_train_the_same_on_one_and_two_ranks(folder):
    (alone, batches, _) = torch.load(folder / "1-0.pt")["pk"]
    labels = Faces.labels[np.array(batches)].reshape(12, 6, 4)
    assert (labels == labels[..., :1]).all()
    for rank in range(2):
        weight, seen, _ = torch.load(folder / f"2-{rank}.pt")["pk"]
        assert seen == batches
        torch.testing.assert_close(weight, alone, rtol=1e-9, atol=1e-9)


def test_all_ranks_learn_the_same_weights(folder):
    (_, batches, weights) = torch.load(folder / "1-0.pt")["adaptive"]
    assert len(set(weights.tolist())) > 2
    for rank in range(2):
        _, seen, own = torch.load(folder / f"2-{rank}.pt")["adaptive"]
        assert seen == batches
        assert torch.equal(own, weights)


# In a run


def stored(where: Path, name: str = "last.ckpt"):
    with safe_open(where / "checkpoints" / name, "np") as file:
        names = list(file.keys())
        return {key: file.get_tensor(key) for key in names}


RUN = ["data/sampler=adaptive", "data.sampler.noise_cosine=-0.2", "data.sampler.noise_after=1", "loss=cosface"]
RUN += ["loss.scale=16", "loss.margin=0", "trainer.max_steps=13", "trainer.validate_every=1.5", "optimizer.lr=0.3"]


def test_a_run_that_dies_goes_on_bit_by_bit_with_its_weights(tmp_path, monkeypatch):
    config, plain = compose(*RUN)
    fit.train(config, plain, tmp_path / "alone", one_process=False)
    original = FaceModule.training_step

    def deadly(self, batch, number):
        if self.progress.step == 9:  # after the saving at 8, in the middle of an epoch and of a segment
            raise RuntimeError("power cut")
        original(self, batch, number)

    monkeypatch.setattr(FaceModule, "training_step", deadly)
    with pytest.raises(RuntimeError, match="power cut"):
        fit.train(config, plain, tmp_path / "killed", one_process=False)
    monkeypatch.undo()
    fit.train(config, plain, tmp_path / "killed", one_process=False)
    alone, killed = stored(tmp_path / "alone"), stored(tmp_path / "killed")
    assert alone.keys() == killed.keys()
    for key, value in alone.items():
        assert value.tobytes() == killed[key].tobytes(), key
    assert len(set(alone["sampler.weights"].tolist())) > 3
    assert (alone["sampler.weights"] != alone["sampler.frozen"]).any()
    assert alone["sampler.epoch"].tolist() == [2]
    assert not any(key.startswith("sampler.") for key in stored(tmp_path / "alone", "best.ckpt"))


def test_a_checkpoint_without_a_sampler_has_none(tmp_path):
    model = torch.nn.Linear(2, 2)
    model.sharded = []
    checkpoint.save(tmp_path / "last.ckpt", model, None, {"step": 0})
    assert checkpoint.load_sampler(tmp_path / "last.ckpt") == {}
    checkpoint.save(tmp_path / "last.ckpt", model, None, {"step": 0}, adaptive_state())
    restored = adaptive()
    Feedback(restored, 1).restore(checkpoint.load_sampler(tmp_path / "last.ckpt"))
    assert {key: value.tolist() for key, value in restored.state().items()} == {
        key: value.tolist() for key, value in adaptive_state().items()
    }
    checkpoint.amend(tmp_path / "last.ckpt", {"step": 0})
    assert set(checkpoint.load_sampler(tmp_path / "last.ckpt")) == {"weights", "frozen", "epoch"}


def adaptive_state():
    plan = adaptive()
    plan.indices(3)
    plan.learn(3, np.arange(9), np.ones(9, bool), np.linspace(0, 1, 9))
    return Feedback(plan, 1).state()
