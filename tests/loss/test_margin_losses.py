import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import B, C, D, check_edges, sample, with_centres

from facelab.loss.arcface import ArcFace
from facelab.loss.classifier import ClassifierOptions, Context, MarginLoss
from facelab.loss.cosface import CosFace
from facelab.loss.softmax import Softmax

PLAIN = Context(torch.ones(1), torch.zeros(1, dtype=torch.int64), step=0, training=True)  # ArcFace needs nothing of it
GOLDEN = Path(__file__).parents[1] / "golden" / "losses.npz"


def arcface(d, c, margin=0.5, gradient=True, past_pi="monotone", scale=64.0):
    return ArcFace(d, c, scale=scale, margin=margin, gradient=gradient, past_pi=past_pi)


def cosface(d, c, margin=0.35):
    return CosFace(d, c, scale=64.0, margin=margin)


def norm_softmax(d, c, scale=64.0):
    return MarginLoss(d, c, scale=scale)


ALL = [Softmax, norm_softmax, cosface, arcface]
MARGINS = [norm_softmax, cosface, arcface]


def facing(cosines, dtype=torch.float64):
    """Embeddings and centres of two classes such that row i has label 0 and the given target cosine."""
    cosines = torch.as_tensor(cosines, dtype=torch.float64)
    embeddings = torch.zeros(len(cosines), D, dtype=torch.float64)
    embeddings[:, 0], embeddings[:, 1] = cosines, (1 - cosines**2).sqrt()
    weight = torch.zeros(2, D, dtype=torch.float64)
    weight[0, 0] = weight[1, 2] = 1
    return embeddings.to(dtype), weight.to(dtype), torch.zeros(len(cosines), dtype=torch.int64)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("softmax_norm_formula_s64", norm_softmax),
        (
            "arcface_insightface_s64_m0.5",
            lambda d, c: arcface(d, c, gradient="straight_through", past_pi="unguarded"),
        ),
        ("arcface_adafacerepo_s64_m0.5", lambda d, c: arcface(d, c, past_pi="clip")),
        ("arcface_curricularrepo_s64_m0.5", arcface),
        ("cosface_insightface_s64_m0.35", cosface),
        ("cosface_adafacerepo_s64_m0.4", lambda d, c: cosface(d, c, margin=0.4)),
    ],
)
def test_golden(name, build):
    golden = np.load(GOLDEN)
    weight = torch.from_numpy(golden["input/weight"]).double()
    embeddings = torch.from_numpy(golden["input/emb"]).double().requires_grad_()
    labels = torch.from_numpy(golden["input/labels"])
    loss = with_centres(build(weight.shape[1], len(weight)), weight)
    np.testing.assert_allclose(loss.logits(embeddings, labels, 0).detach(), golden[f"{name}/logits"], atol=1e-11)
    value = loss(embeddings, labels, 0).loss
    value.backward()
    np.testing.assert_allclose(value.item(), golden[f"{name}/loss"], rtol=1e-12)
    for gradient, key in ((embeddings.grad, "grad_emb"), (loss.classifier.weight.grad, "grad_weight")):
        stored = golden[f"{name}/{key}"]  # stored as float32
        np.testing.assert_allclose(gradient, stored, rtol=1e-6, atol=1e-7 * abs(stored).max())


def test_every_golden_number_has_its_test():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    names = {key.split("/")[0] for key in np.load(GOLDEN).files} - {"input"}
    assert len(names) == 21
    assert [name for name in sorted(names) if not _named(name, tests)] == []


def _named(name, tests):
    magface = name.startswith("magface_")  # whose name is put together
    return f'"{name}"' in tests or (magface and "magface_{'easy' if easy else 'hard'}_lg35" in tests)


def test_true_and_straight_through_gradients_differ():
    embeddings, weight, labels = sample()
    gradients = []
    for gradient in (True, "straight_through"):
        loss, leaf = with_centres(arcface(D, C, gradient=gradient), weight), embeddings.clone().requires_grad_()
        loss(leaf, labels, 0).loss.backward()
        gradients.append(leaf.grad)
    assert not torch.allclose(*gradients, rtol=1e-2)


@pytest.mark.parametrize(
    ("past_pi", "target", "slope"),
    [
        ("unguarded", -0.968, 0.5 * 0.97 / 0.243),  # the slope there is negative: tested by its sign only
        ("clamp_angle", -1.0, 1.0),
        ("clip", -1.0, 0.0),
        ("monotone", -1.210, 1.0),
    ],
)
def test_past_pi(past_pi, target, slope):
    embeddings, weight, labels = facing([-0.97])
    loss = with_centres(arcface(D, 2, past_pi=past_pi), weight)
    cosine = torch.tensor([-0.97], dtype=torch.float64, requires_grad=True)
    mapped = loss.target(cosine, PLAIN)
    mapped.sum().backward()
    assert mapped.item() == pytest.approx(target, abs=6e-4)
    assert loss.logits(embeddings, labels, 0)[0, 0].item() == pytest.approx(64 * mapped.item())
    if past_pi == "unguarded":
        assert cosine.grad.item() < 0
    else:
        assert cosine.grad.item() == slope


@pytest.mark.parametrize("past_pi", ["unguarded", "clamp_angle", "clip", "monotone"])
def test_before_pi_all_behaviours_are_cos_theta_plus_m(past_pi):
    theta = torch.linspace(0, math.pi - 0.501, 200, dtype=torch.float64)
    mapped = arcface(D, C, past_pi=past_pi).target(theta.cos(), PLAIN)
    torch.testing.assert_close(mapped, torch.cos(theta + 0.5), rtol=0, atol=1e-12)


def test_straight_through_target_slope_is_one():
    cosine = torch.linspace(-1, 1, 41, dtype=torch.float64, requires_grad=True)
    for past_pi in ("unguarded", "clamp_angle", "clip", "monotone"):
        mapped = arcface(D, C, gradient="straight_through", past_pi=past_pi).target(cosine, PLAIN)
        (slope,) = torch.autograd.grad(mapped.sum(), cosine)
        assert torch.equal(slope, torch.ones_like(slope))


@pytest.mark.parametrize("build", ALL)
def test_gradient_is_the_derivative(build):
    embeddings, weight, labels = (part[:5] for part in sample())
    embeddings, weight = embeddings[:, :8], weight[:, :8]
    labels = labels % 5
    loss = with_centres(build(8, 5), weight)
    cosines = torch.nn.functional.normalize(embeddings) @ torch.nn.functional.normalize(weight).T
    assert cosines.abs().max() < 0.8  # away from every kink

    def value(embeddings, weight):
        return torch.func.functional_call(loss, {"classifier.weight": weight}, (embeddings, labels, 0)).loss

    # A scale of 64 makes the second derivative large, so finite differences need a small step.
    inputs = (embeddings.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(value, inputs, eps=1e-7, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("build", ALL)
def test_loss_is_cross_entropy_of_the_logits(build):
    embeddings, weight, labels = sample()
    loss = with_centres(build(D, C), weight)
    expected = torch.nn.functional.cross_entropy(loss.logits(embeddings, labels, 0), labels)
    torch.testing.assert_close(loss(embeddings, labels, 0).loss, expected, rtol=1e-12, atol=1e-12)


def test_softmax_is_the_inner_product():
    embeddings, weight, labels = sample()
    loss = with_centres(Softmax(D, C), weight)
    torch.testing.assert_close(loss.logits(embeddings, labels, 0), embeddings @ weight.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "build",
    [
        *ALL,
        lambda d, c: arcface(d, c, gradient="straight_through"),
        lambda d, c: arcface(d, c, past_pi="unguarded"),
        lambda d, c: arcface(d, c, past_pi="clip"),
        lambda d, c: arcface(d, c, past_pi="clamp_angle"),
    ],
)
def test_finite_at_the_edges(build, dtype):
    check_edges(lambda: build(D, C), dtype, directed=build is not Softmax)


def test_collapsed_embeddings_are_not_accurate():
    _, weight, _ = sample()
    labels = torch.arange(C)
    assert with_centres(arcface(D, C), weight)(torch.zeros(C, D).double(), labels, 0).logs["accuracy"] <= 1 / C


@pytest.mark.parametrize("build", [lambda d, c: cosface(d, c, margin=0.0), lambda d, c: arcface(d, c, margin=0.0)])
def test_margin_zero_is_norm_softmax(build):
    embeddings, weight, labels = sample()
    values = []
    for loss in (build(D, C), norm_softmax(D, C)):
        leaf = embeddings.clone().requires_grad_()
        value = with_centres(loss, weight)(leaf, labels, 0).loss
        value.backward()
        values.append((value, leaf.grad))
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("build", MARGINS)
def test_lengths_do_not_matter(build):
    embeddings, weight, labels = sample()
    loss = with_centres(build(D, C), weight)
    expected = loss(embeddings, labels, 0).loss
    lengths = torch.logspace(-3, 3, B, dtype=torch.float64)[:, None]
    torch.testing.assert_close(loss(embeddings * lengths, labels, 0).loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(with_centres(loss, weight * 5)(embeddings, labels, 0).loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("build", [cosface, arcface])
def test_larger_margin_never_lowers_the_loss(build):
    embeddings, weight, labels = facing(torch.linspace(-1, 1, 81))
    previous = None
    for margin in (0.0, 0.1, 0.3, 0.5, 0.8, 1.0):
        loss = with_centres(build(D, 2, margin=margin), weight)
        rows = torch.nn.functional.cross_entropy(loss.logits(embeddings, labels, 0), labels, reduction="none")
        if previous is not None:
            assert (rows >= previous).all()
            assert (rows > previous).any()
        previous = rows


def test_nothing_caps_the_loss():
    """A probability that is clamped at 1e-30 does, at 69.08."""
    embeddings, weight, labels = facing([-1.0])
    embeddings[0, 2] = 1.0  # and at 45° to the other class
    loss = with_centres(norm_softmax(D, 2), weight)(embeddings, labels, 0).loss
    assert loss.item() == pytest.approx(64 * 2**0.5, rel=1e-12)


def test_a_nearly_perfect_row_keeps_its_gradient_in_float32():
    embeddings, weight, labels = facing([1.0], torch.float32)
    values = []
    for dtype in (torch.float32, torch.float64):
        leaf = embeddings.to(dtype, copy=True).requires_grad_()
        value = with_centres(norm_softmax(D, 2), weight.to(dtype))(leaf, labels, 0).loss
        value.backward()
        values.append((value.double(), leaf.grad.double()))
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=0)
    assert values[0][0] > 0
    assert values[0][1].any()


@pytest.mark.parametrize("build", ALL)
def test_autocast_stays_close(build):
    embeddings, weight, labels = sample(torch.float32)
    results = []
    for enabled in (False, True):
        loss, leaf = with_centres(build(D, C), weight), embeddings.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value, logs, _ = loss(leaf, labels, 0)
            logits = loss.logits(leaf, labels, 0)
        value.backward()
        results.append((value, leaf.grad, logs["accuracy"], logits))
    exact, mixed = results
    assert mixed[0].dtype == torch.float32
    assert not torch.equal(exact[3], mixed[3])  # the product did follow autocast
    rows = torch.arange(B)
    torch.testing.assert_close(
        mixed[3][rows, labels], exact[3][rows, labels], rtol=1e-6, atol=1e-5
    )  # the target did not
    torch.testing.assert_close(mixed[0], exact[0], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(mixed[1], exact[1], rtol=0.1, atol=0.03 * exact[1].abs().max().item())


def test_half_precision_embeddings_whose_norm_overflows():
    loss = arcface(D, C)
    embeddings = torch.full((2, D), 30000.0, dtype=torch.float16)
    labels = torch.tensor([0, 1])
    torch.testing.assert_close(loss(embeddings, labels, 0).loss, loss(embeddings.float() / 1000, labels, 0).loss)


def test_accuracy_counts_the_nearest_centre_without_the_margin():
    weight = torch.eye(C, D)
    labels = torch.arange(C)
    embeddings = weight[labels] + 0.9 * weight[(labels + 1) % C]  # a margin would have put the neighbour first
    embeddings[:2] = weight[5]
    loss = with_centres(arcface(D, C), weight)
    assert loss(embeddings, labels, 0).logs["accuracy"].item() == pytest.approx((C - 2) / C)


def test_one_class_has_nothing_to_confuse():
    value = norm_softmax(D, 1)(torch.randn(3, D), torch.zeros(3, dtype=torch.int64), 0).loss
    assert value.item() == 0


def test_margin_sees_norm_class_and_step_and_may_own_parameters():
    class Everything(MarginLoss):
        def __init__(self, embedding_size, num_classes, scale):
            super().__init__(embedding_size, num_classes, scale)
            self.margins = torch.nn.Parameter(torch.full((num_classes,), 0.3))

        def row_scale(self, context):
            return context.norms

        def target(self, cosine, context):
            return cosine - self.margins[context.labels] - 0.01 * context.step - (0.1 if context.training else 0)

        def non_target(self, cosines, target, context):
            return torch.where(cosines > target[:, None], 2 * cosines, cosines)

        def regulariser(self, context):
            return -self.margins.mean()

    embeddings, weight, labels = sample()
    loss = with_centres(Everything(D, C, 64.0), weight)
    plain = with_centres(MarginLoss(D, C, 1.0), weight)
    norms = embeddings.norm(dim=1)
    for training, step in ((True, 3), (False, 0)):
        loss.train(training)
        cosines, rows = plain.logits(embeddings, labels, 0), torch.arange(B)
        target = cosines[rows, labels] - 0.3 - 0.01 * step - 0.1 * training
        expected = torch.where(cosines > target[:, None], 2 * cosines, cosines)
        expected[rows, labels] = target
        expected = expected * norms[:, None]
        torch.testing.assert_close(loss.logits(embeddings, labels, step), expected, rtol=1e-6, atol=1e-6)
        value, logs, _ = loss(embeddings, labels, step)
        assert logs["regulariser"].item() == pytest.approx(-0.3)
        expected_loss = torch.nn.functional.cross_entropy(expected, labels) - 0.3
        torch.testing.assert_close(value, expected_loss, rtol=1e-6, atol=1e-6)
    value.backward()
    assert loss.margins.grad.isfinite().all()


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (torch.zeros(2, D), torch.zeros(2, dtype=torch.int32), "int64"),
        (torch.zeros(2, D), torch.zeros(2), "int64"),
        (torch.zeros(2, D), torch.tensor([0, C]), f"label {C} "),
        (torch.zeros(2, D), torch.tensor([-1, 0]), "label -1 "),
        (torch.zeros(2, D), torch.tensor([0]), "2 embeddings"),
        (torch.zeros(2, D + 1), torch.tensor([0, 1]), f"(B, {D})"),
    ],
)
def test_bad_input_is_refused_at_every_call(embeddings, labels, message):
    loss = arcface(D, C)
    loss(torch.ones(1, D), torch.tensor([0]), 0)
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        loss(embeddings, labels, 0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: norm_softmax(D, C, scale=0.0), "scale=0"),
        (lambda: norm_softmax(D, C, scale=float("nan")), "scale=nan"),
        (lambda: cosface(D, C, margin=-0.1), "margin=-0.1"),
        (lambda: cosface(D, C, margin=28.6), "margin=28.6"),
        (lambda: arcface(D, C, margin=28.6), "margin=28.6"),
        (lambda: arcface(D, C, gradient="false"), "gradient=false.*true, straight_through"),
        (lambda: arcface(D, C, gradient=False), "gradient=false"),
        (lambda: arcface(D, C, past_pi="wrap"), "past_pi=wrap.*monotone, unguarded, clip, clamp_angle"),
        (lambda: norm_softmax(D, 0), "num_classes=0"),
        (lambda: norm_softmax(0, C), "embedding_size=0"),
    ],
)
def test_bad_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_centres_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = norm_softmax(D, 10000).classifier.weight
    state = torch.get_rng_state()
    torch.randn(5)
    again = norm_softmax(D, 10000).classifier.weight
    torch.manual_seed(2)
    other = norm_softmax(D, 10000).classifier.weight
    torch.manual_seed(1)
    norm_softmax(D, 10000)
    assert torch.equal(first, again)
    assert not (first == other).any(dim=1).any()
    assert len(first.unique(dim=0)) == 10000  # no block is drawn twice
    assert first.std().item() == pytest.approx(0.01, rel=0.02)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # drawing centres leaves torch's generator alone


def test_names_and_copies():
    loss = arcface(D, C)
    assert loss.sharded_parameters() == ["classifier.weight"] == [name for name, _ in loss.named_parameters()]
    copied = copy.deepcopy(loss)
    embeddings, _, labels = sample(torch.float32)
    assert torch.equal(copied(embeddings, labels, 0).loss, loss(embeddings, labels, 0).loss)


def test_a_wrong_label_that_went_unchecked_shows(monkeypatch):
    """On a GPU only the first call reads the labels."""
    loss = arcface(D, C)
    monkeypatch.setattr(loss, "_check", lambda embeddings, labels: None)
    for wrong in (-1, C):
        assert loss(torch.ones(2, D), torch.tensor([0, wrong]), 0).loss.isnan()


@pytest.mark.gpu
def test_gpu_agrees_and_shows_a_late_wrong_label():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    embeddings, weight, labels = sample(torch.float32)
    for build in ALL:
        loss = with_centres(build(D, C), weight)
        expected = loss(embeddings, labels, 0)
        loss = loss.cuda()
        actual = loss(embeddings.cuda(), labels.cuda(), 0)
        torch.testing.assert_close(actual.loss.cpu(), expected.loss, rtol=1e-4, atol=1e-4)
        assert actual.logs["accuracy"].item() == pytest.approx(expected.logs["accuracy"].item())
        assert loss(embeddings.cuda(), labels.cuda() + C, 0).loss.isnan()
        with pytest.raises(ValueError, match="label"):
            with_centres(build(D, C), weight).cuda()(embeddings.cuda(), labels.cuda() + C, 0)


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("build", ALL)
def test_rows_tell_of_each_image(build, chunk):
    embeddings, weight, labels = sample()
    loss = with_centres(build(D, C), weight)
    loss.configure(ClassifierOptions(chunk, 1.0, None))
    _, logs, rows = loss(embeddings.requires_grad_(), labels, 0)
    norms = embeddings.norm(dim=1)
    assert torch.equal(rows["norm"], norms)
    assert not rows["norm"].requires_grad
    similarity = (
        embeddings @ weight.T if build is Softmax else (embeddings @ weight.T) / norms[:, None] / weight.norm(dim=1)
    )
    assert torch.equal(rows["right"], similarity.argmax(dim=1) == labels)
    assert rows["right"].double().mean() == logs["accuracy"]
    if build is Softmax:
        assert "cosine" not in rows
    else:
        torch.testing.assert_close(rows["cosine"], similarity[torch.arange(B), labels].detach())
        assert not rows["cosine"].requires_grad
