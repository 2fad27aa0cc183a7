"""FitNet and attention transfer against plain loops, and maps of other sizes and channels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from seen import STUDENT, TEACHER, B, labels, seen, with_gradients

from facelab.distill.attention_transfer import AttentionTransfer
from facelab.distill.fitnet import FitNet
from facelab.distill.maps import resized

WIDE = replace(TEACHER, features=((6, 6, 6), (10, 3, 3)))
LARGE = replace(TEACHER, features=((6, 12, 12), (10, 4, 5)))


def test_fitnet_against_loops():
    torch.manual_seed(0)
    distiller = FitNet(STUDENT, WIDE, weight=3.0).double()
    mine, theirs = seen(0), seen(1, WIDE)
    expected = 0.0
    for regressor, s, t in zip(distiller.regressors, mine.features, theirs.features, strict=True):
        weight, bias = regressor.weight.detach().numpy()[:, :, 0, 0], regressor.bias.detach().numpy()
        s, t, terms = s.numpy(), t.numpy(), []
        for image in range(B):
            for y in range(s.shape[2]):
                for x in range(s.shape[3]):
                    terms.extend((weight @ s[image, :, y, x] + bias - t[image, :, y, x]) ** 2)
        expected += 3 * np.mean(terms)
    assert distiller(mine, theirs, labels()).item() == pytest.approx(expected, rel=1e-12)


def test_fitnet_learns_its_regressors_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    distiller = FitNet(STUDENT, WIDE, weight=1.0).double()
    with torch.device("meta"):  # as a run looks at it first
        assert next(FitNet(STUDENT, WIDE, weight=1.0).parameters()).is_meta
    assert torch.equal(torch.get_rng_state(), before)
    assert [tuple(one.weight.shape) for one in distiller.regressors] == [(6, 4, 1, 1), (10, 8, 1, 1)]
    mine, theirs = seen(0), seen(1, WIDE)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.5)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        value = distiller(mine, theirs, labels())
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.9 * values[0]


def test_fitnet_of_equals_through_the_identity_is_zero():
    distiller = FitNet(STUDENT, STUDENT, weight=1.0).double()
    for regressor in distiller.regressors:
        torch.nn.init.dirac_(regressor.weight)
        torch.nn.init.zeros_(regressor.bias)
    assert distiller(seen(0), seen(0), labels()) == 0


def test_attention_transfer_against_loops():
    mine, theirs = seen(0), seen(1, WIDE)
    expected = 0.0
    for s, t in zip(mine.features, theirs.features, strict=True):
        differences = []
        for image in range(B):
            strong = [(one[image].numpy() ** 2).sum(axis=0).ravel() for one in (s, t)]
            mine_unit, theirs_unit = (a / np.sqrt((a**2).sum()) for a in strong)
            differences.append((mine_unit - theirs_unit) ** 2)
        expected += 1000 * np.mean(differences)
    value = AttentionTransfer(STUDENT, WIDE, weight=1000.0)(mine, theirs, labels())
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_maps_of_another_size_are_brought_to_the_students():
    mine, theirs = with_gradients(seen(0)), seen(1, LARGE)
    shrunk = replace(theirs, features=tuple(map(resized, theirs.features, mine.features)))
    fitnet = FitNet(STUDENT, LARGE, weight=1.0).double()
    assert fitnet(mine, theirs, labels()) == fitnet(mine, shrunk, labels()) > 0
    strong = [one.square().mean(dim=1, keepdim=True) for one in theirs.features]
    strong = replace(theirs, features=tuple(map(resized, strong, mine.features)))
    rooted = replace(strong, features=tuple(one.sqrt() for one in strong.features))
    transfer = AttentionTransfer(STUDENT, LARGE, weight=1.0)
    torch.testing.assert_close(transfer(mine, theirs, labels()), transfer(mine, rooted, labels()))
    (fitnet(mine, theirs, labels()) + transfer(mine, theirs, labels())).backward()
    assert all(feature.grad.abs().sum() > 0 for feature in mine.features)


@pytest.mark.parametrize("make", [FitNet, AttentionTransfer])
def test_what_cannot_be_is_refused(make):
    with pytest.raises(ValueError, match="student Small gives 2, the teacher Large 1: ask for as many"):
        make(STUDENT, replace(TEACHER, features=TEACHER.features[:1]), weight=1.0)
    with pytest.raises(ValueError, match=r"gives 0, the teacher Large 0: .*at least 1"):
        make(replace(STUDENT, features=()), replace(TEACHER, features=()), weight=1.0)
    with pytest.raises(ValueError, match="weight=-1"):
        make(STUDENT, TEACHER, weight=-1.0)
