"""timm's networks as backbones: every one that the docs name, what is refused, and how an embedding comes about."""

import re
from pathlib import Path

import pytest
import timm
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from timm.models import register_model
from torch import nn

from facelab.backbone import timm_model
from facelab.backbone.complexity import count_macs, count_parameters
from facelab.backbone.timm_model import TimmModel

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "backbones.md").read_text()
OWN, TIMMS = (part.split("\n\n", 1)[0] for part in re.split(r"\| `backbone(?:\.model)?=` \|.*\n", PAGE)[1:])


def rows(table):
    """Rows of a table of the docs: name, parameters, GMACs, and the cell behind them."""
    found = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d.]+) \| ([^|]*?) \|", table, flags=re.MULTILINE)
    return [(name, int(count.replace(",", "")), float(macs), cell) for name, count, macs, cell in found]


def build(model="resnet18", **changes):
    given = {"embedding_size": 8, "dropout": 0.0, "drop_path": 0.0, "pretrained": False, "image_size": 32}
    torch.manual_seed(0)
    return TimmModel(model, **{**given, **changes})


# ------------------------------------------------------------------------------------------------- the docs' tables


def test_the_docs_list_every_backbone_of_ours():
    files = (ROOT / "conf" / "backbone").glob("*.yaml")
    networks = {path.stem for path in files if "_target_:" in path.read_text()}  # not what brings along another's head
    assert {row[0] for row in rows(OWN)} == networks - {"timm"}


@pytest.mark.parametrize(("name", "parameters", "gmacs", "size"), rows(OWN), ids=[row[0] for row in rows(OWN)])
def test_our_backbones_are_what_the_docs_say(name, parameters, gmacs, size):
    node = OmegaConf.load(ROOT / "conf" / "backbone" / f"{name}.yaml")
    config = OmegaConf.create({"data": {"size": 112}, "backbone": node})
    with torch.device("meta"):
        network = instantiate(config.backbone)
    assert count_parameters(network) == parameters
    assert count_macs(network, 112) / 1e9 == pytest.approx(gmacs, abs=6e-4)
    assert network.embedding_size == int(size)


def test_the_docs_list_enough_of_timms():
    assert len(rows(TIMMS)) >= 15


@pytest.mark.parametrize(("model", "parameters", "gmacs", "places"), rows(TIMMS), ids=[row[0] for row in rows(TIMMS)])
def test_timms_networks_are_what_the_docs_say(model, parameters, gmacs, places):
    with torch.device("meta"):
        network = build(model, embedding_size=512, image_size=112).eval()
        images = torch.empty(1, 3, 112, 112)
    assert count_parameters(network) == parameters
    assert count_macs(network, 112) / 1e9 == pytest.approx(gmacs, abs=6e-4)
    with torch.no_grad():
        shape = list(network.body.forward_features(images).shape[1:])
    if "patches" in places:
        assert shape[0] - network.body.num_prefix_tokens == int(places.split()[0])
    else:
        assert [int(side) for side in places.split("×")] in (shape[1:], shape[:2])


# ------------------------------------------------------------------------------------------------- real ones


@pytest.mark.parametrize("model", ["mobilenetv4_conv_small", "vit_tiny_patch16_224", "convnext_atto"])
def test_they_learn(model):
    """Forwards and backwards, on 112 pixels: every parameter but the fixed gain gets a gradient."""
    network = build(model, image_size=112)
    network(torch.randn(3, 3, 112, 112)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == ["features.weight"]
    assert sum(p.grad.abs().sum() > 0 for p in network.body.parameters()) > 0.8 * len(list(network.body.parameters()))


def test_an_embedding_is_pooled_normed_dropped_projected_normed():
    network, images = build().eval(), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        network.norm.running_mean.fill_(0.3)
        network.norm.weight.fill_(2.0)
        network.features.running_mean.fill_(-0.2)
        network.features.bias.fill_(0.5)
        pooled = network.body.forward_features(images).mean((2, 3))
        scale = (1 + 1e-5) ** -0.5
        projected = network.fc((pooled - 0.3) * scale * 2.0)
        torch.testing.assert_close(network(images), (projected + 0.2) * scale + 0.5)
    assert network.embedding_size == 8


def test_dropout_acts_in_training_alone():
    network, images = build(dropout=0.5), torch.randn(4, 3, 32, 32)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_embeddings_stay_float32_under_autocast():
    network, images = build().eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = network(images)
    assert half.dtype == torch.float32
    exact = network(images)
    assert (half - exact).norm() < 0.05 * exact.norm()


def test_drop_path_reaches_the_network():
    """timm's rates grow from 0 in the first block to the given one in the last."""
    with torch.device("meta"):
        network = build("convnext_atto", drop_path=0.3)
    rates = [m.drop_prob for m in network.modules() if isinstance(m, timm.layers.DropPath)]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.3)


def test_position_embeddings_have_the_size_of_the_images():
    with torch.device("meta"):
        network = build("vit_tiny_patch16_224", image_size=112)
    assert network.body.pos_embed.shape[1] == 7 * 7 + 1


def test_the_same_seed_gives_the_same_network():
    one, other = build(), build()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# ------------------------------------------------------------------------------------------------- the CPU's flaw


def test_narrow_strided_convolutions_are_computed_in_another_way():
    """Same values, same gradients, same names; none of the kind that torch 2.15 gets wrong is left."""
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 20, 1, 2),
        nn.Conv2d(20, 8, 1, (3, 1), bias=False),
        nn.Conv2d(8, 20, 3, 2),
        nn.Conv2d(20, 20, 1, 2),
    )
    plain = nn.Sequential(*layers).double()
    images = torch.randn(2, 3, 31, 31, dtype=torch.float64)
    expected = plain(images)
    gradients = torch.autograd.grad(expected.square().sum(), list(plain.parameters()))
    timm_model._spare_the_cpu(plain)
    assert [layer.stride for layer in plain] == [(1, 1), (1, 1), (2, 2), (2, 2)]
    torch.testing.assert_close(plain(images), expected)
    torch.testing.assert_close(torch.autograd.grad(plain(images).square().sum(), list(plain.parameters())), gradients)


def test_fastvit_is_of_that_kind():
    with torch.device("meta"):
        network = build("fastvit_t8", image_size=112)
    narrow = [
        m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and m.in_channels < 16
    ]
    assert narrow
    assert all(m.stride == (1, 1) for m in narrow)


# ------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet5"}, r"backbone\.model=resnet5: timm [\d.]+ has no such model; near are .*resnet50"),
        ({"model": "vit_smal_patch16_224"}, r"no such model; near are .*vit_small_patch16_224"),
        ({"model": "qqqq"}, r"backbone\.model=qqqq: .* no such model; timm\.list_models\(\) gives all names"),
        ({"model": None}, r"backbone\.model=None: .* no such model"),
        ({"model": "hf-hub:someone/resnet18"}, r"backbone\.model=hf-hub:someone/resnet18: .* no such model"),
        ({"model": "resnet18.nobodys"}, r"resnet18\.nobodys: timm .*; known: resnet18\."),
        (
            {"model": "vit_tiny_patch16_224", "image_size": 100},
            r"does not take 100×100 images, was published for 224×224 \(it cuts them into patches of 16\)",
        ),
        ({"model": "coatnet_0_rw_224", "image_size": 112}, r"coatnet_0_rw_224: does not take 112×112 images, was pub"),
        ({"model": "maxvit_tiny_tf_224", "image_size": 112}, r"does not take 112×112 .*divisible.*take another data"),
        ({"drop_path": 0.1, "model": "vgg11"}, r"backbone\.drop_path is 0\.1, but vgg11 has no drop path"),
        ({"embedding_size": 0}, r"backbone\.embedding_size is 0: give at least 1"),
        ({"dropout": 1.0}, r"backbone\.dropout is 1\.0: give a probability"),
        ({"drop_path": -0.1}, r"backbone\.drop_path is -0\.1: give a probability"),
        ({"image_size": 15}, r"backbone\.image_size is 15 pixels: give at least 16"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message) as caught:
        build(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [OSError("We couldn't connect\nto the hub"), RuntimeError("No pretrained weights exist")]
)
def test_weights_that_cannot_be_fetched(monkeypatch, error):
    create = timm.create_model

    def offline(model, pretrained=False, **arguments):
        if pretrained:
            raise error
        return create(model, **arguments)

    monkeypatch.setattr(timm, "create_model", offline)
    first = str(error).splitlines()[0]
    with pytest.raises(ValueError, match=rf"backbone\.pretrained: weights of resnet18 cannot be fetched \({first}\)"):
        build(pretrained=True)
    with torch.device("meta"):  # of shapes alone, nothing is fetched
        build(pretrained=True)


class Counting(nn.Module):
    """A network that computes a number in its constructor, as many of timm's did until 2025."""

    def __init__(self, num_classes=0, pooled=True):
        super().__init__()
        self.width = int(torch.linspace(0, 20, 3)[-1].item())
        self.conv, self.pooled = nn.Conv2d(3, self.width, 3), pooled

    def forward(self, images):
        return self.conv(images).mean((2, 3)) if self.pooled else self.conv(images)


@pytest.fixture
def registered(monkeypatch):
    """Two networks of our own under timm's roof, gone afterwards."""
    from timm.models import _registry

    for name in ("_model_entrypoints", "_model_to_module", "_module_to_models", "_model_default_cfgs"):
        if hasattr(_registry, name):
            monkeypatch.setattr(_registry, name, getattr(_registry, name).copy())

    def facelab_counting(
        pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **arguments
    ):
        return Counting(**arguments)

    def facelab_maps(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **arguments):
        return Counting(**arguments, pooled=False)

    for function in (facelab_counting, facelab_maps):
        function.__module__ = __name__
        register_model(function)


def test_a_network_that_needs_numbers_to_be_built(registered):
    with torch.device("meta"):
        network = build("facelab_counting")
        assert all(value.is_meta for value in network.state_dict().values())
    assert build("facelab_counting")(torch.randn(2, 3, 32, 32)).shape == (2, 8)


def test_a_network_that_gives_no_vector(registered):
    with pytest.raises(ValueError, match=r"backbone\.model=facelab_maps: gives no vector for an image"):
        build("facelab_maps")
