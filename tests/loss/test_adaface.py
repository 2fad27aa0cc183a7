import math

import numpy as np
import pytest
import torch
from reference import THETA, C, D, Golden, check_edges, check_gradient, sample, target_logits, with_centres

from facelab.loss.adaface import AdaFace


def adaface(d=D, c=C, **options):
    return AdaFace(d, c, **{"scale": 64.0, "margin": 0.4, "concentration": 0.333, "t_alpha": 0.01, **options})


def test_golden_over_three_calls():
    """Every call moves the averages, which are used as moved."""
    first, third = Golden("adaface_t0.01_step1"), Golden("adaface_t0.01_step3")
    loss = adaface(512, 20)
    first.compare(loss)
    assert loss.mean_norm.item() == pytest.approx(first.values["batch_mean"].item(), rel=1e-12)
    assert loss.std_norm.item() == pytest.approx(first.values["batch_std"].item(), rel=1e-12)
    loss(first.embeddings, first.labels, 1)
    loss.zero_grad()
    third.compare(loss, step=2)
    assert loss.mean_norm.item() == pytest.approx(third.values["batch_mean"].item(), rel=1e-12)
    assert loss.std_norm.item() == pytest.approx(third.values["batch_std"].item(), rel=1e-12)


def in_state(mean, std, **options):
    loss = adaface(**options).double().eval()
    loss.mean_norm.fill_(mean)
    loss.std_norm.fill_(std)
    return loss


@pytest.mark.parametrize("norm", [0.0005, 5.0, 12.0, 20.0, 24.0, 33.0, 90.0, 500.0])
def test_target_over_all_angles(norm):
    quality = min(max(0.333 * (min(max(norm, 1e-3), 100.0) - 20) / (5 + 1e-3), -1.0), 1.0)
    expected = []
    for theta in THETA:
        theta = min(max(theta, math.acos(0.999)), math.acos(-0.999))
        added = min(max(theta - 0.4 * quality, 1e-3), math.pi - 1e-3)
        expected.append(64 * (math.cos(added) - 0.4 * (1 + quality)))
    actual = target_logits(in_state(20.0, 5.0), THETA, norms=norm)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10)


def test_short_rows_see_arcface_and_average_ones_cosface():
    theta = np.linspace(0.1, 2.5, 50)
    np.testing.assert_allclose(target_logits(in_state(20.0, 5.0), theta, norms=1.0), 64 * np.cos(theta + 0.4))
    np.testing.assert_allclose(target_logits(in_state(20.0, 5.0), theta, norms=20.0), 64 * (np.cos(theta) - 0.4))


@pytest.mark.parametrize("quality", [-1.0, -0.3, 0.0, 0.6, 1.0])
def test_gradient_is_the_derivative(quality, monkeypatch):
    loss = adaface(8, 5).eval()
    frozen = torch.full((6,), quality, dtype=torch.float64)
    monkeypatch.setattr(loss, "_quality", lambda context: frozen)
    check_gradient(loss)


def test_the_length_has_no_gradient():
    embeddings, weight, labels = sample()
    leaf = embeddings.clone().requires_grad_()
    with_centres(adaface(), weight)(leaf, labels, 0).loss.backward()
    radial = (leaf.grad * embeddings).sum(dim=1)
    assert radial.abs().max() < 1e-12 * leaf.grad.norm()


def test_the_averages_move_in_training_only_and_are_saved():
    embeddings, weight, labels = sample()
    loss = with_centres(adaface(t_alpha=0.25), weight)
    norms = embeddings.norm(dim=1)
    loss.eval()(embeddings, labels, 0)
    assert (loss.mean_norm.item(), loss.std_norm.item()) == (20.0, 100.0)
    loss.train()(embeddings, labels, 0)
    assert loss.mean_norm.item() == pytest.approx(0.75 * 20 + 0.25 * norms.mean().item())
    assert loss.std_norm.item() == pytest.approx(0.75 * 100 + 0.25 * norms.std().item())
    other = adaface().double()
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.mean_norm, loss.mean_norm)
    assert torch.equal(other.std_norm, loss.std_norm)


def test_they_move_once_a_call_and_not_in_the_backward_pass():
    embeddings, weight, labels = sample()
    loss = with_centres(adaface(t_alpha=0.25), weight)
    value = loss(embeddings.requires_grad_(), labels, 0).loss
    moved = loss.mean_norm.item()
    value.backward()
    assert loss.mean_norm.item() == moved


def test_a_single_row_leaves_the_spread_as_it_was():
    loss = adaface()
    assert loss(torch.ones(1, D), torch.tensor([0]), 0).loss.isfinite()
    assert loss.std_norm.item() == 100.0
    assert loss.mean_norm.item() == pytest.approx(20 * 0.99 + 0.01 * 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("t_alpha", [0.01, 1.0])
def test_finite_at_the_edges(t_alpha, dtype):
    check_edges(lambda: adaface(t_alpha=t_alpha), dtype)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, "scale=0"),
        ({"margin": -0.1}, "margin=-0.1"),
        ({"margin": 22.9}, "margin=22.9"),
        ({"concentration": 0.0}, "concentration=0"),
        ({"t_alpha": 0.0}, "t_alpha=0"),
        ({"t_alpha": 1.5}, "t_alpha=1.5"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        adaface(**options)
