"""The slope of every target map over all angles: the derivative of its value, or 1 where it is straight through."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from reference import THETA, C, D

from facelab.loss.classifier import Context, MarginLoss

FILES = sorted((Path(__file__).parents[2] / "conf" / "loss").glob("*.yaml"))
CONF = {
    path.stem: path for path in FILES if "defaults" not in OmegaConf.load(path)
}  # a sum's parts have files of their own
# Beside the yamls' own values. A margin that depends on the length is seen at several.
OPTIONS = {
    "arcface": [{"past_pi": past_pi} for past_pi in ("unguarded", "clip", "clamp_angle")] + [{"margin": 1.2}],
    "combined": [{"m1": 0.9, "m2": 0.4}, {"m1": 4.0}],
    "magface": [{"easy_margin": True}],
    "sphereface": [{"lambda_base": 0.0, "lambda_min": 0.0}, {"scale": 30.0, "margin": 1.7}],
    "sphereface2": [{"exponent": 1.0}, {"exponent": 2.5}],
}
STEP = 1e-6
COSINES = np.cos(THETA[1:-1])  # at the ends some slopes are infinite; those are tested to be finite


def build(name, **options):
    """The loss of a yaml, its statistics at rest in the middle of their range."""
    conf = OmegaConf.load(CONF[name])
    conf.update(options)
    loss = instantiate(conf, embedding_size=D, num_classes=C)
    if not isinstance(loss, MarginLoss):
        return None
    return loss.double().eval()


def target(loss, cosines, norm):
    """(values, slopes) of the target map, float64; its own class is class 0."""
    leaf = torch.tensor(cosines, dtype=torch.float64, requires_grad=True)
    context = Context(torch.full_like(leaf, norm), torch.zeros(len(leaf), dtype=torch.int64), 100, False)
    values = loss.target(leaf, context)
    (slopes,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach().numpy(), slopes.numpy()


CASES = [(name, options) for name in CONF if build(name) for options in ({}, *OPTIONS.get(name, []))]


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("norm", [2.0, 30.0, 90.0])
def test_the_slope_is_the_derivative(name, options, norm):
    """By central differences, but where the map jumps or bends within them: at most at a few angles."""
    loss = build(name, **options)
    if name == "adaface":
        loss.std_norm.fill_(20.0)
    _, slopes = target(loss, COSINES, norm)
    (low, _), (high, _) = (target(loss, COSINES + step, norm) for step in (-STEP, STEP))
    wrong = ~np.isclose(slopes, (high - low) / (2 * STEP), rtol=2e-3, atol=1e-5)
    if options.get("past_pi") == "clamp_angle":  # −1 with the slope 1, by its definition
        past = -np.cos(loss.margin) > COSINES
        assert past.any()
        assert wrong[past].all()
        assert (slopes[past] == 1).all()
        wrong &= ~past
    assert wrong.sum() <= 6, THETA[1:-1][wrong]


@pytest.mark.parametrize("name", [name for name in CONF if "gradient" in OmegaConf.load(CONF[name])])
def test_straight_through_has_the_values_and_the_slope_one(name):
    true, straight = build(name), build(name, gradient="straight_through")
    values, slopes = target(true, COSINES, 1.0)
    other, ones = target(straight, COSINES, 1.0)
    np.testing.assert_allclose(other, values, rtol=0, atol=1e-12)
    assert (ones == 1).all()
    assert not np.isclose(slopes, 1, atol=0.01).all()


def test_the_true_slope_of_arcface_over_the_other():
    """What docs and docstring say: sin(θ+m)/sinθ, 1 at (π − m)/2."""
    theta = np.linspace(0.05, np.pi - 0.55, 50)
    _, slopes = target(build("arcface"), np.cos(theta), 1.0)
    np.testing.assert_allclose(slopes, np.sin(theta + 0.5) / np.sin(theta), rtol=1e-9)
    assert target(build("arcface"), [np.cos((np.pi - 0.5) / 2)], 1.0)[1] == pytest.approx(1.0)


NEVER_ABOVE = [  # another scale of similarity, or made to rise: left out
    (name, options)
    for name, options in CASES
    if name not in ("sphereface2", "adaface") and "past_pi" not in options and options.get("m1", 1) >= 1
]


@pytest.mark.parametrize(("name", "options"), NEVER_ABOVE)
def test_a_margin_makes_it_harder_at_every_angle(name, options):
    values, _ = target(build(name, **options), COSINES, 30.0)
    assert (values <= COSINES + 1e-12).all()
