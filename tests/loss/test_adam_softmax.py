import numpy as np
import pytest
import torch
from reference import THETA, C, D, Golden, check_edges, check_gradient, close, sample, target_logits, with_centres

from facelab.loss.adam_softmax import AdaMSoftmax
from facelab.training.optimization import SGD, Poly


def adam(d=D, c=C, **options):
    return AdaMSoftmax(d, c, **{"scale": 30.0, "margin_low": 0.3, "margin_high": 0.4, "lambda_margin": 70.0, **options})


def test_golden():
    golden = Golden("adamsoftmax_facexzoo_s30_lam70")
    loss = adam(512, 20).double()
    loss.margins.data = torch.from_numpy(golden.values["margins"])[0].clone()
    golden.compare(loss, constant=70.0)  # FaceX-Zoo adds λ, so that the loss is never negative
    close(loss.margins.grad, golden.values["grad_margins"][0])
    _, logs, _ = loss(golden.embeddings, golden.labels, 0)
    assert logs["regulariser"].item() + 70 == pytest.approx(golden.values["lm"].item(), rel=1e-12)


def test_target_over_all_angles():
    loss = adam().double()
    loss.margins.data = torch.linspace(0.2, 0.8, C, dtype=torch.float64)
    np.testing.assert_allclose(target_logits(loss, THETA), 30 * np.cos(THETA) - 6, rtol=0, atol=1e-12)


def test_gradient_is_the_derivative():
    check_gradient(adam(8, 5))


def test_the_margins_stay_in_range_and_learn():
    embeddings, weight, labels = sample()
    loss = with_centres(adam(lambda_margin=0.0), weight)
    before = loss.margins.detach().clone()
    optimizer = torch.optim.SGD([loss.margins], lr=10.0)
    for step in range(4):
        optimizer.zero_grad()
        loss(embeddings, labels, step).loss.backward()
        optimizer.step()
    loss(embeddings, labels, 4)
    present = torch.isin(torch.arange(C), labels)
    assert not present.all()
    assert (loss.margins[present] == 0).all()  # cross-entropy alone lowers them, as far as it may
    assert torch.equal(loss.margins[~present], before[~present])
    loss.margins.data.fill_(1.5)
    loss(embeddings, labels, 5)
    assert (loss.margins == 1).all()


def test_the_regulariser_raises_every_margin_alike():
    embeddings, weight, labels = sample()
    gradients = []
    for strength in (0.0, 70.0):
        loss = with_centres(adam(lambda_margin=strength), weight)
        value, logs, _ = loss(embeddings, labels, 0)
        value.backward()
        gradients.append(loss.margins.grad)
        assert logs["regulariser"].item() == pytest.approx(-strength * loss.margins.mean().item())
    torch.testing.assert_close(gradients[1] - gradients[0], torch.full((C,), -70 / C, dtype=torch.float64))


def test_the_margins_are_a_group_of_their_own_without_weight_decay():
    loss = adam()
    loss.slope = torch.nn.Parameter(torch.ones(3))
    optimizer = SGD(1.0, 0.0, False, 0.1, None, Poly(0, 1), 1.0, 1.0).build(loss)
    groups = [([id(p) for p in group["params"]], group["weight_decay"]) for group in optimizer.param_groups]
    assert groups == [([id(loss.classifier.weight)], 0.1), ([id(loss.slope)], 0.0), ([id(loss.margins)], 0.0)]


def test_what_is_saved_is_in_range():
    """Also after the last step, behind which no call follows."""
    loss = adam()
    loss.margins.data[:2] = torch.tensor([-0.1, 1.1])
    assert torch.nn.Sequential(loss).state_dict()["0.margins"][:2].tolist() == [0, 1]


def test_the_first_margins_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = adam(c=1000).margins
    torch.randn(3)
    assert torch.equal(adam(c=1000).margins, first)
    assert 0.3 <= first.min() < 0.301
    assert 0.399 < first.max() <= 0.4
    torch.manual_seed(2)
    assert not torch.equal(adam(c=1000).margins, first)
    with torch.device("meta"):
        assert adam(c=1000).margins.shape == (1000,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_the_edges(dtype):
    check_edges(adam, dtype)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, "scale=0"),
        ({"margin_low": -0.1}, "margin_low=-0.1"),
        ({"margin_high": 0.2}, "margin_high=0.2.*0.3 and 1"),
        ({"margin_high": 1.2}, "margin_high=1.2"),
        ({"lambda_margin": -1.0}, "lambda_margin=-1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        adam(**options)
