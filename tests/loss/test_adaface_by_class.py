"""AdaFace by the class-standardised norm: AdaFace where classes are alike or unknown, and their running statistics."""

import numpy as np
import pytest
import torch
from reference import C, D, Golden, check_edges, sample, with_centres

from facelab.loss.adaface import AdaFace
from facelab.loss.adaface_by_class import AdaFaceByClass
from facelab.loss.classifier import Context

GIVEN = {"scale": 64.0, "margin": 0.4, "concentration": 0.333, "t_alpha": 0.01}


def by_class(d=D, c=C, **options):
    return AdaFaceByClass(d, c, **{**GIVEN, "least": 2, "memory": 1000, **options})


def context(norms, labels, training=True):
    norms = torch.as_tensor(norms, dtype=torch.float64)
    return Context(norms, torch.as_tensor(labels), 0, training)


@pytest.mark.parametrize("name", ["adaface_t0.01_step1", "adaface_t0.01_step3"])
def test_golden_where_every_class_has_the_statistics_of_all(name):
    golden, seen = Golden(name), 7.0
    loss = by_class(512, 20).double().eval()
    mean, std = (golden.values[key].item() for key in ("batch_mean", "batch_std"))
    loss.class_seen.fill_(seen)
    loss.class_mean.fill_(mean)
    loss.class_variance.fill_(std**2 * (seen - 1) / seen)  # σ is unbiased
    golden.compare(loss)


def test_golden_where_no_class_was_seen_enough():
    """Every call moves the averages of all, as in AdaFace."""
    loss = by_class(512, 20, least=1000)
    first, third = Golden("adaface_t0.01_step1"), Golden("adaface_t0.01_step3")
    first.compare(loss)
    loss(first.embeddings, first.labels, 1)
    loss.zero_grad()
    third.compare(loss, step=2)


def test_what_is_known_of_a_class_is_what_it_has_shown():
    rng = np.random.default_rng(0)
    loss, shown = by_class(c=6).double(), {}
    for _ in range(5):
        norms, labels = rng.uniform(5, 40, 11), rng.integers(5, size=11)
        found = loss._quality(context(norms, labels)).numpy()
        for norm, label in zip(norms, labels.tolist(), strict=True):
            shown.setdefault(label, []).append(norm)
        for norm, label, quality in zip(norms, labels.tolist(), found, strict=True):
            own = shown[label]
            mean, std = (
                (np.mean(own), np.std(own, ddof=1)) if len(own) > 1 else (loss.mean_norm.item(), loss.std_norm.item())
            )
            assert quality == pytest.approx(float(np.clip(0.333 * (norm - mean) / (std + 1e-3), -1, 1)), abs=1e-9)
    assert loss.class_seen.tolist() == [len(shown.get(label, [])) for label in range(6)]
    assert loss.class_seen[5] == loss.class_mean[5] == 0


def test_it_forgets_what_lies_behind_its_memory():
    rng, memory = np.random.default_rng(1), 4
    loss = by_class(c=2, memory=memory).double()
    seen, mean, variance = 0, 0.0, 0.0
    for _ in range(6):
        norms = rng.uniform(5, 40, 3)
        loss._quality(context(norms, [1, 1, 1]))
        before = min(seen, memory)
        apart, spread = norms.mean() - mean, ((norms - norms.mean()) ** 2).sum()
        variance = (before * variance + spread + apart**2 * before * 3 / (before + 3)) / (before + 3)
        mean, seen = mean + apart * 3 / (before + 3), seen + 3
        assert loss.class_mean[1].item() == pytest.approx(mean, rel=1e-12)
        assert loss.class_variance[1].item() == pytest.approx(variance, rel=1e-12)
    for _ in range(40):
        loss._quality(context([20.0, 20.0], [1, 1]))
    assert loss.class_mean[1].item() == pytest.approx(20)
    assert loss.class_variance[1].item() == pytest.approx(0, abs=1e-3)


def test_a_class_of_short_embeddings_is_not_one_of_bad_images():
    rng = np.random.default_rng(2)
    norms = np.concatenate([rng.normal(30, 1, 30), rng.normal(10, 1, 30)])
    labels = np.repeat([0, 1], 30)
    ours, plain = by_class(c=2).double(), AdaFace(D, 2, **{**GIVEN, "t_alpha": 1.0}).double()
    for loss in (ours, plain):
        loss._quality(context(norms, labels))
    asked = context([10.0, 30.0], [1, 0], training=False)
    assert plain._quality(asked).numpy() == pytest.approx([-0.33, 0.33], abs=0.03)
    assert ours._quality(asked).numpy() == pytest.approx([0, 0], abs=0.15)


def test_statistics_move_in_training_only_and_are_saved():
    embeddings, weight, labels = sample()
    loss = with_centres(by_class(), weight)
    loss.eval()(embeddings, labels, 0)
    assert loss.class_seen.sum() == 0
    loss.train()(embeddings, labels, 0).loss.backward()
    assert loss.class_seen.sum() == len(labels)
    assert {"class_seen", "class_mean", "class_variance"} < set(loss.sharded_parameters())
    other = by_class().double()
    other.load_state_dict(loss.state_dict())
    for name in ("class_seen", "class_mean", "class_variance"):
        assert torch.equal(getattr(other, name), getattr(loss, name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_the_edges(dtype):
    check_edges(by_class, dtype)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"least": 1}, "least=1 "), ({"memory": 4, "least": 5}, "memory=4 "), ({"margin": 2}, "margin=2")],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        by_class(**options)
