"""What several processes agree upon: one gradient norm, and rows put back in their order."""

import pytest
import torch
from pytorch_lightning.strategies import DDPStrategy
from ranks import on_ranks
from torch import nn

from facelab.training.strategy import clip_gradients, deal_in, exclude_from_ddp, launched_rank, share_buffers, strategy

WORLDS = (2, 3)
C, D = 11, 4  # neither 2 nor 3 divides 11
LIMITS = (0.5, 1e6, None)
TOTALS = (3, 6, 7, 8)


def gradients():
    """One of a backbone, alike on all ranks, and one of the class centres, of which each rank has rows."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, D, generator=generator), torch.randn(C, D, generator=generator)


def parameter(gradient):
    made = nn.Parameter(torch.zeros_like(gradient))
    made.grad = gradient.clone()
    return made


def cards(total):
    return torch.arange(total * 2.0).reshape(total, 2)


def job(rank, world, folder):
    backbone, centres = gradients()
    results = {}
    for limit in LIMITS:
        replicated, shard = parameter(backbone), parameter(centres.tensor_split(world)[rank])
        norm = clip_gradients([replicated], [shard], limit)
        results[limit] = (norm, replicated.grad, shard.grad)
    # A rank may have nothing to clip, and must still take its part.
    results["no gradient"] = clip_gradients([], [] if rank else [parameter(centres)], 1.0)
    results["cards"] = {total: deal_in(cards(total)[rank::world], total) for total in TOTALS}
    norms = nn.Sequential(nn.BatchNorm1d(D), nn.BatchNorm1d(D))
    for norm in norms:
        norm.running_mean.fill_(rank + 1)
        norm.num_batches_tracked.fill_(rank + 1)
    with torch.inference_mode():  # as in a validation
        share_buffers(norms[0], norms[1])
    results["buffers"] = dict(norms.named_buffers())
    torch.save(results, folder / f"{world}-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    on_ranks(WORLDS, job, folder)
    return folder


@pytest.fixture(params=WORLDS)
def ranks(request, folder):
    return [torch.load(folder / f"{request.param}-{rank}.pt") for rank in range(request.param)]


def reference(limit):
    """What torch does with the whole matrix in one process."""
    parameters = [parameter(gradient) for gradient in gradients()]
    norm = nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit)
    return norm, *(p.grad for p in parameters)


@pytest.mark.parametrize("limit", LIMITS)
def test_one_process_clips_as_torch_does(limit):
    norm, backbone, centres = reference(limit)
    parameters = [parameter(gradient) for gradient in gradients()]
    measured = clip_gradients(parameters[:1], parameters[1:], limit)
    torch.testing.assert_close(measured.float(), norm)
    torch.testing.assert_close(parameters[0].grad, backbone)
    torch.testing.assert_close(parameters[1].grad, centres)


@pytest.mark.parametrize("limit", LIMITS)
def test_ranks_clip_as_one_process_does(ranks, limit):
    norm, backbone, centres = reference(limit)
    for rank in ranks:
        measured, replicated, _ = rank[limit]
        torch.testing.assert_close(measured.float(), norm)
        torch.testing.assert_close(replicated, backbone)
        assert torch.equal(replicated, ranks[0][limit][1])  # to the last bit, or the replicas drift apart
    torch.testing.assert_close(torch.cat([rank[limit][2] for rank in ranks]), centres)


def test_the_limits_of_the_test_tell_clipping_from_none():
    norm = reference(None)[0]
    assert LIMITS[0] < norm < LIMITS[1]


def test_a_rank_without_gradients_takes_its_part(ranks):
    for rank in ranks:
        torch.testing.assert_close(rank["no gradient"].float(), gradients()[1].norm())


def test_parameters_without_a_gradient_are_left_out():
    idle = nn.Parameter(torch.ones(3))
    assert clip_gradients([idle], [idle], 1.0) == 0
    assert clip_gradients([], [], 1.0) == 0
    assert idle.grad is None
    busy = parameter(torch.tensor([3.0, 4.0]))
    assert clip_gradients([idle, busy], [], 1.0) == pytest.approx(5)
    assert busy.grad.norm().item() == pytest.approx(1, rel=1e-5)


def test_a_gradient_that_is_not_finite_is_told():
    broken = parameter(torch.tensor([1.0, float("nan")]))
    assert torch.isnan(clip_gradients([broken], [], 1.0))


def test_buffers_are_those_of_the_first_rank(ranks):
    for rank in ranks:
        assert rank["buffers"]["0.running_mean"].tolist() == [1] * D
        assert rank["buffers"]["1.num_batches_tracked"] == 1


@pytest.mark.parametrize("total", TOTALS)
def test_rows_dealt_like_cards_come_back_in_order(ranks, total):
    for rank in ranks:
        assert torch.equal(rank["cards"][total], cards(total))


def test_one_process_holds_all_cards():
    assert torch.equal(deal_in(cards(5), 5), cards(5))


def test_ddp_leaves_shards_alone():
    module = nn.Linear(2, 2)
    exclude_from_ddp(module, ["loss.classifier.weight"])
    assert module._ddp_params_and_buffers_to_ignore == ["loss.classifier.weight"]


@pytest.mark.parametrize(
    ("environment", "rank"),
    [({}, 0), ({"LOCAL_RANK": "1"}, 1), ({"RANK": "5", "LOCAL_RANK": "1"}, 5), ({"SLURM_PROCID": "3"}, 3)],
)
def test_the_launchers_word_on_the_rank(monkeypatch, environment, rank):
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched_rank() == rank


def test_strategies():
    assert strategy(1, None) == "auto"
    several = strategy(2, None)
    assert isinstance(several, DDPStrategy)
    assert several._timeout.total_seconds() >= 3600  # a slower rank is waited for
    assert several._ddp_kwargs == {"gradient_as_bucket_view": True, "broadcast_buffers": False}
