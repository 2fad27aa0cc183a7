"""Hard prototypes: queues and losses against slow references, on any number of ranks, and nothing else moves."""

import copy
import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from facelab.loss import neighbours, prototypes
from facelab.loss.adam_softmax import AdaMSoftmax
from facelab.loss.classifier import ClassCentres, ClassifierOptions
from facelab.loss.cosface import CosFace
from facelab.loss.neighbours import nearest, searches_exactly
from facelab.loss.prototypes import Prototypes, Queues, renewed
from facelab.loss.softmax import Softmax
from facelab.loss.sphereface2 import SphereFace2
from facelab.training import checkpoint
from facelab.training.optimization import SGD, AdamW, Poly

B, D, C, K = 12, 6, 41, 3
H = 0.1
REFRESH, STEPS, SAVED = 4, 6, 3  # a checkpoint is followed by a step with its queues, and by a search
WORLDS = (2, 3)
RECIPES = {
    "sgd": lambda: SGD(0.1, 0.9, False, 0.1, None, Poly(0, 1), 1.0, 1.0),
    "adamw": lambda: AdamW(0.02, (0.9, 0.99), 1e-8, 0.1, None, Poly(0, 1), 1.0, 1.0),
}
LOSSES = {
    "cosface": lambda c=C: CosFace(D, c, scale=20.0, margin=0.3),
    "sphereface2": lambda c=C: SphereFace2(D, c, scale=20.0, margin=0.4, exponent=3.0, balance=0.7, gradient=True),
    "adam_softmax": lambda c=C: AdaMSoftmax(D, c, 20.0, 0.3, 0.4, 5.0),
}


with torch.random.fork_rng(devices=[]):
    torch.manual_seed(3)
    CENTRES = ClassCentres(C, D).weight.detach().double()  # that every loss here begins with; all of them on every rank


def options(queue=K, refresh=REFRESH, threshold=H, search="exact", chunk="auto", filtered=None):
    return ClassifierOptions(chunk, 1.0, filtered, Prototypes(queue, refresh, threshold, search))


def made(build=LOSSES["cosface"], chosen=None):
    torch.manual_seed(3)
    loss = build().double()
    loss.configure(chosen or options())
    return loss


def batch(step):
    """Some images near their class, so that some are right; a third of the classes, often twice."""
    generator = torch.Generator().manual_seed(5 + step)
    labels = torch.randint(C, (B,), generator=generator) // 3 * 3
    return 100 * CENTRES[labels] + 1.2 * torch.randn(B, D, generator=generator, dtype=torch.float64), labels


def cosines(loss, images):
    return nn.functional.normalize(images) @ nn.functional.normalize(loss.classifier.weight.detach()).T


def searched(weight, count):
    """Row by row."""
    unit = nn.functional.normalize(weight)
    queues = []
    for row in range(len(weight)):
        others = [other for other in range(len(weight)) if other != row]
        others.sort(key=lambda other: -float(unit[row] @ unit[other]))
        queues.append((others + [-1] * count)[:count])
    return torch.tensor(queues)


def mined(queues, found, labels, union, threshold, filtered=None):
    """What becomes of all queues, image by image."""
    queues = [[other for other in queue if other >= 0] for queue in queues.tolist()]
    after = copy.deepcopy(queues)
    for own in set(labels.tolist()):
        others = [other for other in union if other != own]
        wrong = [row for row in range(B) if labels[row] == own and found[row, others].max() >= found[row, own]]
        entering = {}
        for row in wrong:
            seen = [other for other in others if filtered is None or found[row, other] <= filtered]
            for other in sorted(seen, key=lambda other: -found[row, other])[:K]:
                if found[row, other] > max(found[row, own], threshold):
                    entering[other] = max(entering.get(other, -1), found[row, other])
        if wrong:
            first = sorted(entering, key=lambda other: -entering[other])
            stay = [other for other in queues[own] if found[wrong, other].max() > threshold]
            after[own] = (first + [other for other in stay if other not in entering])[:K]
    return torch.tensor([(queue + [-1] * K)[:K] for queue in after], dtype=torch.int32)


def union_of(queues, labels):
    return sorted({*labels.tolist(), *queues[labels].flatten().tolist()} - {-1})


@pytest.mark.parametrize(("queries", "columns"), [(99, 99), (7, 5), (1, 1), (64, 8)])
@pytest.mark.parametrize("count", [1, K, C - 1, C + 2])
def test_a_search_is_row_by_row(monkeypatch, count, queries, columns):
    monkeypatch.setattr(neighbours, "_QUERIES", queries)
    monkeypatch.setattr(neighbours, "_COLUMNS", columns)
    weight = torch.randn(C, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(nearest(weight, count, exact=True), searched(weight, count))


def test_a_search_survives_centres_without_direction():
    weight = torch.randn(C, D)
    weight[4] = 0
    found = nearest(weight, C - 1, exact=True)
    everyone = torch.arange(C).expand(C, C)[~torch.eye(C, dtype=torch.bool)].view(C, C - 1)
    assert torch.equal(found.sort(dim=1).values, everyone)


@pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")
def test_faiss_finds_the_same():
    weight = torch.randn(200, D, generator=torch.Generator().manual_seed(1))
    assert torch.equal(nearest(weight, K, exact=False), nearest(weight, K, exact=True))


class Index:
    """What is used of faiss, with its conventions: float32 in and out, and −1 where there are no more."""

    def __init__(self, quantizer, size, lists, metric):
        assert (quantizer, size, metric) == (("flat", D), D, "cosine")
        self.lists, self.nprobe, self.trained = lists, 1, False

    def train(self, rows):
        assert len(rows) >= self.lists
        self.trained = True

    def add(self, rows):
        assert self.trained
        assert rows.dtype == np.float32
        assert np.allclose(np.linalg.norm(rows, axis=1), 1)
        self.rows = rows

    def search(self, queries, count):
        assert queries.dtype == np.float32
        found = queries @ self.rows.T
        places = np.argsort(-found, axis=1)[:, :count]
        missing = ((0, 0), (0, count - places.shape[1]))
        found = np.pad(np.take_along_axis(found, places, 1), missing, constant_values=np.finfo(np.float32).min)
        return found, np.pad(places, missing, constant_values=-1)


@pytest.mark.parametrize("count", [K, C + 2])
def test_what_faiss_gives_is_understood(monkeypatch, count):
    fake = SimpleNamespace(IndexFlatIP=lambda size: ("flat", size), IndexIVFFlat=Index, METRIC_INNER_PRODUCT="cosine")
    monkeypatch.setitem(sys.modules, "faiss", fake)
    assert torch.equal(nearest(CENTRES, count, exact=False), searched(CENTRES, count))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_entering_and_leaving(data):
    size, images, classes = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5)), 9
    group = data.draw(st.lists(st.integers(0, 2), min_size=images, max_size=images))
    queue = st.permutations(range(classes)).map(lambda found: found[:size])
    old, others = ([data.draw(queue) for _ in range(rows)] for rows in (3, images))
    stay = [data.draw(st.lists(st.booleans(), min_size=size, max_size=size)) for _ in old]
    # No two alike: which of two equal classes comes first is not promised.
    order = data.draw(st.permutations(range(images * size)))
    enters = data.draw(st.lists(st.booleans(), min_size=images * size, max_size=images * size))
    score = torch.tensor([place / 30 if enter else -torch.inf for place, enter in zip(order, enters, strict=True)])
    score = score.view(images, size)
    expected = []
    for row, members in enumerate(old):
        best = {}
        for image in (image for image in range(images) if group[image] == row):
            for other, value in zip(others[image], score[image].tolist(), strict=True):
                if value > -torch.inf:
                    best[other] = max(best.get(other, value), value)
        kept = [other for other, stays in zip(members, stay[row], strict=True) if stays and other not in best]
        expected.append((sorted(best, key=lambda other: -best[other]) + kept + [-1] * size)[:size])
    found = renewed(torch.tensor(old), torch.tensor(stay), torch.tensor(group), score, torch.tensor(others), classes)
    assert found.tolist() == expected


@pytest.mark.parametrize(("threshold", "filtered"), [(H, None), (H, 0.7), (0.7, None)])
@pytest.mark.parametrize("chunk", ["auto", 1, 4])
@pytest.mark.parametrize("name", ["cosface", "sphereface2"])
def test_images_that_are_wrong_change_their_queue(name, chunk, threshold, filtered):
    loss = made(LOSSES[name], options(chunk=chunk, threshold=threshold, filtered=filtered))
    entered = left = right = 0
    for step in range(3):
        images, labels = batch(step)
        before = loss.queues.classes.clone() if step else searched(loss.classifier.weight.detach(), K).int()
        found = cosines(loss, images)
        output = loss(images, labels, step)
        after = loss.queues.classes
        assert torch.equal(after, mined(before, found, labels, union_of(before, labels), threshold, filtered))
        entered += sum(len(set(a) - set(b)) for a, b in zip(after.tolist(), before.tolist(), strict=True))
        left += (after < 0).sum().item()
        right += output.rows["right"].sum().item()
    assert entered > 3
    assert left > 0
    assert 0 < right < 3 * B


@pytest.mark.parametrize("chunk", ["auto", 1, 4])
@pytest.mark.parametrize("name", ["cosface", "sphereface2"])
def test_a_step_is_that_of_the_union(name, chunk):
    loss = made(LOSSES[name], options(chunk=chunk))
    images, labels = batch(0)
    rows = torch.tensor(union_of(searched(loss.classifier.weight.detach(), K), labels))
    assert len(labels.unique()) + K < len(rows) < C - 5
    small = LOSSES[name](len(rows)).double()
    small.configure(ClassifierOptions(None, 1.0, None))
    small.classifier.weight.data = loss.classifier.weight.data[rows].clone()
    if name == "sphereface2":
        small.bias.data = loss.bias.data.clone()
    results = []
    for each, own in ((loss, labels), (small, torch.searchsorted(rows, labels))):
        leaf = images.clone().requires_grad_()
        value, logs, _ = each(leaf, own, 0)
        value.backward()
        results.append((value.detach(), logs["accuracy"], leaf.grad))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
    gradient = loss.classifier.weight.grad
    assert gradient.is_sparse
    assert torch.equal(gradient.coalesce().indices()[0], rows)
    torch.testing.assert_close(gradient.coalesce().values(), small.classifier.weight.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["cosface", "sphereface2"])
def test_queues_of_all_classes_and_evaluation_leave_nothing_out(name):
    exact = made(LOSSES[name], ClassifierOptions(None, 1.0, None))
    images, labels = batch(0)
    expected = exact(images, labels, 0)
    torch.testing.assert_close(made(LOSSES[name], options(queue=C + 3))(images, labels, 0).loss, expected.loss)
    loss = made(LOSSES[name]).eval()
    torch.testing.assert_close(loss(images, labels, 0), expected)
    assert (loss.queues.classes == -1).all()
    assert not torch.isclose(loss.train()(images, labels, 0).loss, expected.loss, rtol=1e-6)


def test_the_search_keeps_its_schedule(monkeypatch):
    steps = []
    monkeypatch.setattr(prototypes, "nearest", lambda *args: steps.append(step) or nearest(*args))
    loss = made()
    for step in (0, 0, 1, 2, 3, 4, 4, 5, 6, 7, 8):  # a step may see its batch in parts
        loss(*batch(step), step)
    assert steps == [0, 4, 8]
    resumed = made()
    resumed.load_state_dict(loss.state_dict())
    for step in (9, 10, 12):
        resumed(*batch(step), step)
    assert steps == [0, 4, 8, 12]
    step = 5
    made()(*batch(step), step)  # begun without queues, they are searched whatever the step
    assert steps[4:] == [5]


@pytest.mark.parametrize("recipe", RECIPES)
def test_nobody_else_moves(recipe):
    loss = made()
    optimizer = RECIPES[recipe]().build(loss)
    for step in range(STEPS):
        images, labels = batch(step)
        before = loss.classifier.weight.detach().clone()
        state = copy.deepcopy(dict(optimizer.state[loss.classifier.weight]))
        optimizer.zero_grad()
        loss(images, labels, step).loss.backward()
        taken = torch.zeros(C, dtype=torch.bool)
        taken[loss.classifier.weight.grad.coalesce().indices()[0]] = True
        assert taken[labels].all()
        assert not taken.all()
        optimizer.step()
        after = loss.classifier.weight.detach()
        assert torch.equal(after[~taken], before[~taken])
        assert (after[taken] != before[taken]).any(dim=1).all()
        for name, value in optimizer.state[loss.classifier.weight].items():
            if name in state:
                assert torch.equal(value[~taken], state[name][~taken])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"queue": 0}, r"prototypes\.queue=0: choose a whole number"),
        ({"queue": True}, r"prototypes\.queue=True"),
        ({"refresh": 0}, r"prototypes\.refresh=0"),
        ({"refresh": 1.5}, r"prototypes\.refresh=1\.5"),
        ({"threshold": 1.5}, r"prototypes\.threshold=1\.5"),
        ({"threshold": float("nan")}, r"prototypes\.threshold=nan"),
        ({"search": "hnsw"}, r"prototypes\.search=hnsw: choose one of auto, exact, faiss"),
        ({"chunk": None}, "prototypes need chunks: set chunk=auto"),
    ],
)
def test_bad_options_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        options(**changed)


def test_it_stands_alone():
    with pytest.raises(ValueError, match=r"sample_rate=0\.5 and prototypes both choose"):
        ClassifierOptions("auto", 0.5, None, Prototypes(K, REFRESH, H, "exact"))
    with pytest.raises(ValueError, match="mined by cosines, and Softmax has none"):
        Softmax(D, C).configure(options())
    loss = made()
    loss.configure(ClassifierOptions("auto", 1.0, None))
    assert loss.sharded_parameters() == list(loss.state_dict()) == ["classifier.weight"]


def test_faiss_is_asked_for_before_training(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"search=faiss is faiss's, and .*pip install 'facelab\[mining\]'"):
        made(chosen=options(search="faiss"))
    assert searches_exactly("auto", 2**20)
    assert searches_exactly("exact", 2**21)
    with pytest.raises(ValueError, match=r"search=auto is faiss's above 1048576 classes, .* search=exact"):
        searches_exactly("auto", 2**20 + 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert not searches_exactly("auto", 2**20 + 1)


class Model(nn.Module):
    """What a checkpoint needs to know of a module in training."""

    def __init__(self, build, chosen):
        super().__init__()
        torch.manual_seed(3)
        self.backbone = nn.Linear(D, D).double()
        nn.init.eye_(self.backbone.weight)
        self.loss = made(build, chosen)
        self.sharded = [f"loss.{name}" for name in self.loss.sharded_parameters()]
        self.shard_start, self.shard_stop = self.loss.classifier.start, self.loss.classifier.stop


RUNS = {
    "sgd": ("cosface", "sgd", options()),
    "chunks": ("cosface", "adamw", options(chunk=2, filtered=0.7)),
    "bias": ("sphereface2", "sgd", options(queue=C)),
    "margins": ("adam_softmax", "sgd", options(threshold=0.6)),
}


def train(run, rank, world, folder, resume=None):
    """Some steps, a checkpoint among them: what the last ones gave, and where this rank's rows and queues ended."""
    name, recipe, chosen = RUNS[run]
    model = Model(LOSSES[name], chosen)
    optimizer = RECIPES[recipe]().build(model)
    first = 0
    if resume is not None:
        first = checkpoint.load(folder / f"{run}-{resume}.ckpt", model, optimizer)["step"]
    results = []
    for step in range(first, STEPS):
        if step == SAVED and resume is None:
            checkpoint.save(folder / f"{run}-{world}.ckpt", model, optimizer, {"step": step})
        images, labels = batch(step)
        mine = slice(rank * B // world, (rank + 1) * B // world)
        optimizer.zero_grad()
        output = model.loss(model.backbone(images[mine]), labels[mine], step)
        output.loss.backward()
        for key, parameter in model.named_parameters():  # DDP's affair in a training
            if world > 1 and key not in model.sharded:
                dist.all_reduce(parameter.grad)
                parameter.grad /= world
        optimizer.step()
        results.append((output.loss.detach(), output.logs["accuracy"], model.backbone.weight.detach().clone()))
    return {"steps": results[SAVED - STEPS :], **{key: value.clone() for key, value in model.loss.state_dict().items()}}


def worker(rank, folder):
    torch.set_num_threads(1)
    for world in WORLDS:
        if rank < world:
            meeting = f"file://{folder}/rendezvous{world}"
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
            try:
                results = {run: train(run, rank, world, folder) for run in RUNS}
                if world == 3:  # what one and two processes left
                    for resume in (1, 2):
                        results |= {(run, resume): train(run, rank, world, folder, resume) for run in RUNS}
                torch.save(results, folder / f"{world}-{rank}.pt")
                dist.barrier()
            finally:
                dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    for run in RUNS:
        torch.save(train(run, 0, 1, folder), folder / f"1-{run}.pt")
    mp.spawn(worker, args=(folder,), nprocs=max(WORLDS))
    return folder


def assert_one_process(folder, run, parts):
    expected = torch.load(folder / f"1-{run}.pt")
    sharded = [*LOSSES[RUNS[run][0]]().sharded_parameters(), "queues.classes"]
    for key, value in expected.items():
        found = [torch.cat([part[key] for part in parts])] if key in sharded else [part[key] for part in parts]
        for each in found:
            torch.testing.assert_close(each, value, rtol=1e-9, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("world", WORLDS)
def test_ranks_mine_what_one_process_does(folder, world, run):
    assert_one_process(folder, run, [torch.load(folder / f"{world}-{rank}.pt")[run] for rank in range(world)])


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("resume", [1, 2])
def test_a_checkpoint_goes_on_with_three_ranks(folder, resume, run):
    assert_one_process(folder, run, [torch.load(folder / f"3-{rank}.pt")[run, resume] for rank in range(3)])


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("resume", [1, 2, 3])
def test_a_checkpoint_goes_on_with_one_process(folder, resume, run):
    assert_one_process(folder, run, [train(run, 0, 1, folder, resume)])


@pytest.mark.parametrize("run", RUNS)
def test_those_runs_do_mine(folder, run):
    queues = torch.load(folder / f"1-{run}.pt")["queues.classes"]
    assert isinstance(made(chosen=RUNS[run][2]).queues, Queues)
    assert (queues >= 0).any(dim=1).any()
    assert run != "margins" or (queues < 0).any()
