"""CBAM in every residual network: the formula, the maps, what it adds, and that nothing else changes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from facelab.backbone.attention import CBAM, attention_maps
from facelab.backbone.complexity import count_parameters
from facelab.backbone.ir_se import IR
from facelab.backbone.iresnet import IResNet
from facelab.backbone.weights import load_weights

SHARED = {"layers": (1, 2, 1, 1), "widths": (16, 16, 32, 32), "embedding_size": 12, "dropout": 0.0, "image_size": 32}
KINDS = {"iresnet": (IResNet, {"stem_stride": 1}), "ir": (IR, {"se": False}), "ir_se": (IR, {"se": True})}


@pytest.fixture(params=KINDS)
def build(request):
    """attention, and other arguments → a small network of each kind."""
    network, own = KINDS[request.param]

    def made(attention="cbam", seed=0, **changes):
        torch.manual_seed(seed)
        return network(**{**SHARED, **own, "attention": attention, **changes})

    return made


def images(count=3, dtype=torch.float32):
    return torch.randn(count, 3, 32, 32, dtype=dtype, generator=torch.Generator().manual_seed(1))


def test_the_formula():
    """Channels first, from mean and maximum through one MLP, then places, from what that leaves; sums written out."""
    torch.manual_seed(0)
    module = CBAM(32).double()
    x = torch.randn(2, 32, 5, 4, dtype=torch.float64)
    first, second = (module.channel.mlp[layer].weight[:, :, 0, 0] for layer in (0, 2))
    pooled = (x.flatten(2).mean(2), x.flatten(2).max(2).values)
    channel = sum(F.relu(values @ first.T) @ second.T for values in pooled)
    weighed = torch.einsum("bchw,bc->bchw", x, 1 / (1 + (-channel).exp()))
    planes = F.pad(torch.stack([weighed.mean(1), weighed.max(1).values], dim=1), (1, 1, 1, 1))
    kernel = module.spatial.conv.weight[0]
    spatial = sum(
        planes[:, :, row : row + 5, column : column + 4].mul(kernel[None, :, row, column, None, None]).sum(1)
        for row in range(3)
        for column in range(3)
    )
    with attention_maps(module) as maps:
        result = module(x)
    torch.testing.assert_close(result, torch.einsum("bchw,bhw->bchw", weighed, 1 / (1 + (-spatial).exp())))
    torch.testing.assert_close(maps[0][0].flatten(1), channel)
    torch.testing.assert_close(maps[0][1].squeeze(1), spatial)


@pytest.mark.parametrize("kind", KINDS)
def test_maps_of_every_block_of_an_r50_have_the_stated_shapes(kind):
    network, own = KINDS[kind]
    sizes = [(64, 56)] * 3 + [(128, 28)] * 4 + [(256, 14)] * 14 + [(512, 7)] * 3
    with torch.device("meta"):
        built = network((3, 4, 14, 3), (64, 128, 256, 512), **own, embedding_size=512, dropout=0.0, attention="cbam",
                        image_size=112)  # fmt: skip
        plain = network((3, 4, 14, 3), (64, 128, 256, 512), **own, embedding_size=512, dropout=0.0, attention="none",
                        image_size=112)  # fmt: skip
        with attention_maps(built) as maps:
            built(torch.empty(2, 3, 112, 112))
    assert [channel.shape for channel, _ in maps] == [(2, channels, 1, 1) for channels, _ in sizes]
    assert [spatial.shape for _, spatial in maps] == [(2, 1, side, side) for _, side in sizes]
    added = sum(2 * channels * channels // 16 + 2 * 9 for channels, _ in sizes)
    assert count_parameters(built) - count_parameters(plain) == added == 223_152
    names = set(built.state_dict()) - set(plain.state_dict())
    assert all(".attention." in name for name in names)
    assert len(names) == 24 * 3
    assert set(plain.state_dict()) < set(built.state_dict())


def test_it_acts_before_the_sum_with_the_shortcut(build):
    """A unit's result is its shortcut and what attention leaves of the rest."""
    network = build().double().eval()
    unit = network.get_submodule("layer2.1" if isinstance(network, IResNet) else "body.2")
    x = torch.randn(2, 16, 6, 6, dtype=torch.float64)
    plain = copy.deepcopy(unit)
    plain.attention = None
    with torch.no_grad():
        residual = plain(x) - x
        torch.testing.assert_close(unit(x), x + unit.attention(residual))
    assert not torch.allclose(unit(x), plain(x))


def test_without_attention_nothing_of_it_is_there(build):
    network = build("none")
    assert not any("attention" in name for name in network.state_dict())
    assert not any(isinstance(module, CBAM) for module in network.modules())
    with (
        pytest.raises(ValueError, match=r"this (IResNet|IR) has no attention .*: set backbone\.attention=cbam"),
        attention_maps(network),
    ):
        pass
    with pytest.raises(ValueError, match=r"backbone\.attention is 'se': give one of none, cbam"):
        build("se")


def test_maps_are_kept_only_while_asked_for(build):
    network = build().eval()
    alone = network(images())
    with attention_maps(network) as maps:
        seen = network(images())
        assert len(maps) == 5
        with attention_maps(network) as inner:
            network(images())
        assert (len(maps), len(inner)) == (5, 5)
        network(images())
        assert len(maps) == 10
    assert torch.equal(alone, seen)
    network(images())
    assert len(maps) == 10
    assert all(module.record is None for module in network.modules() if isinstance(module, CBAM))
    with pytest.raises(RuntimeError), attention_maps(network):
        network(torch.zeros(1))
    assert all(module.record is None for module in network.modules() if isinstance(module, CBAM))


def test_gradients_go_through_the_maps(build):
    network = build()
    with attention_maps(network) as maps:
        network(images())
    sum(channel.square().sum() + spatial.square().sum() for channel, spatial in maps).backward()
    reached = [name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert sum(".attention." in name for name in reached) == 5 * 3


def test_every_parameter_learns_and_an_evaluation_is_of_each_image_by_itself(build):
    network = build().double()
    network(images(dtype=torch.float64)).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
    network.eval()
    x = images(dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network(x), torch.cat([network(image[None]) for image in x]))


def test_initial_values_are_xaviers_and_those_of_other_convolutions_stay(build):
    network = build(widths=(64,) * 4)
    weight = network.get_submodule("layer1.0" if isinstance(network, IResNet) else "body.0").attention.channel.mlp[0]
    bound = (6 / (64 + 4)) ** 0.5
    assert 0.9 * bound < weight.weight.abs().max() <= bound
    convolution = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    expected = 0.1 if isinstance(network, IResNet) else (2 / (9 * 64)) ** 0.5
    assert convolution.weight.std().item() == pytest.approx(expected, rel=0.1)


def test_half_precision_and_memory_formats(build):
    network = build().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = network(images())
    exact = network(images())
    assert half.dtype == torch.float32
    assert (half - exact).norm() < 0.05 * exact.norm()
    last = copy.deepcopy(network).double().to(memory_format=torch.channels_last)
    x = images(dtype=torch.float64)
    torch.testing.assert_close(last(x.contiguous(memory_format=torch.channels_last)), network.double()(x))


def test_weights_with_and_without_attention_are_told_apart(build, tmp_path):
    layers = {"layers": (3, 4, 14, 3), "widths": (16,) * 4}
    option = {"IResNet": "r50", "IR": "ir_(se_)?50"}[type(build()).__name__]
    for here, there in (("none", "cbam"), ("cbam", "none")):
        torch.save(build(there, **layers).state_dict(), tmp_path / "w.pt")
        with pytest.raises(ValueError, match=rf"family: backbone={option} backbone\.attention={there}$"):
            load_weights(build(here, **layers), tmp_path / "w.pt")
    load_weights(build("none", seed=1, **layers), tmp_path / "w.pt")
