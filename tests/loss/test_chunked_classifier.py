"""Walking the classes in chunks computes what the whole matrix computes: loss, accuracy and every gradient."""

import pytest
import reference
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from facelab.loss import classifier
from facelab.loss.adaface import AdaFace
from facelab.loss.adam_softmax import AdaMSoftmax
from facelab.loss.arcface import ArcFace
from facelab.loss.classifier import ClassifierOptions, MarginLoss
from facelab.loss.collective import enter_shards
from facelab.loss.combined import Combined
from facelab.loss.cosface import CosFace
from facelab.loss.curricularface import CurricularFace
from facelab.loss.magface import MagFace
from facelab.loss.softmax import Softmax
from facelab.loss.sphereface import SphereFace
from facelab.loss.sphereface2 import SphereFace2

D, C = 8, 23
CHUNKS = (1, 5, 23, 100)  # 5 does not divide 23


class EveryHook(reference.EveryHook):
    """With a reduction of its own too, and parameters that get no gradient."""

    def __init__(self, embedding_size, num_classes, scale):
        super().__init__(embedding_size, num_classes, scale)
        self.factor = torch.nn.Parameter(torch.tensor(1.1), requires_grad=False)
        self.unused = torch.nn.Parameter(torch.tensor(1.0))

    def others(self, logits, context):
        return torch.logsumexp(logits * (1 + 0.1 * enter_shards(self.bias)), dim=1)


class NormScale(MarginLoss):
    """Scaled by the length of the embedding; the other classes are as they are."""

    def row_scale(self, context):
        return 3 * context.norms


LOSSES = {
    "softmax": lambda c=C: Softmax(D, c),
    "norm_softmax": lambda c=C: MarginLoss(D, c, 30.0),
    "norm_scale": lambda c=C: NormScale(D, c, 1.0),
    "cosface": lambda c=C: CosFace(D, c, scale=30.0, margin=0.35),
    "arcface": lambda c=C: ArcFace(D, c, scale=64.0, margin=0.5, gradient=True, past_pi="clip"),
    "arcface_straight": lambda c=C: ArcFace(
        D, c, scale=30.0, margin=0.5, gradient="straight_through", past_pi="monotone"
    ),
    "combined": lambda c=C: Combined(D, c, scale=30.0, m1=1.2, m2=0.3, m3=0.1, gradient=True),
    "sphereface": lambda c=C: SphereFace(
        D, c, scale="norm", margin=4.0, lambda_base=10.0, lambda_gamma=0.12, lambda_power=1.0, lambda_min=1.0,
        gradient=True,
    ),
    "adam_softmax": lambda c=C: AdaMSoftmax(D, c, scale=30.0, margin_low=0.3, margin_high=0.4, lambda_margin=70.0),
    "magface": lambda c=C: MagFace(
        D, c, scale=30.0, norm_low=1.0, norm_high=10.0, margin_low=0.45, margin_high=0.8, lambda_norm=35.0,
        easy_margin=False,
    ),
    "adaface": lambda c=C: AdaFace(D, c, scale=30.0, margin=0.4, concentration=0.333, t_alpha=0.3),
    "curricularface": lambda c=C: CurricularFace(D, c, scale=30.0, margin=0.5, t_alpha=0.3),
    "sphereface2": lambda c=C: SphereFace2(D, c, scale=40.0, margin=0.4, exponent=3.0, balance=0.7, gradient=True),
    "every_hook": lambda c=C: EveryHook(D, c, 30.0),
}  # fmt: skip
BY_HOOKS = {"adaface", "curricularface", "sphereface2", "every_hook"}


def batch(size, classes=C, dtype=torch.float64):
    generator = torch.Generator().manual_seed(size)
    weight = torch.randn(classes, D, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (size,), generator=generator)
    labels[: size // 3] = labels[0]  # one class many times
    embeddings = torch.randn(size, D, generator=generator, dtype=torch.float64)
    embeddings[::2] = weight[labels[::2]] + 0.3 * embeddings[::2]  # so that some are right
    return embeddings.to(dtype), weight.to(dtype), labels


def made(build, weight, chunk, interclass_filter=None):
    torch.manual_seed(2)
    loss = build(len(weight)).to(weight.dtype)
    loss.classifier.weight.data = weight.clone()
    loss.configure(ClassifierOptions(chunk, 1.0, interclass_filter))
    return loss


def compute(loss, embeddings, labels, autocast=False):
    """The scalar, logs, and the gradient of the embeddings and of every parameter."""
    leaf = embeddings.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value, logs, _ = loss(leaf, labels, 3)
    value.backward()
    gradients = {name: parameter.grad for name, parameter in loss.named_parameters()}
    return {"loss": value.detach(), **logs, "embeddings": leaf.grad, **gradients, **dict(loss.named_buffers())}


def assert_equal(actual, expected, relative):
    """Each within `relative` of the largest of its numbers."""
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        if value is None or actual[key] is None:  # a parameter that only the columns know of has no gradient, or zeros
            assert not any(part is not None and part.any() for part in (value, actual[key])), key
            continue
        assert actual[key].dtype == value.dtype, key
        limit = relative * value.abs().max().item()
        torch.testing.assert_close(actual[key], value, rtol=0, atol=limit, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("size", [5, 20])  # fewer and more rows than the gradient's memory keeps
@pytest.mark.parametrize("name", LOSSES)
def test_chunks_are_the_whole(name, size):
    embeddings, weight, labels = batch(size)
    assert made(LOSSES[name], weight, 1).others_are_plain == (name not in BY_HOOKS)
    expected = compute(made(LOSSES[name], weight, None), embeddings, labels)
    assert 0 < expected["accuracy"] < 1
    assert expected["embeddings"].abs().max() > 1e-3
    for chunk in CHUNKS:
        assert_equal(compute(made(LOSSES[name], weight, chunk), embeddings, labels), expected, 1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_float32_and_bfloat16(name):
    embeddings, weight, labels = batch(20)
    exact = compute(made(LOSSES[name], weight, None), embeddings, labels)
    embeddings, weight = embeddings.float(), weight.float()
    single = compute(made(LOSSES[name], weight, 5), embeddings, labels)
    assert_equal({k: v if v is None else v.double() for k, v in single.items()}, exact, 1e-5)
    # In bf16 the plain way is itself as far from the truth as the products' rounding makes it.
    whole = compute(made(LOSSES[name], weight, None), embeddings, labels, autocast=True)
    parts = compute(made(LOSSES[name], weight, 5), embeddings, labels, autocast=True)
    assert whole["loss"] != single["loss"]  # the products did follow autocast
    assert parts["loss"] != single["loss"]
    for key, value in exact.items():
        if value is not None and value.any() and key != "accuracy":
            off = (whole[key].double() - value).norm()
            limit = 3 * off + 2**-6 * value.norm()
            assert (parts[key].double() - value).norm() <= limit, key


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["softmax", "arcface", "every_hook"])
def test_centres_in_half_precision(name, dtype):
    embeddings, weight, labels = batch(20, dtype=dtype)
    expected = compute(made(LOSSES[name], weight, None), embeddings, labels)
    actual = compute(made(LOSSES[name], weight, 5), embeddings, labels)
    assert actual["classifier.weight"].dtype == dtype
    assert_equal(actual, expected, 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", ["cosface", "every_hook"])
@pytest.mark.parametrize("chunk", [1, 5, 23])
def test_interclass_filter(name, chunk):
    """A class above the threshold is as if it were not there."""
    embeddings, weight, labels = batch(20)
    twin = (labels[0] + 1) % C
    weight[twin] = weight[labels[0]] + 0.05 * weight[twin]
    whole = made(LOSSES[name], weight, None, 0.7)
    expected = compute(whole, embeddings, labels)
    unfiltered = compute(made(LOSSES[name], weight, None), embeddings, labels)
    assert expected["loss"] < unfiltered["loss"]
    assert expected["accuracy"] == unfiltered["accuracy"]
    assert_equal(compute(made(LOSSES[name], weight, chunk, 0.7), embeddings, labels), expected, 1e-10)

    if name == "cosface":
        logits = made(LOSSES[name], weight, None).logits(embeddings, labels, 0)
        own = torch.nn.functional.one_hot(labels, C).bool()
        kept = logits.masked_fill((logits > 0.7 * 30) & ~own, -torch.inf)
        torch.testing.assert_close(expected["loss"], torch.nn.functional.cross_entropy(kept, labels))


def test_a_filter_that_lets_nothing_through():
    embeddings, weight, labels = batch(20)
    for chunk in (None, 1, 5):
        found = compute(made(LOSSES["cosface"], weight, chunk, -1.0), embeddings, labels)
        assert found["loss"] == 0
        assert not found["embeddings"].any()
        assert not found["classifier.weight"].any()


@pytest.mark.parametrize("chunk", [1, 5])
@pytest.mark.parametrize("name", ["norm_softmax", "every_hook"])
def test_one_class_and_chunks_that_are_the_target_alone(name, chunk):
    for classes in (1, 2):
        embeddings, weight, labels = batch(6, classes)
        expected = compute(made(LOSSES[name], weight, None), embeddings, labels)
        assert_equal(compute(made(LOSSES[name], weight, chunk), embeddings, labels), expected, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "every_hook"])  # it divides by the length
def test_finite_at_the_edges(name, dtype):
    """Cosines of exactly ±1, others that round to 1.0000001, embeddings and centres of length 0."""
    _, weight, labels = batch(20)
    embeddings = weight[labels] * torch.linspace(-4, 4, 20, dtype=torch.float64)[:, None]
    embeddings[0], weight[1] = 0, 0
    embeddings[1], embeddings[2], weight[2] = torch.eye(D)[0], -torch.eye(D)[0], torch.eye(D)[0]
    labels[1:3] = 2
    found = compute(made(LOSSES[name], weight.to(dtype), 5), embeddings.to(dtype), labels)
    assert all(value is None or value.isfinite().all() for value in found.values())
    assert name == "softmax" or not found["embeddings"][0].any()


@pytest.mark.parametrize("name", ["cosface", "every_hook"])
def test_gradients_asked_for_by_themselves(name):
    embeddings, weight, labels = batch(20)
    expected = compute(made(LOSSES[name], weight, None), embeddings, labels)
    loss, leaf = made(LOSSES[name], weight, 5), embeddings.clone().requires_grad_()
    value = loss(leaf, labels, 3).loss
    for _ in range(2):  # the second time without what the first pass kept
        found = {"embeddings": leaf, "classifier.weight": loss.classifier.weight}
        for key, wrt in found.items():
            (gradient,) = torch.autograd.grad(value, wrt, retain_graph=True)
            torch.testing.assert_close(gradient, expected[key], rtol=1e-10, atol=1e-10)
        value.backward(retain_graph=True)
        torch.testing.assert_close(leaf.grad, expected["embeddings"], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(loss.classifier.weight.grad, expected["classifier.weight"], rtol=1e-10, atol=1e-10)
        leaf.grad = None
        loss.zero_grad()


@pytest.mark.parametrize("name", ["cosface", "every_hook"])
def test_what_is_frozen_gets_no_gradient(name):
    embeddings, weight, labels = batch(20)
    expected = compute(made(LOSSES[name], weight, None), embeddings, labels)
    loss = made(LOSSES[name], weight, 5)
    loss.classifier.weight.requires_grad_(False)
    found = compute(loss, embeddings, labels)
    assert found["classifier.weight"] is None
    torch.testing.assert_close(found["embeddings"], expected["embeddings"], rtol=1e-10, atol=1e-10)
    loss = made(LOSSES[name], weight, 5)
    loss(embeddings, labels, 3).loss.backward()
    torch.testing.assert_close(loss.classifier.weight.grad, expected["classifier.weight"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["cosface", "every_hook"])
def test_without_a_backward_pass(name):
    embeddings, weight, labels = batch(20)
    expected = made(LOSSES[name], weight, None)(embeddings, labels, 3)
    with torch.no_grad():
        value, logs, _ = made(LOSSES[name], weight, 5)(embeddings, labels, 3)
    torch.testing.assert_close(value, expected.loss.detach(), rtol=1e-10, atol=1e-10)
    assert logs["accuracy"] == expected.logs["accuracy"]


def test_a_target_without_gradient():
    """The columns' gradient is delivered even where nothing comes back from the target."""

    class Detached(MarginLoss):
        def target(self, cosine, context):
            return cosine.detach()

    embeddings, weight, labels = batch(20)
    expected = compute(made(lambda c: Detached(D, c, 30.0), weight, None), embeddings, labels)
    found = compute(made(lambda c: Detached(D, c, 30.0), weight, 5), embeddings, labels)
    assert_equal(found, expected, 1e-10)


def test_columns_without_gradient():
    class TargetAlone(MarginLoss):
        def reduction(self, others, target, context):
            return -target.mean() - others.detach().mean()

    embeddings, weight, labels = batch(20)
    expected = compute(made(lambda c: TargetAlone(D, c, 30.0), weight, None), embeddings, labels)
    assert_equal(compute(made(lambda c: TargetAlone(D, c, 30.0), weight, 5), embeddings, labels), expected, 1e-10)


def test_two_forward_passes_before_their_backward():
    """Moving averages go on; the first pass's gradient is still that of its own."""
    embeddings, weight, labels = batch(20)
    results = []
    for chunk in (None, 5):
        loss, leaf = made(LOSSES["every_hook"], weight, chunk), embeddings.clone().requires_grad_()
        (loss(leaf, labels, 3).loss + loss(2 * leaf, labels, 4).loss).backward()
        results.append({"embeddings": leaf.grad, **{name: p.grad for name, p in loss.named_parameters()}})
    assert_equal(results[1], results[0], 1e-10)


def test_functional_call():
    embeddings, weight, labels = batch(20)
    results = []
    for chunk in (None, 5):
        loss = made(LOSSES["every_hook"], weight, chunk)
        state = {name: (2 * p).detach().requires_grad_() for name, p in loss.named_parameters()}
        value = torch.func.functional_call(loss, state, (embeddings, labels, 3)).loss
        value.backward()
        results.append({"loss": value.detach(), **{name: p.grad for name, p in state.items()}})
        assert all(p.grad is None for p in loss.parameters())
    assert_equal(results[1], results[0], 1e-10)


@pytest.mark.parametrize("name", ["cosface", "every_hook"])
def test_gradient_is_the_derivative(name):
    embeddings, weight, labels = batch(4, 5)
    loss = made(LOSSES[name], weight, 2)
    loss.scale = 4.0
    loss.eval()

    def value(embeddings, weight):
        return torch.func.functional_call(loss, {"classifier.weight": weight}, (embeddings, labels, 0)).loss

    inputs = (embeddings.requires_grad_(), weight.requires_grad_())
    if name == "every_hook":
        loss.register_buffer("mean_norm", torch.tensor(2.0, dtype=torch.float64))
        loss.target = lambda cosine, context: cosine - loss.margins[context.labels] * context.norms / loss.mean_norm
    assert torch.autograd.gradcheck(value, inputs, eps=1e-7, atol=1e-5, rtol=1e-4, nondet_tol=1e-12)


class Large(TorchDispatchMode):
    """Collects the pieces of memory of at least so many bytes that operations give back, but those that were there."""

    def __init__(self, limit, there):
        super().__init__()
        self.limit, self.there, self.found = limit, {value.untyped_storage().data_ptr() for value in there}, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for value in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                if storage.nbytes() >= self.limit and storage.data_ptr() not in self.there:
                    self.found[storage.data_ptr()] = storage  # held, so that its place is not used again
        return made


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_nothing_has_the_size_of_the_centres_but_their_gradient(name, autocast):
    classes, size = 3000, 40
    embeddings, weight, labels = batch(size, classes, torch.float32)
    loss, leaf = made(LOSSES[name], weight, 50), embeddings.requires_grad_()
    with Large(classes * D, loss.parameters()) as large:  # a quarter of the centres' bytes, a twentieth of the matrix's
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            value = loss(leaf, labels, 0).loss
        value.backward()
    assert list(large.found) == [loss.classifier.weight.grad.untyped_storage().data_ptr()]


@pytest.mark.parametrize("chunk", ["auto", 7])
def test_the_whole_matrix_where_it_is_small(chunk, monkeypatch):
    embeddings, weight, labels = batch(20)
    ways = []
    for way in ("Whole", "Chunks"):
        kind = getattr(classifier, way)
        monkeypatch.setattr(classifier, way, lambda *args, way=way, kind=kind: ways.append(way) or kind(*args))
    loss = made(LOSSES["cosface"], weight, chunk)
    loss(embeddings, labels, 0)
    monkeypatch.setattr(classifier, "WHOLE", 20 * C - 1)
    loss(embeddings, labels, 0)
    assert ways == (["Whole", "Chunks"] if chunk == "auto" else ["Chunks"] * 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((0, 1.0, None), "chunk=0"),
        (("all", 1.0, None), "chunk=all"),
        ((True, 1.0, None), "chunk=True"),
        (("auto", 0.0, None), r"sample_rate=0\.0"),
        (("auto", 1.1, None), r"sample_rate=1\.1"),
        (("auto", float("nan"), None), "sample_rate=nan"),
        ((None, 0.5, None), "chunk=auto"),
        (("auto", 1.0, 1.5), r"interclass_filter=1\.5"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ClassifierOptions(*options)


def test_softmax_has_no_cosine_to_filter_by():
    with pytest.raises(ValueError, match=r"interclass_filter=0\.4 .* Softmax"):
        Softmax(D, C).configure(ClassifierOptions("auto", 1.0, 0.4))


@pytest.mark.gpu
def test_gpu_agrees():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    embeddings, weight, labels = batch(20, dtype=torch.float32)
    for build in LOSSES.values():
        expected = compute(made(build, weight, None), embeddings, labels)
        found = compute(made(build, weight, 5).cuda(), embeddings.cuda(), labels.cuda())
        assert_equal({k: v if v is None else v.cpu() for k, v in found.items()}, expected, 1e-4)
