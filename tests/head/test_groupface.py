"""GroupFace: against plain loops, balanced where the plain formula collapses, and the same on any number of ranks."""

import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on_ranks
from torch import nn

from facelab.head.base import LearningHead
from facelab.head.groupface import GroupFace, self_distributed
from facelab.training.averaging import Average

B, D, K = 12, 6, 4
WINDOW, WEIGHT = 3, 0.1
LOCAL = {1: (B,), 2: (7, 5), 3: (3, 7, 2)}  # images of each rank
STEPS = 5


def made(ensemble="soft", seed=0, **options):
    torch.manual_seed(seed)
    given = {"embedding_size": D, "groups": K, "window": WINDOW, "weight": WEIGHT, **options}
    head = GroupFace(ensemble=ensemble, **given).double()
    for norm in (part for part in head.modules() if isinstance(part, nn.BatchNorm1d)):
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 2)
    return head


def features(step, rows=B):
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(100 + step), dtype=torch.float64)


# Against plain loops


def dense(matrix, vector):
    return [sum(weight * x for weight, x in zip(row, vector, strict=True)) for row in matrix]


def normed(norm, rows, trains):
    """Batch norm of (B,D), number by number."""
    found = [[0.0] * len(rows[0]) for _ in rows]
    for d in range(len(rows[0])):
        column = [row[d] for row in rows]
        mean, variance = float(norm.running_mean[d]), float(norm.running_var[d])
        if trains:
            mean = sum(column) / len(column)
            variance = sum((x - mean) ** 2 for x in column) / len(column)
        gain, shift = (1.0, 0.0) if norm.weight is None else (norm.weight[d].item(), norm.bias[d].item())
        for b, x in enumerate(column):
            found[b][d] = gain * (x - mean) / (variance + norm.eps) ** 0.5 + shift
    return found


def reference(head, rows, trains):
    """(B,D) embeddings, (B,K) probabilities, (B,D) v̂, by loops."""
    rows = rows.tolist()
    instances = [dense(head.instance.weight.tolist(), row) for row in rows]
    hidden = normed(head.hidden[1], [dense(head.hidden[0].weight.tolist(), row) for row in instances], trains)
    hidden = [[max(x, 0.0) for x in row] for row in hidden]
    hidden = normed(head.hidden[4], [dense(head.hidden[3].weight.tolist(), row) for row in hidden], trains)
    logits = np.array([dense(head.logits.weight.tolist(), row) for row in hidden])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    embeddings = []
    for row, instance, p in zip(rows, instances, probabilities, strict=True):
        vectors = [dense(head.vectors.weight[k * D : (k + 1) * D].tolist(), row) for k in range(K)]
        shares = p if head.ensemble == "soft" else [float(k == p.argmax()) for k in range(K)]
        group = [sum(shares[k] * vectors[k][d] for k in range(K)) for d in range(D)]
        embeddings.append([v + g for v, g in zip(instance, group, strict=True)])
    return np.array(embeddings), probabilities, np.array(hidden)


@pytest.mark.parametrize("ensemble", ["soft", "hard"])
@pytest.mark.parametrize("trains", [False, True])
def test_embeddings_are_those_of_plain_loops(ensemble, trains):
    head, rows = made(ensemble).train(trains), features(0)
    expected, probabilities, hidden = reference(head, rows, trains)
    found = head.training_forward(rows, 0).embeddings if trains else head(rows)
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-10)
    assert len({*probabilities.argmax(axis=1)}) > 1  # the hard ensemble has something to choose
    decision = head.decide(rows)
    np.testing.assert_allclose(decision.hidden.detach(), hidden, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(decision.logits.softmax(1).detach(), probabilities, rtol=1e-10)


@pytest.mark.parametrize("ensemble", ["soft", "hard"])
def test_loss_labels_and_logs_are_those_of_plain_loops(ensemble):
    head = made(ensemble).eval()  # batch norms that know nothing of the batch
    batches = []
    for step in range(STEPS):
        rows = features(step)
        _, p, _ = reference(head, rows, False)
        batches = [*batches, p][-WINDOW:]
        expected = np.concatenate(batches).mean(axis=0)
        balanced = (p - expected) / K + 1 / K
        np.testing.assert_allclose(self_distributed(torch.tensor(p), torch.tensor(expected)), balanced, rtol=1e-12)
        labels = balanced.argmax(axis=1)
        entropy = np.mean([-np.log(p[b, labels[b]]) for b in range(B)])
        output = head.training_forward(rows, step)
        assert output.loss.item() == pytest.approx(WEIGHT * entropy, rel=1e-9)
        assert output.logs["group_loss"].item() == pytest.approx(entropy, rel=1e-9)
        assert output.counts["group"].tolist() == np.bincount(p.argmax(axis=1), minlength=K).tolist()
        assert output.logs["group_largest"].item() == np.bincount(p.argmax(axis=1)).max() / B
        assert step or (labels != p.argmax(axis=1)).any()  # else the expectation has changed nothing


def test_balanced_probabilities_have_the_mean_that_even_groups_have():
    p = torch.rand(50, K, dtype=torch.float64)
    p /= p.sum(1, keepdim=True)
    balanced = self_distributed(p, p.mean(0))
    torch.testing.assert_close(balanced.mean(0), torch.full((K,), 1 / K, dtype=torch.float64))
    torch.testing.assert_close(balanced.sum(1), torch.ones(50, dtype=torch.float64))


@pytest.mark.parametrize("ensemble", ["soft", "hard"])
def test_gradients_are_those_of_the_values(ensemble):
    head = made(ensemble).train()

    def called(rows):
        output = copy.deepcopy(head).training_forward(rows, 0)  # else every call would move the window
        return output.embeddings, output.loss

    assert torch.autograd.gradcheck(called, features(0).requires_grad_())


def test_who_learns_from_what():
    """The loss of recognition reaches the decision network through a soft choice alone; the group loss always does."""
    for ensemble, reaches in (("soft", True), ("hard", False)):
        head = made(ensemble).train()
        output = head.training_forward(features(0), 0)
        (moved,) = torch.autograd.grad(output.embeddings.square().sum(), head.logits.weight, retain_graph=True,
                                       allow_unused=True)  # fmt: skip
        assert (moved is not None and bool(moved.abs().max() > 0)) == reaches
        output.loss.backward()
        assert head.logits.weight.grad.abs().max() > 0
        assert head.instance.weight.grad.abs().max() > 0
        assert head.vectors.weight.grad is None


# The window


@settings(max_examples=20)
@given(
    sizes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=9),
    window=st.integers(1, 4),
)
def test_the_expectation_is_the_mean_of_the_latest_batches_images(sizes, window):
    """Batches come in parts; a part sees those before it, and a batch counts once."""
    head = made(window=window).eval()
    batches = []
    with torch.no_grad():
        for step, parts in enumerate(sizes):
            batches.append([])
            for number, rows in enumerate(parts):
                batch = features(10 * step + number, rows)
                batches[-1].append(head.decide(batch).logits.softmax(1))
                head.training_forward(batch, step)
                expected = torch.cat([p for batch in batches[-window:] for p in batch]).mean(0)
                torch.testing.assert_close(head.window_sums.sum(0) / head.window_images.sum(), expected)


def test_only_training_moves_the_expectation_and_nothing_else_reads_it():
    head = made()
    head.train().training_forward(features(0), 0)
    before = {key: value.clone() for key, value in head.state_dict().items() if key.startswith("window")}
    first = head.eval()(features(1))
    head.train()(features(2))
    assert len(before) == 3
    assert all(torch.equal(value, head.state_dict()[key]) for key, value in before.items())
    head.eval().window_sums.fill_(float("nan"))
    other = made()
    other.train().training_forward(features(0), 0)
    assert torch.equal(other.eval()(features(1)), first)


def test_a_checkpoint_carries_the_expectation():
    head, other = made().eval(), made().eval()
    for step in range(2):
        head.training_forward(features(step), step)
    assert head.training_forward(features(5), 2).loss != other.training_forward(features(5), 2).loss
    head, resumed = made().eval(), made(seed=1).eval()
    for step in range(2):
        head.training_forward(features(step), step)
    resumed.load_state_dict(head.state_dict())
    for step in range(2, 6):
        rows = features(step)
        assert torch.equal(head.training_forward(rows, step).loss, resumed.training_forward(rows, step).loss)


def test_an_average_of_weights_has_an_expectation_too():
    """`trainer.ema` averages floating-point buffers and copies the others."""
    head = made().train()
    average = Average(nn.Identity(), head, 0.9)
    for step in range(60):
        head.training_forward(features(step), step)
        average.update(nn.Identity(), head, step)
    found = average.head.window_sums.sum(0) / average.head.window_images.sum()
    assert found.sum().item() == pytest.approx(1, abs=1e-6)
    assert torch.equal(average.head.window_images, head.window_images)


# Ranks


def trained(rank, world):
    """Five steps of SGD on this rank's images, each batch in two parts; what they gave, and the head."""
    head = made()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
    told = []
    for step in range(STEPS):
        head.eval()  # a rank's batch norms know its own images alone
        optimizer.zero_grad()
        for number in range(2):
            rows = features(2 * step + number).split(LOCAL[world])[rank].requires_grad_()
            output = head.training_forward(rows, step)
            (output.loss + 0.01 * output.embeddings.square().sum() * world / B).backward()
            told.append((output.loss.detach(), output.logs, output.counts))
        if world > 1:
            for parameter in head.parameters():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= world
        optimizer.step()
    return told, head.state_dict()


def job(rank, world, folder):
    torch.save(trained(rank, world), folder / f"{world}-{rank}.pt")


def test_ranks_learn_as_one_process_does(tmp_path):
    on_ranks((2, 3), job, tmp_path)
    told, state = trained(0, 1)
    for world in (2, 3):
        for rank in range(world):
            their_told, their_state = torch.load(tmp_path / f"{world}-{rank}.pt")
            for one, other in zip(told, their_told, strict=True):
                torch.testing.assert_close(one, other)
            torch.testing.assert_close(state, their_state)
    assert state["window_images"].tolist() == [2 * B] * WINDOW
    assert not torch.equal(state["logits.weight"], made().logits.weight)


# In use


@pytest.mark.parametrize("ensemble", ["soft", "hard"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_embedding_depends_on_its_own_image_alone(ensemble, dtype):
    head = made(ensemble).to(dtype).eval()
    rows = features(0).to(dtype)
    together = head(rows)
    torch.testing.assert_close(torch.cat([head(row[None]) for row in rows]), together)
    assert torch.equal(head(rows), together)
    torch.testing.assert_close(head(rows.flip(0)).flip(0), together)


def test_a_head_is_what_its_contract_says():
    head = made()
    assert isinstance(head, LearningHead)
    count = sum(parameter.numel() for parameter in head.parameters())
    assert count == K * D * D + 3 * D * D + 2 * D + K * D
    with torch.device("meta"):  # how a run asks for shapes
        assert GroupFace(512, 32, "soft", 8, 0.1).vectors.weight.numel() == 8_388_608


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"groups": 1}, r"head\.groups is 1: give 2 or more"),
        ({"groups": 0}, r"head\.groups is 0: "),
        ({"ensemble": "mean"}, r"head\.ensemble is 'mean': give one of soft, hard"),
        ({"window": 0}, r"head\.window is 0: give 1 batch or more"),
        ({"weight": -0.1}, r"head\.weight is -0\.1: give 0 or more"),
        ({"weight": float("nan")}, r"head\.weight is nan: "),
    ],
)
def test_what_it_cannot_be_is_refused(options, line):
    with pytest.raises(ValueError, match=line):
        made(**{"ensemble": "soft", **options})


# Balance


def shares(seed, expects):
    """How four groups share images of which most have much in common, after a training on their own loss alone."""
    torch.manual_seed(seed)
    head = GroupFace(64, 4, "soft", window=4, weight=1.0).train()
    if not expects:
        head._expectation = lambda sums, images, step: torch.zeros_like(sums)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    common, counts = 3 * torch.randn(64), torch.zeros(4)
    for step in range(60):
        output = head.training_forward(torch.randn(64, 64) + common * (torch.rand(64, 1) < 0.8), step)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        if step >= 40:
            counts += output.counts["group"]
    return counts / counts.sum()


@pytest.mark.parametrize("seed", range(4))
def test_without_the_expectation_groups_collapse_and_with_it_they_stay_balanced(seed):
    balanced, plain = shares(seed, True), shares(seed, False)
    assert balanced.max() < 0.38
    assert balanced.min() > 0.1
    assert plain.max() > 0.4
    assert plain.min() < 0.05
    used, left = (float(torch.special.entr(one).sum().exp()) for one in (balanced, plain))
    assert used > 3.7
    assert left < 3.1
