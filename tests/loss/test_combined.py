import math

import numpy as np
import pytest
import torch
from reference import THETA, C, D, Golden, check_edges, check_gradient, target_logits

from facelab.loss.arcface import ArcFace
from facelab.loss.combined import Combined
from facelab.loss.cosface import CosFace


def combined(d=D, c=C, m1=1.0, m2=0.3, m3=0.2, gradient=True):
    return Combined(d, c, scale=64.0, m1=m1, m2=m2, m3=m3, gradient=gradient)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("arcface_insightface_s64_m0.5", {"m2": 0.5, "m3": 0.0, "gradient": "straight_through"}),
        ("arcface_curricularrepo_s64_m0.5", {"m2": 0.5, "m3": 0.0}),
        ("cosface_insightface_s64_m0.35", {"m2": 0.0, "m3": 0.35}),
        ("cosface_adafacerepo_s64_m0.4", {"m2": 0.0, "m3": 0.4}),
        ("softmax_norm_formula_s64", {"m2": 0.0, "m3": 0.0}),
    ],
)
def test_golden_of_its_special_cases(name, options):
    Golden(name).compare(combined(512, 20, **options))


@pytest.mark.parametrize(
    ("m1", "m2", "m3"), [(1.0, 0.3, 0.2), (0.9, 0.4, 0.15), (1.35, 0.0, 0.0), (4.0, 0.5, 0.1), (0.5, 0.0, 0.0)]
)
def test_target_over_all_angles(m1, m2, m3):
    """Past π the target is the cosine, lowered by what the margin amounts to there, so that it goes on falling."""
    border = (math.pi - m2) / m1
    margin = math.pi - border
    lower = max(margin * math.sin(margin), 1 + math.cos(border))
    expected = [
        64 * ((math.cos(m1 * theta + m2) if theta <= border else math.cos(theta) - lower) - m3) for theta in THETA
    ]
    actual = target_logits(combined(m1=m1, m2=m2, m3=m3), THETA)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10)
    assert (np.diff(actual) < 0).all()


def test_special_cases_over_all_angles():
    arcface = ArcFace(D, C, scale=64.0, margin=0.5, gradient=True, past_pi="monotone")
    cosface = CosFace(D, C, scale=64.0, margin=0.35)
    for special, options in ((arcface, {"m2": 0.5, "m3": 0.0}), (cosface, {"m2": 0.0, "m3": 0.35})):
        actual = target_logits(combined(**options), THETA)
        np.testing.assert_allclose(actual, target_logits(special, THETA), rtol=0, atol=1e-11)


@pytest.mark.parametrize("options", [{}, {"m1": 0.9, "m2": 0.4}, {"m1": 1.35}, {"m1": 3.0}])
def test_gradient_is_the_derivative(options):
    check_gradient(combined(8, 5, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"m1": 1.35}, {"m1": 4.0}, {"gradient": "straight_through"}])
def test_finite_at_the_edges(options, dtype):
    check_edges(lambda: combined(**options), dtype)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"m1": 0.4}, "m1=0.4"),
        ({"m1": 5.5}, "m1=5.5"),
        ({"m2": 28.6}, "m2=28.6"),
        ({"m3": -0.1}, "m3=-0.1"),
        ({"gradient": "no"}, "gradient=no"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        combined(**options)
