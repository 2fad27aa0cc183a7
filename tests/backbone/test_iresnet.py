"""IResNet against the published networks: names, counts, cost; and as a module: shapes, precision, memory formats."""

import pytest
import torch

from facelab.backbone.complexity import count_macs, count_parameters
from facelab.backbone.iresnet import IResNet

# layers, parameters, entries of the state_dict, GMACs at 112×112, of the published networks
PUBLISHED = {
    "r18": ((2, 2, 2, 2), 24_025_600, 187, 2.610),
    "r34": ((3, 4, 6, 3), 34_139_328, 331, 4.460),
    "r50": ((3, 4, 14, 3), 43_590_848, 475, 6.309),
    "r100": ((3, 13, 30, 3), 65_156_160, 925, 12.090),
    "r200": ((6, 26, 60, 6), 118_833_920, 1807, 23.419),
}
GOOD = {
    "layers": (1, 1, 1, 1),
    "widths": (16, 16, 32, 32),
    "stem_stride": 1,
    "embedding_size": 12,
    "dropout": 0.0,
    "attention": "none",
    "image_size": 32,
}


def published(layers):
    with torch.device("meta"):
        return IResNet(layers, (64, 128, 256, 512), 1, 512, 0.0, "none", 112)


def tiny(**changes):
    torch.manual_seed(0)
    return IResNet(**{**GOOD, **changes})


@pytest.fixture(scope="module", params=PUBLISHED)
def network(request):
    return request.param, published(PUBLISHED[request.param][0])


def expected_names(layers):
    """The names of a published checkpoint, from the list of its layers alone."""

    def norm(name):
        return {f"{name}.{entry}" for entry in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}

    names = {"conv1.weight", "prelu.weight", "fc.weight", "fc.bias"} | norm("bn1") | norm("bn2") | norm("features")
    for stage, units in enumerate(layers, start=1):
        for unit in range(units):
            block = f"layer{stage}.{unit}"
            names |= {f"{block}.conv1.weight", f"{block}.conv2.weight", f"{block}.prelu.weight"}
            names |= norm(f"{block}.bn1") | norm(f"{block}.bn2") | norm(f"{block}.bn3")
        names |= {f"layer{stage}.0.downsample.0.weight"} | norm(f"layer{stage}.0.downsample.1")
    return names


def test_names_and_counts_are_those_published(network):
    name, built = network
    layers, parameters, entries, _ = PUBLISHED[name]
    state = built.state_dict()
    assert set(state) == expected_names(layers)
    assert len(state) == entries
    assert count_parameters(built) == parameters
    assert state["fc.weight"].shape == (512, 25_088)  # of a 7×7 map
    assert state["layer1.0.downsample.0.weight"].shape == (64, 64, 1, 1)


def test_cost_is_that_published(network):
    name, built = network
    assert count_macs(built, 112) / 1e9 == pytest.approx(PUBLISHED[name][3], rel=1e-3)
    assert next(built.parameters()).is_meta
    assert built.training, "counting must leave the network as it was"


def test_cost_counts_one_image_of_a_linear_layer():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 5))
    assert count_macs(network, 4) == 3 * 4 * 4 * 5
    assert count_parameters(network) == 3 * 4 * 4 * 5 + 5


def test_the_stride_sits_in_the_second_convolution_and_norms_are_the_published_ones():
    built = tiny()
    for stage in (built.layer1, built.layer2, built.layer3, built.layer4):
        assert (stage[0].conv1.stride, stage[0].conv2.stride) == ((1, 1), (2, 2))
        assert stage[0].downsample[0].stride == (2, 2)
    norms = [m for m in built.modules() if isinstance(m, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-5, 0.1)}


def test_convolutions_begin_normal_with_a_deviation_of_a_tenth():
    weight = tiny(widths=(32, 32, 64, 64)).layer4[0].conv2.weight
    assert weight.std().item() == pytest.approx(0.1, rel=0.03)
    assert abs(weight.mean().item()) < 0.003


@pytest.mark.parametrize(("size", "stem_stride"), [(32, 1), (32, 2), (33, 1), (50, 2), (112, 2)])
def test_images_become_embeddings(size, stem_stride):
    built = tiny(image_size=size, stem_stride=stem_stride).eval()
    assert built.embedding_size == 12
    assert built(torch.randn(3, 3, size, size)).shape == (3, 12)


def test_published_shape_at_112():
    network = published((2, 2, 2, 2))
    assert network(torch.empty(2, 3, 112, 112, device="meta")).shape == (2, 512)


def test_the_last_gain_is_one_and_stays_so():
    built = tiny()
    assert not built.features.weight.requires_grad
    assert built.features.bias.requires_grad
    optimizer = torch.optim.SGD([p for p in built.parameters() if p.requires_grad], lr=0.1)
    built(torch.randn(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    assert torch.equal(built.features.weight, torch.ones(12))
    without = [name for name, p in built.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_embeddings_stay_float32_under_autocast():
    built = tiny().eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = built(images)
        assert built.conv1(images).dtype == torch.bfloat16
    assert half.dtype == torch.float32
    exact = built(images)
    assert (half - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("training", [True, False])
def test_memory_formats_give_the_same(training):
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    plain = tiny().double().train(training)
    last = tiny().double().to(memory_format=torch.channels_last).train(training)
    assert last.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last(images.contiguous(memory_format=torch.channels_last)), plain(images))


def test_dropout_acts_in_training_alone():
    built, images = tiny(dropout=0.5), torch.randn(4, 3, 32, 32)
    assert not torch.equal(built(images), built(images))
    built.eval()
    assert torch.equal(built(images), built(images))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (1, 2, 3)}, r"backbone\.layers is \[1, 2, 3\]: give four positive numbers"),
        ({"layers": (1, 0, 1, 1)}, r"backbone\.layers is \[1, 0, 1, 1\]"),
        ({"widths": (8, 8, 8, 8, 8)}, r"backbone\.widths is \[8, 8, 8, 8, 8\]"),
        ({"widths": (8, 16, 16, 16)}, r"backbone\.widths are .*at least 16"),
        ({"widths": ()}, r"backbone\.widths is \[\]"),
        ({"embedding_size": 0}, r"backbone\.embedding_size is 0: give at least 1"),
        ({"dropout": 1.0}, r"backbone\.dropout is 1\.0: give a probability"),
        ({"dropout": -0.1}, r"backbone\.dropout is -0\.1"),
        ({"stem_stride": 3}, r"backbone\.stem_stride is 3: give 1 .* or 2"),
        ({"image_size": 15}, r"backbone\.image_size is 15 pixels: give at least 16"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)
