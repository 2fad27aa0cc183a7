"""Schedules at points computed by hand, and which parameters decay."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from facelab.backbone.iresnet import IResNet
from facelab.loss.cosface import CosFace
from facelab.training.optimization import SGD, AdamW, Cosine, MultiStep, Poly, Schedule
from facelab.training.rows import RowSGD

EPOCH = 10  # steps


def factors(schedule, steps=40):
    return [schedule.factor(step, steps, EPOCH) for step in range(steps)]


def test_poly_falls_to_zero():
    assert factors(Poly(0, 1))[::10] == pytest.approx([1, 0.75, 0.5, 0.25])
    assert factors(Poly(0, 1))[-1] == pytest.approx(1 / 40)
    assert factors(Poly(0, 2))[::10] == pytest.approx([1, 0.5625, 0.25, 0.0625])
    # After one epoch of warm-up 30 steps remain: at step 25 half of them are done.
    assert Poly(1, 1).factor(25, 40, EPOCH) == pytest.approx(0.5)


def test_cosine_falls_to_its_floor():
    assert factors(Cosine(0, 0))[::10] == pytest.approx([1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)])
    assert Cosine(0, 0.1).factor(20, 40, EPOCH) == pytest.approx(0.55)
    assert Cosine(0, 0.1).factor(9_999, 10_000, EPOCH) == pytest.approx(0.1, abs=1e-6)
    assert Cosine(2, 0).factor(30, 40, EPOCH) == pytest.approx(0.5)


def test_multistep_counts_epochs_from_the_beginning():
    for warmup in (0, 0.5):
        schedule = MultiStep(warmup, [1, 2.5], 0.1)
        at = [schedule.factor(step, 40, EPOCH) for step in (5, 9, 10, 24, 25, 39)]
        assert at == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert factors(MultiStep(0, [], 0.1)) == [1] * 40


@pytest.mark.parametrize("schedule", [Poly(0.5, 1), Cosine(0.5, 0), MultiStep(0.5, [2], 0.1)])
def test_warm_up_rises_from_one_nth_to_all_of_it(schedule):
    share = factors(schedule)
    assert share[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert share[4] == share[5] == 1  # no jump where the decay takes over
    assert all(abs(a - b) < 0.21 for a, b in itertools.pairwise(share[:20]))


def test_a_warm_up_longer_than_the_run_is_all_there_is():
    assert factors(Poly(100, 1), steps=4) == pytest.approx([0.25, 0.5, 0.75, 1])


SCHEDULES = st.one_of(
    st.builds(Poly, st.floats(0, 9), st.floats(0.01, 9)),
    st.builds(Cosine, st.floats(0, 9), st.floats(0, 0.999)),
    st.builds(
        MultiStep,
        st.floats(0, 9),
        st.lists(st.floats(0.01, 30), max_size=5).map(sorted),
        st.floats(0.01, 1),
    ),
)


@given(SCHEDULES, st.integers(1, 10**7), st.integers(1, 10**5), st.data())
def test_the_share_is_between_nothing_and_all(schedule, steps, steps_per_epoch, data):
    step = data.draw(st.integers(0, steps - 1))
    share = schedule.factor(step, steps, steps_per_epoch)
    assert 0 <= share <= 1
    warm = round(schedule.warmup_epochs * steps_per_epoch)
    if step < min(warm, steps):
        assert share > 0
    elif step + 1 < steps:
        assert schedule.factor(step + 1, steps, steps_per_epoch) <= share


def test_schedules_share_their_warm_up_alone():
    with pytest.raises(TypeError, match="abstract"):
        Schedule(1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Poly(-1, 1), r"schedule\.warmup_epochs is -1: give 0 \(none\) or more"),
        (lambda: Poly(math.nan, 1), r"schedule\.warmup_epochs is nan"),
        (lambda: Poly(math.inf, 1), r"schedule\.warmup_epochs is inf"),
        (lambda: Poly(0, 0), r"schedule\.power is 0: give a number above 0"),
        (lambda: Cosine(0, 1), r"schedule\.floor is 1: give a share"),
        (lambda: Cosine(0, -0.1), r"schedule\.floor is -0\.1"),
        (lambda: MultiStep(0, [3, 2], 0.1), r"schedule\.milestones are \[3, 2\]: give rising epochs"),
        (lambda: MultiStep(0, [0, 2], 0.1), r"schedule\.milestones are \[0, 2\]"),
        (lambda: MultiStep(0, [1], 0), r"schedule\.gamma is 0: give a factor"),
        (lambda: MultiStep(0, [1], 1.1), r"schedule\.gamma is 1\.1"),
    ],
)
def test_wrong_schedules_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def sgd(**changes):
    arguments = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "clip_norm": 5.0}
    arguments |= {"stage_decay": 1.0, "backbone_factor": 1.0}
    return SGD(**{**arguments, "schedule": Poly(1, 1), **changes})


def adamw(**changes):
    arguments = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1, "clip_norm": None}
    arguments |= {"stage_decay": 1.0, "backbone_factor": 1.0}
    return AdamW(**{**arguments, "schedule": Cosine(1, 0), **changes})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: sgd(lr=0), r"optimizer\.lr is 0: give a number above 0"),
        (lambda: sgd(lr=math.nan), r"optimizer\.lr is nan"),
        (lambda: sgd(weight_decay=-1), r"optimizer\.weight_decay is -1: give 0 or more"),
        (lambda: sgd(clip_norm=0), r"optimizer\.clip_norm is 0: give a number above 0, or null"),
        (lambda: sgd(momentum=1), r"optimizer\.momentum is 1: give a number from 0 to below 1"),
        (lambda: sgd(momentum=0), r"optimizer\.nesterov needs momentum"),
        (lambda: adamw(betas=[0.9]), r"optimizer\.betas are \[0\.9\]: give two numbers"),
        (lambda: adamw(betas=[0.9, 1.0]), r"optimizer\.betas are \[0\.9, 1\.0\]"),
        (lambda: adamw(lr=-1), r"optimizer\.lr is -1"),
        (lambda: adamw(stage_decay=0), r"optimizer\.stage_decay is 0: give a factor above 0 and at most 1"),
        (lambda: sgd(stage_decay=1.1), r"optimizer\.stage_decay is 1\.1"),
        (lambda: sgd(backbone_factor=0), r"optimizer\.backbone_factor is 0: give a number above 0"),
        (lambda: sgd(backbone_factor=math.inf), r"optimizer\.backbone_factor is inf"),
    ],
)
def test_wrong_recipes_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=True)
        self.norm = nn.BatchNorm2d(4)
        self.slope = nn.PReLU(4)
        self.fixed = nn.Linear(4, 4)
        self.fixed.weight.requires_grad_(False)
        self.loss = CosFace(embedding_size=4, num_classes=5, scale=64.0, margin=0.35)
        self.loss.temperature = nn.Parameter(torch.tensor(1.0))
        self.loss.margins = nn.Parameter(torch.full((5, 2), 0.3))
        self.loss.without_decay = [self.loss.margins]


def names(model, parameters):
    of = {id(parameter): name for name, parameter in model.named_parameters()}
    return {of[id(parameter)] for parameter in parameters}


@pytest.mark.parametrize("recipe", [sgd(), adamw()])
def test_vectors_scalars_and_margins_do_not_decay(recipe):
    model = Model()
    decayed, free, own = recipe.build(model).param_groups
    assert names(model, decayed["params"]) == {"conv.weight", "loss.classifier.weight"}
    assert names(model, free["params"]) == {
        "conv.bias",
        "norm.weight",
        "norm.bias",
        "slope.weight",
        "fixed.bias",
        "loss.temperature",
    }
    assert names(model, own["params"]) == {"loss.margins"}
    assert [group["weight_decay"] for group in (decayed, free, own)] == [recipe.weight_decay, 0.0, 0.0]
    assert decayed["lr"] == recipe.lr


class Staged(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = IResNet([1, 1, 1, 1], [16, 16, 16, 32], 2, 8, 0.0, "none", 32)
        self.loss = CosFace(embedding_size=8, num_classes=5, scale=64.0, margin=0.35)


def test_without_rates_of_their_own_the_groups_are_as_ever():
    model = Staged()
    decayed, free = sgd().build(model).param_groups
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for group, wanted in ((decayed, True), (free, False)):
        assert [id(p) for p in group["params"]] == [id(p) for p in trainable if (p.dim() > 1) == wanted]
        assert group["factor"] == 1.0


@pytest.mark.parametrize("build", [sgd, adamw])
def test_each_stage_has_its_share_of_the_rate(build):
    model = Staged()
    model.backbone.layer1.requires_grad_(False)
    groups = build(stage_decay=0.5, backbone_factor=0.1).build(model).param_groups
    of = {name: group for group in groups for name in names(model, group["params"])}
    assert set(of) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert of["loss.classifier.weight"]["factor"] == 1.0
    for place, part in enumerate(["fc", "layer4", "layer3", "layer2", "layer1", "conv1"]):
        for name in (name for name in of if name.split(".")[1] == part):
            assert of[name]["factor"] == pytest.approx(0.1 * 0.5**place), name
    for name, group in of.items():
        assert (group["weight_decay"] > 0) == (model.get_parameter(name).dim() > 1)


def test_the_whole_backbone_can_be_slower_even_if_it_does_not_say_its_stages():
    model = Model()
    model.backbone = nn.Linear(3, 4)
    groups = sgd(backbone_factor=0.1).build(model).param_groups
    slow = [group for group in groups if group["factor"] == 0.1]
    assert set().union(*(names(model, group["params"]) for group in slow)) == {"backbone.weight", "backbone.bias"}
    with pytest.raises(ValueError, match=r"^Linear does not say what its stages are"):
        sgd(stage_decay=0.5).build(model)


def test_no_empty_group():
    (group,) = sgd().groups(nn.Linear(2, 3, bias=False))
    assert group["weight_decay"] == 5e-4


def test_decay_acts_where_it_should():
    model = nn.Sequential(nn.Linear(2, 3))
    optimizer = sgd(lr=0.5, weight_decay=0.1, momentum=0, nesterov=False).build(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model[0].weight, before["0.weight"] * 0.95)
    assert torch.equal(model[0].bias, before["0.bias"])


def test_recipes_hand_their_numbers_on():
    built = sgd(momentum=0.8).build(nn.Linear(2, 3))
    assert isinstance(built, torch.optim.SGD)
    assert (built.defaults["momentum"], built.defaults["nesterov"]) == (0.8, True)
    built = adamw(betas=[0.8, 0.95], eps=1e-6).build(nn.Linear(2, 3))
    assert isinstance(built, torch.optim.AdamW)
    assert (built.defaults["betas"], built.defaults["eps"]) == ((0.8, 0.95), 1e-6)


@pytest.mark.parametrize("momentum", [0, 0.9])
def test_a_fused_step_is_the_same_step(momentum):
    """As on a GPU; one parameter gets its first gradient later than the others, one has sparse gradients."""
    torch.manual_seed(0)
    start = [torch.randn(4, 3), torch.randn(5), torch.randn(6, 2)]
    found = []
    for fused in (False, True):
        torch.manual_seed(1)
        dense, late, sparse = parameters = [nn.Parameter(value.clone()) for value in start]
        optimizer = RowSGD(parameters, lr=0.1, momentum=momentum, nesterov=momentum > 0, weight_decay=0.1, fused=fused)
        for step in range(4):
            dense.grad = torch.randn(4, 3)
            late.grad = torch.randn(5) if step > 1 else None
            values = torch.randn(2, 2)
            sparse.grad = torch.sparse_coo_tensor(torch.tensor([[1, 4]]), values, (6, 2), check_invariants=True)
            optimizer.step()
        found.append(parameters)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert all((one != value).any() for one, value in zip(found[1], start, strict=True))


@pytest.mark.gpu
def test_a_step_on_a_gpu_makes_no_copy():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = nn.Linear(1000, 1000, device="cuda")
    optimizer = sgd().build(model)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        optimizer.step()
    assert torch.cuda.max_memory_allocated() - before < 10**6


def test_the_rate_is_a_share_of_the_full_one():
    assert sgd(lr=0.4).rate(0, 40, EPOCH) == pytest.approx(0.04)
    assert sgd(lr=0.4).rate(9, 40, EPOCH) == pytest.approx(0.4)
    assert sgd(lr=0.4).rate(25, 40, EPOCH) == pytest.approx(0.2)
