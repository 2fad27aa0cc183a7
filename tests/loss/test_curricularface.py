import math

import numpy as np
import pytest
import torch
from reference import THETA, C, D, Golden, check_edges, check_gradient, sample, target_logits, with_centres

from facelab.loss.curricularface import CurricularFace


def curricular(d=D, c=C, **options):
    return CurricularFace(d, c, **{"scale": 64.0, "margin": 0.5, "t_alpha": 0.01, **options})


def test_golden_over_three_calls():
    """Every call moves t, which is used as moved."""
    first, third = Golden("curricularface_step1"), Golden("curricularface_step3")
    loss = curricular(512, 20)
    first.compare(loss)
    assert loss.t.item() == pytest.approx(first.values["t"].item(), rel=1e-10)
    loss(first.embeddings, first.labels, 1)
    loss.zero_grad()
    third.compare(loss, step=2)
    assert loss.t.item() == pytest.approx(third.values["t"].item(), rel=1e-10)


def test_target_over_all_angles():
    expected = [
        64 * (math.cos(theta + 0.5) if theta + 0.5 <= math.pi else math.cos(theta) - 0.5 * math.sin(0.5))
        for theta in THETA
    ]
    np.testing.assert_allclose(target_logits(curricular(), THETA), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
def test_negatives_over_all_angles(t):
    """One row, its own class at 60°, and a class at every angle."""
    own = math.pi / 3
    weight = torch.zeros(1 + len(THETA), D, dtype=torch.float64)
    weight[0, 0], weight[0, 1] = math.cos(own), math.sin(own)
    weight[1:, 0], weight[1:, 2] = torch.from_numpy(np.cos(THETA)), torch.from_numpy(np.sin(THETA))
    loss = with_centres(curricular(c=len(weight)).eval(), weight)
    loss.t.fill_(t)
    logits = loss.logits(torch.eye(D, dtype=torch.float64)[:1], torch.tensor([0]), 0)[0].detach().numpy()
    hard = np.less(THETA, own + 0.5)
    assert hard.any()
    assert not hard.all()
    np.testing.assert_allclose(logits[1:], 64 * np.where(hard, np.cos(THETA) * (t + np.cos(THETA)), np.cos(THETA)))
    assert logits[0] == pytest.approx(64 * math.cos(own + 0.5))


@pytest.mark.parametrize("t", [0.0, 0.4])
def test_gradient_is_the_derivative(t):
    loss = curricular(8, 5).double().eval()
    loss.t.fill_(t)
    check_gradient(loss)


def test_t_moves_in_training_only_and_is_saved():
    embeddings, weight, labels = sample()
    loss = with_centres(curricular(t_alpha=0.25), weight)
    loss.eval()(embeddings, labels, 0)
    assert loss.t.item() == 0
    value = loss.train()(embeddings.requires_grad_(), labels, 0).loss
    unit = torch.nn.functional.normalize
    mean = (unit(embeddings) * unit(weight)[labels]).sum(dim=1).mean().item()
    assert loss.t.item() == pytest.approx(0.25 * mean)
    value.backward()
    assert loss.t.item() == pytest.approx(0.25 * mean)
    other = curricular().double()
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.t, loss.t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_the_edges(dtype):
    check_edges(curricular, dtype)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"scale": 0.0}, "scale=0"), ({"margin": 28.6}, "margin=28.6"), ({"t_alpha": 0.0}, "t_alpha=0")],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        curricular(**options)
