"""The kernels against torch's passes, on the CPU: `test_chunk_kernels.py` runs this with TRITON_INTERPRET=1.

The interpreter cuts a bf16 off where a GPU rounds it to the nearest, hence the limits of 2^-7: the distance of two.
"""

import pytest
import torch

from facelab.loss import chunk_kernels, chunked_softmax
from facelab.loss.chunked import Chunks
from facelab.loss.classifier import ClassifierOptions, Context, MarginLoss
from facelab.loss.columns import Columns
from facelab.loss.cosface import CosFace
from facelab.loss.softmax import Softmax

HALVES = {torch.bfloat16: 2**-7, torch.float16: 2**-10}
FORMATS = [torch.float32, *HALVES]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """So that rows of a few columns have several, the last not full."""
    monkeypatch.setattr(chunk_kernels, "_ROW", 16)
    monkeypatch.setattr(chunk_kernels, "_STRIP", 8)
    monkeypatch.setattr(chunk_kernels, "_BLOCK", 32)


def data(batch, classes, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, size, generator=generator)
    labels = torch.randint(classes, (batch,), generator=generator)
    embeddings = weight[labels] + torch.randn(batch, size, generator=generator)
    return torch.nn.functional.normalize(embeddings), weight, labels


def others(loss, embeddings, weight, columns, product, chunk, kernels, monkeypatch):
    """What the columns come to, and the gradients of embeddings and centres."""
    used = []
    monkeypatch.setattr(chunked_softmax, "fused", lambda *_: used.append(1) or kernels)
    loss.classifier.weight = torch.nn.Parameter(weight.clone())
    loss.options = ClassifierOptions(chunk, 1.0, loss.options.interclass_filter)
    leaf = embeddings.clone().requires_grad_()
    chunks = Chunks(loss, columns, product, chunk)
    chunks.own_centres()
    context = Context(leaf.norm(dim=1), columns.own, 0, True)
    found = chunks.others(leaf, torch.zeros(len(leaf)), loss.row_scale(context), context)
    slopes = torch.linspace(0.5, 1.5, len(leaf))
    (found.total.clamp(min=-1e4) * slopes + 0 * chunks.taken.sum(dim=1)).sum().backward()
    assert len(used) == 2  # forward and backward
    gradient = loss.classifier.weight.grad
    gradient = gradient.coalesce().values() if gradient.is_sparse else gradient
    return {"total": found.total.detach(), "best": found.best, "own": found.own, "x": leaf.grad, "w": gradient}


def compare(monkeypatch, loss, embeddings, weight, columns, product=torch.float32, chunk=7, relative=1e-5):
    given = (loss, embeddings, weight, columns, product, chunk)
    expected = others(*given, False, monkeypatch)
    found = others(*given, True, monkeypatch)
    assert expected["w"].abs().sum() > 0 or columns.count == 1 or loss.options.interclass_filter == -1
    for key, value in expected.items():
        finite = value.isfinite() & (value > -1e30)
        assert (finite == (found[key].isfinite() & (found[key] > -1e30))).all(), key
        limit = relative * value[finite].abs().max().item() if finite.any() else 0
        torch.testing.assert_close(
            found[key], value, rtol=relative, atol=limit, msg=lambda text, key=key: f"{key}: {text}"
        )


def all_columns(labels, classes):
    return Columns(None, labels, torch.ones_like(labels, dtype=torch.bool), classes)


def cosface(classes, size, interclass_filter=None):
    loss = CosFace(size, classes, scale=30.0, margin=0.35)
    loss.options = ClassifierOptions("auto", 1.0, interclass_filter)
    return loss


@pytest.mark.parametrize("interclass_filter", [None, 0.3])
@pytest.mark.parametrize(("batch", "classes", "size", "chunk"), [
    (1, 1, 8, 1), (1, 9, 8, 4), (3, 23, 5, 23), (6, 19, 3, 7), (3, 5, 16, 1), (5, 40, 12, 18),
])  # fmt: skip
def test_sizes_that_no_block_divides(monkeypatch, batch, classes, size, chunk, interclass_filter):
    embeddings, weight, labels = data(batch, classes, size)
    loss = cosface(classes, size, interclass_filter)
    compare(monkeypatch, loss, embeddings, weight, all_columns(labels, classes), chunk=chunk)


@pytest.mark.parametrize("batch", [5, 8])  # 2D = 6: all exponentials are kept, and some
@pytest.mark.parametrize("product", HALVES)
def test_products_in_half_precision(monkeypatch, product, batch):
    embeddings, weight, labels = data(batch, 19, 3)
    columns = all_columns(labels, 19)
    # A cosine's rounding, thirtyfold, is the error of a logarithm.
    relative = 30 * HALVES[product]
    compare(monkeypatch, cosface(19, 3), embeddings, weight, columns, product, chunk=10, relative=relative)


@pytest.mark.parametrize("product", [torch.float32, torch.float16])
def test_labels_on_other_ranks_and_sampled_columns(monkeypatch, product):
    embeddings, weight, labels = data(6, 23, 8)
    here = torch.arange(6) % 3 > 0
    relative = 1e-5 if product == torch.float32 else 30 * HALVES[product]
    elsewhere = Columns(None, torch.where(here, labels, 0), here, 23)
    compare(monkeypatch, cosface(23, 8), embeddings, weight, elsewhere, product, chunk=12, relative=relative)
    rows = torch.unique(torch.cat([labels[here], torch.tensor([1, 3, 22])]))
    sampled = Columns(rows, torch.where(here, torch.searchsorted(rows, labels), 0), here, len(rows))
    compare(monkeypatch, cosface(23, 8), embeddings, weight, sampled, product, chunk=4, relative=relative)


@pytest.mark.parametrize("batch", [4, 7])  # D = 5: all exponentials are kept, and some
def test_the_loss_and_a_second_backward_pass(monkeypatch, batch):
    embeddings, weight, labels = data(batch, 13, 5)
    results = []
    for chunk, dtype, kernels in ((None, torch.float64, False), (6, torch.float32, True)):
        monkeypatch.setattr(chunked_softmax, "fused", lambda *_, kernels=kernels: kernels)
        loss = cosface(13, 5, 0.6)
        loss.classifier.weight = torch.nn.Parameter(weight.to(dtype))
        loss.options = ClassifierOptions(chunk, 1.0, 0.6)
        leaf = embeddings.to(dtype).requires_grad_()
        value, logs, _ = loss(leaf, labels, 0)
        value.backward(retain_graph=True)
        value.backward()  # without what the forward pass kept
        results.append({"loss": value, **logs, "x": leaf.grad, "w": loss.classifier.weight.grad})
    expected, found = results
    assert 0 < expected["accuracy"] < 1
    for key, value in expected.items():
        torch.testing.assert_close(found[key].double(), value.double(), rtol=1e-5, atol=1e-5 * value.abs().max().item())


def test_a_filter_that_lets_nothing_through(monkeypatch):
    embeddings, weight, labels = data(5, 11, 8)
    compare(monkeypatch, cosface(11, 8, -1.0), embeddings, weight, all_columns(labels, 11), chunk=6)


def test_centres_and_embeddings_without_a_direction(monkeypatch):
    embeddings, weight, labels = data(5, 11, 8)
    weight[3], weight[4], embeddings[2] = 0, 1e-12, 0
    compare(monkeypatch, cosface(11, 8), embeddings, weight, all_columns(labels, 11), chunk=6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_centres_in_half_precision(monkeypatch, dtype):
    embeddings, weight, labels = data(5, 11, 8)
    compare(
        monkeypatch, cosface(11, 8), embeddings, weight.to(dtype), all_columns(labels, 11), chunk=6,
        relative=HALVES[dtype],
    )  # fmt: skip


@pytest.mark.parametrize("product", [torch.float32, torch.float16])
def test_products_that_are_no_cosines_and_a_scale_for_each_row(monkeypatch, product):
    class NormScale(MarginLoss):
        def row_scale(self, context):
            return 10 * context.norms

    embeddings, weight, labels = data(5, 11, 8)
    relative = 1e-5 if product == torch.float32 else 30 * HALVES[product]
    columns = all_columns(labels, 11)
    compare(monkeypatch, Softmax(8, 11), 2 * embeddings, weight, columns, product, chunk=4, relative=relative)
    compare(monkeypatch, NormScale(8, 11, 1.0), embeddings, weight, columns, product, chunk=4, relative=relative)


@pytest.mark.parametrize(("product", "kept"), [(torch.float32, 0), (torch.bfloat16, 3), (torch.float16, 5)])
def test_a_pass_over_the_same_logits(product, kept):
    """Where no product lies between, the passes in bf16 are as exact as their format."""
    generator = torch.Generator().manual_seed(1)
    logits = (20 * torch.randn(5, 13, generator=generator) - 90).to(product)  # all below 0
    place, limit = torch.tensor([4, 16, 17, -1, 9]), torch.full((5, 1), -65.0)
    largest, sums, best = torch.empty(5), torch.empty(5), torch.full((5,), -1e30)
    own, room = torch.full((5,), -torch.inf), torch.empty(kept, 13, dtype=product)
    chunk_kernels.scan(logits, place, 4, limit, largest, sums, best, own, room if kept else None)

    wide, smallest = logits.float(), torch.finfo(torch.float32).min
    is_own = torch.arange(4, 17) == place[:, None]
    assert is_own.sum(dim=1).tolist() == [1, 1, 0, 0, 1]
    torch.testing.assert_close(own, torch.where(is_own, wide, -torch.inf).amax(dim=1), rtol=0, atol=0)
    visible = wide.masked_fill(is_own, smallest)
    assert (best == visible.amax(dim=1)).all()
    assert (visible > limit).any()
    visible = visible.masked_fill(visible > limit, smallest)
    assert (largest == visible.amax(dim=1)).all()
    raised = torch.exp2(visible - largest[:, None])
    torch.testing.assert_close(sums, raised.sum(dim=1))
    rounding = HALVES.get(product, 1e-6)
    torch.testing.assert_close(room.float(), raised[:kept], rtol=rounding, atol=2**-24)
    chunk_kernels.exponentials(logits, place, 4, limit, largest)
    torch.testing.assert_close(logits.float(), raised, rtol=rounding, atol=2**-24)


@pytest.mark.parametrize("product", FORMATS)
def test_directions_and_what_comes_back_through_them(product):
    _, rows, _ = data(1, 11, 5)
    rows[2] = 0
    leaf = rows.double().requires_grad_()
    units = leaf / leaf.detach().norm(dim=1).clamp(min=1e-8)[:, None]
    found, inverse = torch.empty(11, 5, dtype=product), torch.empty(11)
    chunk_kernels.normalise(rows, found, inverse)
    torch.testing.assert_close(found.double(), units.detach(), rtol=HALVES.get(product, 1e-6), atol=1e-7)
    assert inverse[2] == 0

    slope, out = torch.randn(11, 5).to(product), torch.empty(11, 5)
    norms = leaf.norm(dim=1)
    directions = leaf / norms.masked_fill(norms < 1e-8, torch.inf)[:, None]
    (directions * slope.double()).sum().backward()
    chunk_kernels.project(slope, rows, inverse, out)
    torch.testing.assert_close(out.double(), torch.nan_to_num(leaf.grad), rtol=1e-5, atol=1e-6)


def test_it_is_said_once_why_there_are_no_kernels(monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("no compiler")

    cpu = torch.device("cpu")
    chunk_kernels.runs_on.cache_clear()
    assert chunk_kernels.runs_on(cpu)
    chunk_kernels.runs_on.cache_clear()
    monkeypatch.setattr(chunk_kernels, "normalise", broken)
    assert not chunk_kernels.runs_on(cpu)
    assert not chunk_kernels.runs_on(cpu)
    assert [record.getMessage() for record in caplog.records] == [
        "no Triton kernels on cpu, so the classifier is slower there: no compiler"
    ]
    chunk_kernels.runs_on.cache_clear()
