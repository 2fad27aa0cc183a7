"""Stages: each network says its own, they hold all of it, and their maps are those that it computes."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from facelab.backbone.attention import attention_maps
from facelab.backbone.iresnet import IResNet
from facelab.backbone.mbf import MBF
from facelab.backbone.stages import feature_maps, shapes, stages
from facelab.backbone.timm_model import TimmModel
from facelab.backbone.vit import ViT

CONF = Path(__file__).resolve().parents[2] / "conf" / "backbone"
SIZE = 112


def iresnet(**changes):
    given = {"layers": [2, 1, 1, 1], "widths": [16, 16, 16, 32], "stem_stride": 2, "embedding_size": 8, "dropout": 0.0}
    return IResNet(**{**given, "attention": "none", "image_size": 32, **changes})


def vit(**changes):
    given = {"patch": 8, "width": 16, "depth": 5, "heads": 2, "drop_path": 0.0, "mask": 0.0, "embedding_size": 8}
    return ViT(**{**given, "image_size": 32, **changes})


def timm(model, size=112):
    return TimmModel(model, 8, 0.0, 0.0, False, size)


# A file without a network of its own brings one of the others together with something else.
NETWORKS = sorted(path.stem for path in CONF.glob("*.yaml") if "_target_:" in path.read_text())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_backbone_says_its_stages(name):
    config = OmegaConf.create({"data": {"size": SIZE}, "backbone": OmegaConf.load(CONF / f"{name}.yaml")})
    with torch.device("meta"):
        network = instantiate(config.backbone)
    found = stages(network)
    held = [id(parameter) for stage in found for parameter in stage.parameters()]
    assert sorted(held) == sorted(id(parameter) for parameter in network.parameters())
    assert all(stage.modules for stage in found)
    assert len({stage.name for stage in found}) == len(found) >= 5
    features, attention = shapes(network, SIZE)
    assert len(features) == len(found) - 2
    assert attention == []
    sides = [height for _, height, width in features if height == width]
    assert sides == sorted(sides, reverse=True)
    assert len(sides) == len(features)
    if name not in ("timm", "tiny") and not name.startswith("vit"):
        assert sides == [56, 28, 14, 7]  # so that each can be compared with each


def test_maps_are_what_the_stages_give_with_gradients():
    torch.manual_seed(0)
    network, images = iresnet().double(), torch.randn(3, 3, 32, 32, dtype=torch.float64)
    with feature_maps(network) as maps:
        network(images)
    x = network.prelu(network.bn1(network.conv1(images)))
    for number, features in enumerate(maps, start=1):
        x = network.get_submodule(f"layer{number}")(x)
        torch.testing.assert_close(features, x)
    assert len(maps) == 4
    maps[1].square().sum().backward()
    assert network.conv1.weight.grad.abs().sum() > 0
    assert network.layer3[0].conv1.weight.grad is None
    assert shapes(network, 32)[0] == [tuple(features.shape[1:]) for features in maps]


def test_outside_nothing_is_kept_even_after_an_error():
    network = iresnet().eval()
    with pytest.raises(ZeroDivisionError), feature_maps(network) as maps:
        raise ZeroDivisionError
    network(torch.zeros(1, 3, 32, 32))
    assert maps == []
    assert not any(module._forward_hooks for module in network.modules())


def test_a_compiled_network_gives_its_maps_too():
    network = iresnet().eval()
    images = torch.randn(2, 3, 32, 32)
    network.compile(backend="eager")
    plain = network(images)  # compiled before anybody asks
    for _ in range(2):
        with feature_maps(network) as maps:
            torch.testing.assert_close(network(images), plain)
        assert [features.shape[1] for features in maps] == [16, 16, 16, 32]
    network(images)
    assert len(maps) == 4


def test_both_kinds_of_maps_at_once():
    network = iresnet(attention="cbam").eval()
    with feature_maps(network) as features, attention_maps(network) as attention:
        network(torch.zeros(2, 3, 32, 32))
    assert len(features) == 4
    assert len(attention) == 5
    assert shapes(network, 32) == (
        [(16, 8, 8), (16, 4, 4), (16, 2, 2), (32, 1, 1)],
        [(16, 8, 8), (16, 8, 8), (16, 4, 4), (16, 2, 2), (32, 1, 1)],
    )


def test_shapes_leave_the_network_as_it_is():
    network = iresnet().train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    shapes(network, 32)
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_units_of_mbf_are_in_their_rows():
    network = MBF([2, 1, 3, 1], 1, 8, 32)
    assert [len(stage.modules) for stage in network.stages()] == [1, 2, 2, 4, 2, 2]


# Transformers


def test_tokens_become_a_map_row_by_row():
    network = vit().eval()
    seen = []
    network.blocks[4].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with feature_maps(network) as maps:
        network(torch.randn(2, 3, 32, 32))
    assert [len(stage.modules) for stage in network.stages()] == [1, 1, 1, 1, 2, 2]
    assert [tuple(features.shape) for features in maps] == [(2, 16, 4, 4)] * 4
    torch.testing.assert_close(maps[-1][1, :, 2, 3], seen[0][1, 2 * 4 + 3])


def test_a_shallow_one_has_fewer_stages():
    assert [len(stage.modules) for stage in vit(depth=2).stages()] == [1, 1, 1, 2]


def test_places_left_out_have_the_mean_of_the_others():
    torch.manual_seed(1)
    network = vit(mask=0.25).train()
    seen, places = [], []
    network.blocks[4].register_forward_hook(lambda module, inputs, output: seen.append(output))
    hook = network.blocks[4].register_forward_pre_hook(lambda *_: places.append(network._places[:, :, 0]))
    with feature_maps(network) as maps:
        network(torch.randn(2, 3, 32, 32))
    tokens, kept = seen[0], places[0]
    assert kept.shape == (2, 12)
    rows = maps[-1].flatten(2)
    for image in range(2):
        torch.testing.assert_close(rows[image][:, kept[image]].T, tokens[image])
        others = [place for place in range(16) if place not in kept[image]]
        torch.testing.assert_close(rows[image][:, others], tokens[image].mean(0)[:, None].expand(-1, 4))
    assert network._places is None
    hook.remove()
    network.eval()
    with feature_maps(network) as maps:
        network(torch.randn(2, 3, 32, 32))
    assert maps[0].shape == (2, 16, 4, 4)


# timm


@pytest.mark.parametrize(
    ("model", "sides", "channels"),
    [
        ("resnet18", [28, 14, 7, 4], [64, 128, 256, 512]),
        ("convnext_atto", [28, 14, 7, 3], [40, 80, 160, 320]),
        ("efficientnet_b0", [56, 28, 14, 7, 7, 4, 4], [16, 24, 40, 80, 112, 192, 320]),
        ("swin_tiny_patch4_window7_224", [28, 14, 7, 4], [96, 192, 384, 768]),  # channels last
        ("vit_tiny_patch16_224", [7] * 4, [192] * 4),  # a class token; twelve groups
        ("mixer_s16_224", [7] * 4, [512] * 4),  # eight groups
        ("densenet121", [28, 14, 7, 3], [128, 256, 512, 1024]),  # a norm beside the stages
        ("caformer_s18", [28, 14, 7, 4], [64, 128, 320, 512]),  # timm has no groups for it
    ],
)
def test_timms_networks(model, sides, channels):
    with torch.device("meta"):
        network = timm(model)
    found = stages(network)
    assert [stage.name for stage in found] == ["stem", *(f"stage{n}" for n in range(1, len(sides) + 1)), "neck"]
    assert shapes(network, 112)[0] == [(c, side, side) for c, side in zip(channels, sides, strict=True)]
    assert set(found[-1].modules) >= {network.norm, network.fc, network.features}


def test_a_transformers_position_embedding_is_of_its_stem():
    with torch.device("meta"):
        network = timm("vit_tiny_patch16_224")
    stem = {id(parameter) for parameter in network.stages()[0].parameters()}
    assert {id(network.body.pos_embed), id(network.body.cls_token), id(network.body.patch_embed.proj.weight)} <= stem


def test_outputs_that_are_no_maps_are_named():
    with torch.device("meta"):
        network = timm("resnet18")
        with pytest.raises(ValueError, match=r"^backbone\.model=resnet18: its stages give no feature maps"):
            network._to_map(torch.empty(2, 7, 5))


# Others


class Silent(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(nn.Linear(3, 4))  # a module of that name says nothing

    def forward(self, images):
        return self.stages(images.mean((2, 3)))


def test_a_network_that_does_not_say_its_stages():
    with pytest.raises(ValueError, match=r"^Silent does not say what its stages are: give it a method stages"):
        stages(Silent())
    assert shapes(Silent(), 32) == ([], [])


def test_a_stage_too_few_is_a_mistake():
    network = iresnet()
    network.extra = nn.Linear(1, 1)
    with pytest.raises(AssertionError):
        stages(network)
