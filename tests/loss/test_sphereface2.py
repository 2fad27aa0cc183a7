import math

import numpy as np
import pytest
import torch
from reference import THETA, C, D, Golden, check_edges, check_gradient, sample, target_logits, with_centres

from facelab.loss.sphereface2 import SphereFace2


def sphereface2(d=D, c=C, **options):
    paper = {"scale": 40.0, "margin": 0.4, "exponent": 3.0, "balance": 0.7, "gradient": True}
    return SphereFace2(d, c, **{**paper, **options})


def test_golden():
    golden = Golden("sphereface2_opensphere_default")
    loss = sphereface2(512, 20, gradient="straight_through")
    assert loss.bias.item() == pytest.approx(golden.values["bias"].item(), rel=1e-6)
    loss.bias.data = torch.from_numpy(golden.values["bias"])[0]
    golden.compare(loss, unit_centres=True)
    assert loss.bias.grad.item() == pytest.approx(golden.values["grad_bias"].item(), rel=1e-9)


def test_the_bias_starts_where_both_sides_pull_equally():
    many = (10**6, {"scale": 64.0, "exponent": 1.0})
    for classes, options in ((2, {}), (3, {}), (20, {}), many, (2, {"scale": 1e3})):
        loss = sphereface2(c=classes, **options)
        r, centre = loss.scale, 2 * 0.5**loss.exponent - 1
        with np.errstate(over="ignore"):
            own = np.exp(-np.logaddexp(0, r * (centre - 0.4) + loss.bias.item()))  # σ(−z)
            other = np.exp(-np.logaddexp(0, -r * (centre + 0.4) - loss.bias.item()))
        assert 0.7 * own == pytest.approx(0.3 * (classes - 1) * other, rel=2e-4)  # the bias is float32
    assert math.isfinite(sphereface2(c=1).bias.item())


@pytest.mark.parametrize("exponent", [1.0, 3.0, 2.5])
def test_target_over_all_angles(exponent):
    loss = sphereface2(exponent=exponent).double()
    loss.bias.data.fill_(1.25)
    # (1 + cosθ)/2 = cos²(θ/2)
    expected = [40 * (2 * math.cos(theta / 2) ** (2 * exponent) - 1 - 0.4) + 1.25 for theta in THETA]
    np.testing.assert_allclose(target_logits(loss, THETA), expected, rtol=0, atol=1e-11)


def test_loss_is_a_sum_of_binary_cross_entropies():
    embeddings, weight, labels = sample()
    loss = with_centres(sphereface2(scale=10.0), weight)
    logits = loss.logits(embeddings, labels, 0)
    yes = torch.nn.functional.one_hot(labels, C).double()
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, yes, reduction="none")
    expected = (50 / 10 * (0.7 * yes + 0.3 * (1 - yes)) * each).sum(dim=1).mean()
    torch.testing.assert_close(loss(embeddings, labels, 0).loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("exponent", [1.0, 3.0])
def test_gradient_is_the_derivative(exponent):
    check_gradient(sphereface2(8, 5, exponent=exponent))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"exponent": 2.5}, {"exponent": 1.0}, {"gradient": "straight_through"}])
def test_finite_at_the_edges(options, dtype):
    check_edges(lambda: sphereface2(**options), dtype)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, "scale=0"),
        ({"margin": -0.1}, "margin=-0.1"),
        ({"exponent": 0.5}, "exponent=0.5"),
        ({"balance": 0.0}, "balance=0"),
        ({"balance": 1.0}, "balance=1"),
        ({"gradient": "none"}, "gradient=none"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sphereface2(**options)
