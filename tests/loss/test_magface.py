import math

import numpy as np
import pytest
import torch
from reference import THETA, C, D, Golden, check_edges, check_gradient, sample, target_logits, with_centres

from facelab.loss.magface import MagFace


def magface(d=D, c=C, **options):
    paper = {"scale": 64.0, "norm_low": 10.0, "norm_high": 110.0, "margin_low": 0.45, "margin_high": 0.8}
    return MagFace(d, c, **{**paper, "lambda_norm": 35.0, "easy_margin": False, **options})


@pytest.mark.parametrize("easy", [True, False])
def test_golden(easy):
    golden = Golden(f"magface_{'easy' if easy else 'hard'}_lg35")
    loss = golden.compare(magface(512, 20, easy_margin=easy))
    _, logs, _ = loss(golden.embeddings, golden.labels, 0)
    assert logs["regulariser"].item() == pytest.approx(35 * golden.values["loss_g"].item(), rel=1e-12)


def test_golden_margins():
    golden = Golden("magface_easy_lg35")
    actual = magface().margin(golden.embeddings.norm(dim=1))
    np.testing.assert_allclose(actual, golden.values["margin"][:, 0], rtol=1e-12)


@pytest.mark.parametrize("easy", [False, True])
@pytest.mark.parametrize(("norm", "margin"), [(3.0, 0.45), (10.0, 0.45), (60.0, 0.625), (110.0, 0.8), (400.0, 0.8)])
def test_target_over_all_angles(norm, margin, easy):
    expected = []
    for theta in THETA:
        value = math.cos(theta + margin)
        if easy:
            value = value if theta < math.pi / 2 else math.cos(theta)
        elif theta + margin > math.pi:
            value = math.cos(theta) - margin * math.sin(margin)
        expected.append(64 * value)
    actual = target_logits(magface(easy_margin=easy), THETA, norms=norm)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("easy", [False, True])
def test_gradient_is_the_derivative(easy):
    """Through the length too, on both sides of its lower bound and past π."""
    check_gradient(magface(8, 5, easy_margin=easy, norm_low=6.0, norm_high=12.0))
    check_gradient(magface(8, 5, easy_margin=easy, norm_low=6.0, norm_high=12.0, margin_low=1.3, margin_high=1.57))


def test_the_regulariser_lengthens_embeddings():
    embeddings, weight, labels = sample()
    lengths = torch.linspace(5, 130, len(embeddings), dtype=torch.float64)
    leaf = (torch.nn.functional.normalize(embeddings) * lengths[:, None]).requires_grad_()
    loss = with_centres(magface(margin_low=0.5, margin_high=0.5), weight)
    value, logs, _ = loss(leaf, labels, 0)
    value.backward()
    clamped = np.clip(lengths.numpy(), 10, 110)
    assert logs["regulariser"].item() == pytest.approx(35 * (clamped / 12100 + 1 / clamped).mean())
    pull = (leaf.grad * leaf.detach()).sum(dim=1)
    inside = (lengths > 10) & (lengths < 110)
    assert (pull[inside] < 0).all()  # descending makes them longer
    torch.testing.assert_close(pull[~inside], torch.zeros_like(pull[~inside]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("easy", [False, True])
def test_finite_at_the_edges(easy, dtype):
    check_edges(lambda: magface(easy_margin=easy), dtype)
    check_edges(lambda: magface(easy_margin=easy, norm_low=1e-3), dtype)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, "scale=0"),
        ({"norm_low": 0.0}, "norm_low=0"),
        ({"norm_high": 10.0}, "norm_high=10"),
        ({"margin_low": -0.1}, "margin_low=-0.1"),
        ({"margin_high": 0.4}, "margin_high=0.4"),
        ({"margin_high": 1.6}, "margin_high=1.6"),
        ({"lambda_norm": -1.0}, "lambda_norm=-1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        magface(**options)
