import math

import numpy as np
import pytest
import torch
from reference import THETA, C, D, Golden, check_edges, check_gradient, target_logits

from facelab.loss.sphereface import SphereFace

OPENSPHERE = {"scale": 30.0, "margin": 1.7, "lambda_base": 0.0, "lambda_min": 0.0, "gradient": "straight_through"}


def sphereface(d=D, c=C, **options):
    paper = {"scale": "norm", "margin": 4.0, "lambda_base": 1000.0, "lambda_gamma": 0.12, "lambda_power": 1.0}
    return SphereFace(d, c, **{**paper, "lambda_min": 5.0, "gradient": True, **options})


@pytest.mark.parametrize("name", ["asoftmax_caffe_m4_iter1", "asoftmax_caffe_m4_iter2000"])
def test_golden_values_of_the_authors_layer(name):
    """Its value is the formula's; its backward pass is written by hand and no derivative of it."""
    step = 0 if name.endswith("iter1") else 1999
    golden = Golden(name)
    golden.compare(sphereface(512, 20), step=step, but=("grad_emb", "grad_weight"))
    assert sphereface().annealing(step) == pytest.approx(golden.values["lam"].item(), rel=1e-12)


def test_golden_gradient():
    Golden("asoftmax_sphereproduct_m4_iter2000").compare(sphereface(512, 20), step=1999)


def test_golden_weight_gradient_of_the_authors_layer():
    """Towards unit centres the authors' hand-written gradient is the straight-through one."""
    golden = Golden("asoftmax_caffe_m4_iter1")
    golden.compare(sphereface(512, 20, gradient="straight_through"), unit_centres=True, but=("grad_emb",))


def test_golden_opensphere():
    Golden("sphereface_opensphere_s30_m1.7").compare(sphereface(512, 20, **OPENSPHERE), unit_centres=True)


def psi(theta, margin):
    """Piece by piece, as the paper draws it: |cos| sewn together downwards."""
    pieces = [(k * math.pi / margin, (k + 1) * math.pi / margin) for k in range(math.ceil(margin) + 1)]
    k = next(k for k, (low, high) in enumerate(pieces) if low <= theta <= high)
    return (math.cos(margin * theta) if k % 2 == 0 else -math.cos(margin * theta)) - 2 * k


@pytest.mark.parametrize(("margin", "step"), [(4.0, 0), (4.0, 100), (4.0, 5000), (3.0, 5000), (1.7, 5000), (1.0, 9)])
def test_target_over_all_angles(margin, step):
    weight = max(5.0, 1000 / (1 + 0.12 * (step + 1)))
    expected = [12.5 * (psi(theta, margin) + weight * math.cos(theta)) / (1 + weight) for theta in THETA]
    actual = target_logits(sphereface(margin=margin), THETA, norms=12.5, step=step)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-11)


def test_it_falls_over_all_angles_and_below_the_cosine():
    for margin in (1.5, 2.0, 4.0):
        values = target_logits(sphereface(margin=margin, lambda_base=0.0, lambda_min=0.0), THETA)
        assert (np.diff(values) <= 1e-12).all()  # flat where two pieces meet, else falling
        assert (values <= np.cos(THETA) + 1e-12).all()
        assert values[-1] == pytest.approx(psi(math.pi, margin))


def test_annealing_starts_at_iteration_one_and_ends_at_its_floor():
    loss = sphereface()
    assert loss.annealing(0) == pytest.approx(892.857142857)
    assert loss.annealing(1657) > 5.0
    assert loss.annealing(1659) == 5.0
    assert sphereface(lambda_power=0.0).annealing(10**6) == 1000.0


@pytest.mark.parametrize("options", [{}, {**OPENSPHERE, "gradient": True}, {"lambda_base": 0.0, "lambda_min": 0.0}])
def test_gradient_is_the_derivative(options):
    check_gradient(sphereface(8, 5, **options), step=3)


def test_the_length_has_a_gradient():
    embeddings = torch.randn(4, D, dtype=torch.float64, requires_grad=True)
    for scale in ("norm", 30.0):
        value = sphereface(scale=scale).double()(embeddings, torch.arange(4), 0).loss
        (gradient,) = torch.autograd.grad(value, embeddings)
        radial = (gradient * embeddings).sum(dim=1).abs() / gradient.norm(dim=1)
        assert (radial > 1e-3).all() if scale == "norm" else (radial < 1e-10).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"lambda_base": 0.0, "lambda_min": 0.0}, OPENSPHERE])
def test_finite_at_the_edges(options, dtype):
    check_edges(lambda: sphereface(**options), dtype)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "length"}, "scale=length.*norm"),
        ({"scale": 0.0}, "scale=0"),
        ({"margin": 0.9}, "margin=0.9"),
        ({"margin": 8.5}, "margin=8.5"),
        ({"lambda_base": -1.0}, "lambda_base=-1"),
        ({"lambda_gamma": -1.0}, "lambda_gamma=-1"),
        ({"lambda_power": -1.0}, "lambda_power=-1"),
        ({"lambda_min": float("nan")}, "lambda_min=nan"),
        ({"gradient": "false"}, "gradient=false.*true, straight_through"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sphereface(**options)
