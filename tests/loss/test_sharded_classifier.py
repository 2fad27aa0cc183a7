"""One to four processes compute what one alone computes, in float64 to 1e-10: whole or in chunks."""

import pytest
import torch
from ranks import on_ranks
from reference import EveryHook

from facelab.loss.adam_softmax import AdaMSoftmax
from facelab.loss.arcface import ArcFace
from facelab.loss.classifier import ClassCentres, ClassifierOptions, MarginLoss
from facelab.loss.collective import enter_shards, gather_rows, row_counts
from facelab.loss.cosface import CosFace
from facelab.loss.softmax import Softmax

B, D, C = 12, 8, 11  # neither 2, 3 nor 4 divides C
STEP = 4
WORLDS = (1, 2, 3, 4)
CHUNKS = (None, 3)  # some ranks then have a chunk more than others
UNEVEN = {1: (B,), 2: (7, 5), 3: (3, 9, 0), 4: (1, 4, 5, 2)}


class OneAgainstAll(MarginLoss):
    """Another reduction: every class is a binary question, with a learnable bias."""

    combine = "sum"

    def __init__(self, embedding_size, num_classes, scale):
        super().__init__(embedding_size, num_classes, scale)
        self.bias = torch.nn.Parameter(torch.tensor(-0.3))

    def others(self, logits, context):
        return torch.nn.functional.softplus(logits + enter_shards(self.bias)).sum(dim=1)

    def reduction(self, others, target, context):
        return (torch.nn.functional.softplus(-target - self.bias) + others).mean()


LOSSES = {
    "softmax": lambda: Softmax(D, C),
    "norm_softmax": lambda: MarginLoss(D, C, 30.0),
    "steep": lambda: MarginLoss(D, C, 900.0),  # a probability that is clamped at 1e-30 caps the loss at 69
    "arcface": lambda: ArcFace(D, C, scale=30.0, margin=0.5, gradient=True, past_pi="monotone"),
    "arcface_straight": lambda: ArcFace(D, C, scale=30.0, margin=0.5, gradient="straight_through", past_pi="unguarded"),
    "cosface": lambda: CosFace(D, C, scale=30.0, margin=0.35),
    "adam_softmax": lambda: AdaMSoftmax(D, C, scale=30.0, margin_low=0.3, margin_high=0.4, lambda_margin=7.0),
    "every_hook": lambda: EveryHook(D, C, 30.0),
    "one_against_all": lambda: OneAgainstAll(D, C, 30.0),
}


def whole_batch():
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(B, D, generator=generator, dtype=torch.float64)
    labels = torch.randint(C, (B,), generator=generator)
    weight = torch.randn(C, D, generator=generator, dtype=torch.float64)
    # Half of the rows near their centre, so that the accuracy is neither 0 nor 1.
    images[::2] = weight[labels[::2]] + 0.3 * images[::2]
    return images, labels, weight


def even(world):
    return tuple(len(part) for part in torch.arange(B).tensor_split(world))


def linear():
    backbone = torch.nn.Linear(D, D).double()
    torch.nn.init.eye_(backbone.weight)
    torch.nn.init.zeros_(backbone.bias)
    return backbone


def compute(build, rank, sizes, chunk, network):
    """Loss, logs and all gradients of one rank: of the embeddings, the loss's parameters, the backbone's average."""
    images, labels, weight = whole_batch()
    torch.manual_seed(7)
    loss = build().double()
    loss.classifier.weight.data = weight[loss.classifier.start : loss.classifier.stop].clone()
    loss.configure(ClassifierOptions(chunk, 1.0, 0.8 if loss.normalised else None))
    images, labels = images.split(sizes)[rank], labels.split(sizes)[rank]

    embeddings = images.clone().requires_grad_()
    value, logs, _ = loss(embeddings, labels, STEP)
    value.backward()
    result = {
        "loss": value.detach(),
        "accuracy": logs["accuracy"],
        "embeddings": embeddings.grad,
        "logits": loss.logits(images, labels, STEP).detach(),
        **{name: parameter.grad for name, parameter in loss.named_parameters()},
        **{f"buffer/{name}": buffer for name, buffer in loss.named_buffers()},
    }
    network.zero_grad()
    loss(network(images), labels, STEP).loss.backward()
    (weight, _) = network.parameters()
    return {**result, "backbone": weight.grad.clone()}


def centres():
    torch.manual_seed(3)
    return {classes: ClassCentres(classes, 4) for classes in (C, 9000)}


def job(rank, world, folder):
    network = torch.nn.parallel.DistributedDataParallel(linear())  # one for all: to make it takes a third of a second
    results = {
        (name, chunk, sizes): compute(build, rank, sizes, chunk, network)
        for name, build in LOSSES.items()
        for chunk in CHUNKS
        for sizes in dict.fromkeys((even(world), UNEVEN[world]))
    }
    mine = torch.full((UNEVEN[world][rank], 2), rank)
    results["gathered"] = (row_counts(mine), gather_rows(mine))
    results["centres"] = {classes: (part.start, part.stop, part.weight.detach()) for classes, part in centres().items()}
    early = torch.load(folder / "early.pt", weights_only=False)
    for name, call in {
        "early": lambda: early(torch.ones(1, D), torch.tensor([0]), 0),
        "few": lambda: ClassCentres(world - 1, 4),
    }.items():
        try:
            call()
        except ValueError as error:
            results[name] = str(error)
    torch.save(results, folder / f"{world}-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(MarginLoss(D, C, 30.0), folder / "early.pt")  # built before the ranks met
    on_ranks(WORLDS, job, folder)
    return folder


@pytest.fixture(params=WORLDS)
def ranks(request, folder):
    return [torch.load(folder / f"{request.param}-{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("batches", ["even", "uneven"])
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("name", LOSSES)
def test_ranks_equal_one_process(name, chunk, batches, ranks):
    world = len(ranks)
    sizes = UNEVEN[world] if batches == "uneven" else even(world)
    expected = compute(LOSSES[name], 0, (B,), None, linear())
    parts = [rank[name, chunk, sizes] for rank in ranks]
    assert 0 < expected["accuracy"] < 1
    assert name != "steep" or expected["loss"] > 100
    joined = {
        "embeddings": torch.cat([part["embeddings"] for part in parts]) / world,  # DDP divides by the world size
        "logits": torch.cat([part["logits"] for part in parts], dim=1),
        **{key: torch.cat([part[key] for part in parts]) for key in LOSSES[name]().sharded_parameters()},
    }
    for key, value in joined.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-10, atol=1e-10, msg=lambda text, key=key: key + text)
    for key in expected.keys() - joined.keys():  # alike on every rank
        for part in parts:
            torch.testing.assert_close(
                part[key], expected[key], rtol=1e-10, atol=1e-10, msg=lambda text, key=key: key + text
            )


def test_centres_are_one_matrix_whatever_the_world_size(ranks):
    for classes, whole in centres().items():
        parts = [rank["centres"][classes] for rank in ranks]
        assert [0] + [stop for _, stop, _ in parts] == [start for start, _, _ in parts] + [classes]
        assert torch.equal(torch.cat([weight for _, _, weight in parts]), whole.weight)
        sizes = [len(weight) for _, _, weight in parts]
        assert sizes == [len(part) for part in torch.arange(classes).tensor_split(len(ranks))]


def test_rows_are_gathered_in_the_order_of_ranks(ranks):
    world = len(ranks)
    for rank in ranks:
        counts, rows = rank["gathered"]
        assert tuple(counts) == UNEVEN[world]
        assert rows[:, 0].tolist() == [r for r, count in enumerate(counts) for _ in range(count)]


def test_misuse_is_refused(ranks):
    world = len(ranks)
    for rank in ranks:
        assert f"num_classes={world - 1} cannot be shared by {world} ranks" in rank["few"]
        if world == 1:
            assert "early" not in rank
        else:
            assert f"built for 1 rank(s) and runs on {world}" in rank["early"]
