"""Frozen stages: no gradient, nothing random, and statistics that stay."""

import copy

import pytest
import torch
from torch import nn

from facelab.backbone.freezing import freeze
from facelab.backbone.iresnet import IResNet
from facelab.backbone.vit import ViT


def iresnet():
    torch.manual_seed(0)
    return IResNet([1, 1, 1, 1], [16, 16, 16, 32], 2, 8, 0.0, "none", 32)


def images(seed=1):
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", range(7))
def test_the_first_stages_have_neither_gradients_nor_new_statistics(count):
    network = iresnet()
    found = network.stages()
    freeze(network, count)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.eval()
    network.train()
    embeddings = network(images())
    assert embeddings.requires_grad == (count < 6)
    if count < 6:
        embeddings.square().sum().backward()
    names = {id(module): name for name, module in network.named_modules()}
    frozen = tuple(f"{names[id(module)]}." for stage in found[:count] for module in stage.modules)
    for name, parameter in network.named_parameters():
        fixed = name.startswith(frozen) if frozen else False
        assert (parameter.grad is None) == (fixed or name == "features.weight"), name
    for name, value in network.state_dict().items():
        if "running" in name or "tracked" in name:
            assert torch.equal(value, before[name]) == (name.startswith(frozen) if frozen else False), name


def test_nothing_is_drawn_in_frozen_stages():
    torch.manual_seed(0)
    network = ViT(8, 16, 4, 2, 0.9, 0.0, 8, 32)
    freeze(network, 5)
    network.train()
    network.feature[1].eval()
    network.feature[3].eval()
    assert torch.equal(network(images()), network(images()))
    assert network.pos_embed.grad_fn is None
    assert not network.pos_embed.requires_grad


def test_a_copy_rests_by_itself():
    network = iresnet()
    freeze(network, 2)
    other = copy.deepcopy(network)
    network.bn1.training = True
    other.train()
    assert not other.bn1.training
    assert network.bn1.training
    assert other.layer2[0].bn1.training


@pytest.mark.parametrize("count", [7, -1])
def test_more_than_there_are(count):
    line = rf"^backbone\.freeze is {count}: give 0 \(none\) to 6 of this IResNet's stages \(stem, layer1, .*, neck\)$"
    with pytest.raises(ValueError, match=line):
        freeze(iresnet(), count)


def test_a_network_without_stages_can_be_left_alone():
    freeze(nn.Linear(1, 1), 0)
    with pytest.raises(ValueError, match="Linear does not say what its stages are"):
        freeze(nn.Linear(1, 1), 1)
