"""What must hold for any embeddings, centres and options: CosFace, ArcFace and AdaFace on drawn examples."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import THETA, C, D, target_logits, with_centres

from facelab.loss.adaface import AdaFace
from facelab.loss.arcface import ArcFace
from facelab.loss.classifier import MarginLoss
from facelab.loss.cosface import CosFace

SAME = settings(max_examples=60, derandomize=True, deadline=None, database=None)  # the same examples every time
seeds = st.integers(0, 2**32 - 1)
scales = st.floats(1, 128)
norms = st.floats(0.01, 200)


def cosface(margin, scale=64.0, d=D, c=C):
    return CosFace(d, c, scale=scale, margin=margin)


def arcface(margin, scale=64.0, past_pi="monotone", d=D, c=C):
    return ArcFace(d, c, scale=scale, margin=margin, gradient=True, past_pi=past_pi)


def adaface(margin, scale=64.0, d=D, c=C):
    return AdaFace(d, c, scale=scale, margin=margin, concentration=0.333, t_alpha=0.5)


MARGINS = pytest.mark.parametrize("build", [cosface, arcface, adaface])


def batch(seed, norm, rows=5):
    """Embeddings near to and far from their centres, of about the given length."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(C, D, generator=generator, dtype=torch.float64)
    labels = torch.randint(C, (rows,), generator=generator)
    mixture = torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    embeddings = mixture * weight[labels] + torch.randn(rows, D, generator=generator, dtype=torch.float64)
    lengths = norm * torch.rand(rows, 1, generator=generator, dtype=torch.float64).add(0.5)
    return torch.nn.functional.normalize(embeddings) * lengths, weight, labels


def value_and_gradient(loss, embeddings, weight, labels):
    leaf = embeddings.clone().requires_grad_()
    value = with_centres(loss, weight)(leaf, labels, 0).loss
    value.backward()
    return value.detach(), leaf.grad


@MARGINS
@SAME
@given(seed=seeds, scale=scales, norm=norms)
def test_margin_zero_is_normalised_softmax(build, seed, scale, norm):
    embeddings, weight, labels = batch(seed, norm)
    cosines = torch.nn.functional.normalize(embeddings) @ torch.nn.functional.normalize(weight).T
    if build is adaface and cosines.abs().max() > 0.998:
        return  # its clipping of cosines, which it does with any margin
    expected = value_and_gradient(MarginLoss(D, C, scale=scale), embeddings, weight, labels)
    actual = value_and_gradient(build(0.0, scale), embeddings, weight, labels)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@MARGINS
@SAME
@given(seed=seeds, scale=scales, norm=norms, margins=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_larger_margin_never_lowers_the_loss(build, seed, scale, norm, margins):
    embeddings, weight, labels = batch(seed, norm)
    small, large = (
        with_centres(build(margin, scale), weight)(embeddings, labels, 0).loss.item() for margin in sorted(margins)
    )
    assert large >= small - 1e-12 * (1 + small)


@MARGINS
@SAME
@given(seed=seeds, norm=norms, margin=st.floats(0, 1))
def test_the_loss_is_at_least_the_softmaxs_and_finite(build, seed, norm, margin):
    embeddings, weight, labels = batch(seed, norm)
    value, gradient = value_and_gradient(build(margin), embeddings, weight, labels)
    assert 0 <= value < 64 * 4
    assert gradient.isfinite().all()


@SAME
@given(seed=seeds, factor=st.floats(1e-3, 1e3), margin=st.floats(0, 1), past_pi=st.sampled_from(["monotone", "clip"]))
def test_scaling_the_embedding_changes_nothing_for_arcface(seed, factor, margin, past_pi):
    embeddings, weight, labels = batch(seed, 10.0)
    loss = arcface(margin, past_pi=past_pi)
    value, gradient = value_and_gradient(loss, embeddings, weight, labels)
    scaled, scaled_gradient = value_and_gradient(loss, embeddings * factor, weight, labels)
    torch.testing.assert_close(scaled, value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(scaled_gradient * factor, gradient, rtol=1e-6, atol=1e-9)


@MARGINS
@SAME
@given(seed=seeds, norm=norms, margin=st.floats(0, 1))
def test_the_order_of_rows_and_of_classes_does_not_matter(build, seed, norm, margin):
    embeddings, weight, labels = batch(seed, norm)
    value, gradient = value_and_gradient(build(margin), embeddings, weight, labels)
    rows, classes = torch.randperm(len(labels)), torch.randperm(C)
    mixed, mixed_gradient = value_and_gradient(
        build(margin), embeddings[rows], weight[classes], classes.argsort()[labels[rows]]
    )
    torch.testing.assert_close(mixed, value, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mixed_gradient, gradient[rows], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("margin", [0.0, 0.35, 1.0])
def test_cosface_over_all_angles(margin):
    actual = target_logits(cosface(margin), THETA)
    np.testing.assert_allclose(actual, [64 * (math.cos(theta) - margin) for theta in THETA], rtol=0, atol=1e-11)


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.2])
@pytest.mark.parametrize(
    ("past_pi", "beyond"),
    [
        ("monotone", lambda theta, margin: math.cos(theta) - margin * math.sin(margin)),
        ("unguarded", lambda theta, margin: math.cos(theta + margin)),
        ("clip", lambda theta, margin: -1.0),
        ("clamp_angle", lambda theta, margin: -1.0),
    ],
)
def test_arcface_over_all_angles(margin, past_pi, beyond):
    expected = [
        64 * (math.cos(theta + margin) if theta + margin <= math.pi else beyond(theta, margin)) for theta in THETA
    ]
    actual = target_logits(arcface(margin, past_pi=past_pi), THETA)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10)
