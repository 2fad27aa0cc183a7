import itertools

import numpy as np
import pytest
import torch
from reference import Golden, close

from facelab.loss.base import NotFinite
from facelab.loss.contrastive import Contrastive
from facelab.loss.triplet import Triplet

D = 6
MINING = ("batch_all", "batch_hard", "semi_hard")


def contrastive(margin=1.0, squared=True):
    return Contrastive(D, 5, margin=margin, squared=squared)


def triplet(mining="semi_hard", margin=0.2, squared=True):
    return Triplet(D, 5, margin=margin, mining=mining, squared=squared)


ALL = [contrastive, lambda: contrastive(squared=False)]
ALL += [lambda mining=mining, squared=squared: triplet(mining, 0.4, squared) for mining in MINING for squared in (0, 1)]


def sample(seed=0, spread=1.0):
    """12 embeddings of 4 persons with 4, 4, 3 and 1 images, float64."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 0, 1])
    centres = torch.randn(4, D, generator=generator, dtype=torch.float64)
    noise = torch.randn(12, D, generator=generator, dtype=torch.float64)
    return (centres[labels] + spread * noise) * 2, labels


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("pml_contrastive_default", contrastive(squared=False)),
        ("pml_triplet_default", triplet("batch_all", 0.05, squared=False)),
        ("pml_triplet_m0.2_semihard", triplet("semi_hard", 0.2, squared=False)),
    ],
)
def test_golden(name, loss):
    golden = Golden(name)
    embeddings = golden.embeddings.clone().requires_grad_()
    value = loss(embeddings, golden.labels, 0).loss
    value.backward()
    assert value.item() == pytest.approx(golden.values["loss"].item(), rel=1e-12)
    close(embeddings.grad, golden.values["grad_emb"])


def mean_of_positive(terms):
    terms = [term for term in terms if term > 0]
    return sum(terms) / max(len(terms), 1)


def plain_distances(embeddings):
    unit = embeddings.numpy() / np.linalg.norm(embeddings.numpy(), axis=1, keepdims=True)
    return [[np.linalg.norm(a - b) for b in unit] for a in unit]


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_contrastive_is_its_formula(squared, seed):
    embeddings, labels = sample(seed)
    d = plain_distances(embeddings)
    near, far = [], []
    for i, j in itertools.permutations(range(12), 2):
        if labels[i] == labels[j]:
            near.append(d[i][j] ** 2 / 2 if squared else d[i][j])
        else:
            gap = max(0.0, 1.2 - d[i][j])
            far.append(gap**2 / 2 if squared else gap)
    expected = mean_of_positive(near) + mean_of_positive(far)
    actual = contrastive(margin=1.2, squared=squared)(embeddings, labels, 0).loss.item()
    assert actual == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("mining", MINING)
@pytest.mark.parametrize("seed", range(3))
def test_triplet_is_its_formula(mining, squared, seed):
    embeddings, labels = sample(seed)
    d = [[value**2 if squared else value for value in row] for row in plain_distances(embeddings)]
    terms = []
    for a in range(12):
        positives = [d[a][p] for p in range(12) if p != a and labels[p] == labels[a]]
        negatives = [d[a][n] for n in range(12) if labels[n] != labels[a]]
        if mining == "batch_hard" and positives:
            positives, negatives = [max(positives)], [min(negatives)]
        for near, far in itertools.product(positives, negatives):
            if mining != "semi_hard" or near < far <= near + 0.4:
                terms.append(near - far + 0.4)
    assert any(term > 0 for term in terms)
    actual = triplet(mining, 0.4, squared)(embeddings, labels, 0).loss.item()
    assert actual == pytest.approx(mean_of_positive(terms), rel=1e-12)


@pytest.mark.parametrize("build", ALL)
def test_gradient_is_the_derivative(build):
    embeddings, labels = sample()
    loss = build()
    assert torch.autograd.gradcheck(lambda x: loss(x, labels, 0).loss, embeddings.requires_grad_(), eps=1e-7)


@pytest.mark.parametrize("build", ALL)
@pytest.mark.parametrize("case", ["one image each", "one person", "far apart", "one row"])
def test_an_empty_set_gives_zero_and_zero_gradients(build, case):
    embeddings, labels = {
        "one image each": (torch.eye(6, D), torch.arange(6)),  # 1.414 apart, beyond the margins
        "one person": (torch.ones(6, D), torch.zeros(6, dtype=torch.int64)),
        "far apart": (torch.eye(3, D).repeat_interleave(2, dim=0), torch.arange(6) // 2),
        "one row": (torch.eye(1, D), torch.tensor([4])),
    }[case]
    embeddings.requires_grad_()
    value, logs, _ = build()(embeddings, labels, 0)
    value.backward()
    assert value.item() == 0
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))
    assert logs["accuracy"].isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("build", ALL)
def test_finite_at_the_edges(build, dtype):
    """Equal, opposite and zero embeddings, and lengths that overflow in half precision."""
    embeddings, labels = sample(spread=0.5)
    embeddings[0], embeddings[1] = embeddings[4], -embeddings[4]
    embeddings[2], embeddings[3] = 0, 0
    embeddings[5] = 30000
    embeddings = embeddings.to(dtype).requires_grad_()
    value, logs, _ = build()(embeddings, labels, 0)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert value > 0
    assert embeddings.grad.dtype == dtype
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad.any()
    assert not embeddings.grad[2:4].any()
    assert 0 <= logs["accuracy"] <= 1


@pytest.mark.parametrize("build", ALL)
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_no_number_shows(build, wrong):
    embeddings, labels = sample()
    embeddings[3, 2] = wrong
    with pytest.raises(NotFinite, match=r"1 of \d+ rows are NaN or infinite, row 3 first"):
        build()(embeddings, labels, 0)


@pytest.mark.parametrize("build", ALL)
def test_autocast_changes_nothing(build):
    embeddings, labels = sample()
    expected = build()(embeddings.float(), labels, 0).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(build()(embeddings.float(), labels, 0).loss, expected)


def test_accuracy_is_of_the_nearest_other_image():
    embeddings = torch.eye(6, D)[[0, 0, 1, 1, 2, 3]]
    embeddings[:, 5] = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.3, 0.3])
    labels = torch.tensor([0, 0, 1, 1, 2, 3])
    assert contrastive()(embeddings, labels, 0).logs["accuracy"].item() == 1  # rows 4 and 5 have no second image
    labels = torch.tensor([0, 0, 1, 2, 2, 3])
    assert triplet()(embeddings, labels, 0).logs["accuracy"].item() == pytest.approx(2 / 4)


@pytest.mark.parametrize("build", ALL)
def test_descending_tells_persons_apart(build):
    """Descending brings images of a person together and moves persons apart."""
    embeddings, labels = sample(spread=2.0)
    moved, loss = embeddings.clone().requires_grad_(), build()
    optimizer = torch.optim.SGD([moved], lr=3.0)
    accuracies = []
    for step in range(60):
        optimizer.zero_grad()
        value, logs, _ = loss(moved, labels, step)
        value.backward()
        optimizer.step()
        accuracies.append(logs["accuracy"].item())
    assert accuracies[0] < 0.6
    assert accuracies[-1] > 0.85


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: contrastive(margin=0.0), "margin=0"),
        (lambda: contrastive(margin=60.0), "margin=60"),
        (lambda: triplet(margin=4.5), "margin=4.5"),
        (lambda: triplet(mining="hard"), "mining=hard.*batch_all, batch_hard, semi_hard"),
        (lambda: triplet()(torch.ones(3, D, 2), torch.zeros(3, dtype=torch.int64), 0), "shape"),
        (lambda: triplet()(torch.ones(3, D), torch.zeros(4, dtype=torch.int64), 0), "3 embeddings need as many labels"),
        (lambda: contrastive()(torch.ones(3, D), torch.zeros(3, dtype=torch.int32), 0), "int32"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_nothing_is_owned():
    for build in ALL:
        assert list(build().parameters()) == build().sharded_parameters() == []
