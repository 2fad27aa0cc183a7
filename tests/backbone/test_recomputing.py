"""Recomputed units: less is kept, and nothing else differs."""

import copy

import pytest
import torch
from torch import nn

from facelab.backbone.attention import attention_maps
from facelab.backbone.ir_se import IR
from facelab.backbone.iresnet import IResNet
from facelab.backbone.mbf import MBF
from facelab.backbone.recomputing import recompute
from facelab.backbone.stages import feature_maps
from facelab.backbone.timm_model import TimmModel
from facelab.backbone.vit import ViT

SIZES = {"layers": [2, 1, 1, 1], "widths": [16, 16, 16, 32], "embedding_size": 8, "dropout": 0.3, "image_size": 32}
NETWORKS = {
    "iresnet": lambda: IResNet(stem_stride=2, attention="cbam", **SIZES),
    "ir_se": lambda: IR(se=True, attention="none", **SIZES),
    "mbf": lambda: MBF([1, 1, 1, 1], 1, 8, 32),
    "vit": lambda: ViT(8, 16, 5, 2, 0.5, 0.25, 8, 32),
    "timm": lambda: TimmModel("convnext_atto", 8, 0.1, 0.5, False, 32),
    "timm with batch norms": lambda: TimmModel("resnet18", 8, 0.1, 0.5, False, 32),
}


def pair(name):
    torch.manual_seed(0)
    plain = NETWORKS[name]().double().train()
    frugal = copy.deepcopy(plain)
    recompute(frugal)
    return plain, frugal


def images(count=5):
    return torch.randn(count, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def step(network):
    torch.manual_seed(2)
    embeddings = network(images())
    loss = (embeddings * torch.linspace(-1, 1, 8, dtype=torch.float64)).square().mean()
    loss.backward()
    return loss, torch.rand(1)  # what comes after in the stream of random numbers


def kept(network):
    """Bytes that the forward pass leaves for the backward pass, without parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        embeddings = network(images())
    assert embeddings.requires_grad  # and everything kept is still alive
    return sum(found.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_statistics_and_draws_are_the_same(name):
    plain, frugal = pair(name)
    (loss, drawn), (again, drawn_again) = step(plain), step(frugal)
    assert torch.equal(loss, again)
    assert torch.equal(drawn, drawn_again)
    for (key, one), (_, other) in zip(plain.named_parameters(), frugal.named_parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), key
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=0, atol=1e-13, msg=key)
    before = NETWORKS[name]().double().state_dict()
    for (key, one), (_, other) in zip(plain.state_dict().items(), frugal.state_dict().items(), strict=True):
        assert torch.equal(one, other), key
        if key.endswith("running_mean"):
            assert not torch.equal(one, before[key])  # they have moved, and once: the same as without


@pytest.mark.parametrize("name", ["iresnet", "vit"])
def test_less_is_kept(name):
    plain, frugal = pair(name)
    assert kept(frugal) < 0.5 * kept(plain)


def test_norms_are_as_before_when_the_pass_is_over():
    _, frugal = pair("iresnet")
    frugal.layer1[0].bn1.momentum = None  # a cumulative average
    step(frugal)
    norms = [module for module in frugal.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert [norm.momentum for norm in norms].count(0.1) == len(norms) - 1
    assert {int(norm.num_batches_tracked) for norm in norms} == {1}


def test_maps_are_noted_once_and_have_gradients():
    """The backward pass runs inside the `with`, where units are computed again."""
    results = []
    for network in pair("iresnet"):
        torch.manual_seed(2)
        with feature_maps(network) as features, attention_maps(network) as attention:
            network(images())
            (features[1].square().mean() + attention[1][0].square().mean() + attention[4][1].square().mean()).backward()
        assert (len(features), len(attention)) == (4, 5)
        assert network.layer1[1].attention.record is None
        results.append([parameter.grad for parameter in network.parameters()])
    for one, other in zip(*results, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(other, one, rtol=0, atol=1e-13)


def test_half_precision_is_recomputed_in_half_precision():
    results = []
    for network in pair("iresnet"):
        network.float()
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16):
            loss = network(images().float()).square().mean()
        loss.backward()
        results.append(network.layer1[0].conv1.weight.grad)
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_only_training_is_computed_twice():
    _, frugal = pair("iresnet")
    calls = []
    forward = IResNet.forward
    unit = frugal.layer1[0]
    unit.conv1.register_forward_hook(lambda *_: calls.append(1))
    step(frugal)
    assert len(calls) == 2
    calls.clear()
    frugal.eval()
    frugal(images()).sum().backward()
    frugal.train()
    with torch.no_grad():
        frugal(images())
    assert len(calls) == 2
    assert frugal.forward.__func__ is forward


def test_a_copy_computes_with_its_own_weights():
    plain, frugal = pair("iresnet")
    other = copy.deepcopy(frugal)
    for parameter in frugal.parameters():
        parameter.data.zero_()
    torch.manual_seed(2)
    expected = plain(images())
    torch.manual_seed(2)
    torch.testing.assert_close(other(images()), expected)
    assert list(other.state_dict()) == list(plain.state_dict())
