"""MBF against the published network: names, counts, cost; and as a module."""

import pytest
import torch

from facelab.backbone.complexity import count_macs, count_parameters
from facelab.backbone.mbf import MBF
from facelab.backbone.prelu import PReLU

GOOD = {"blocks": (1, 1, 2, 1), "scale": 1, "embedding_size": 12, "image_size": 32}


def small(**changes):
    torch.manual_seed(0)
    return MBF(**{**GOOD, **changes})


@pytest.fixture(scope="module")
def published():
    with torch.device("meta"):
        return MBF((1, 4, 6, 2), 2, 512, 112)


def expected_shapes():
    """Names and shapes of a published checkpoint, from the list of its layers alone."""
    shapes = {}

    def block(name, outputs, inputs, kernel, linear=False):
        shapes[f"{name}.layers.0.weight"] = (outputs, inputs, kernel, kernel)
        norm(f"{name}.layers.1", outputs)
        if not linear:
            shapes[f"{name}.layers.2.weight"] = (outputs,)

    def norm(name, width):
        shapes.update({f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    def bottleneck(name, inputs, hidden, outputs):
        block(f"{name}.layers.0", hidden, inputs, 1)
        block(f"{name}.layers.1", hidden, 1, 3)
        block(f"{name}.layers.2", outputs, hidden, 1, linear=True)

    block("layers.0", 128, 3, 3)
    block("layers.1", 128, 2, 3)  # 64 groups of two
    numbers = [(2, 128, 128, 128, 4), (4, 128, 256, 256, 6), (6, 256, 512, 256, 2)]
    for place, inputs, hidden, outputs, units in numbers:
        bottleneck(f"layers.{place}", inputs, hidden, outputs)
        for unit in range(units):
            bottleneck(f"layers.{place + 1}.layers.{unit}", outputs, min(hidden, 256), outputs)
    block("conv_sep", 512, 256, 1)
    block("features.layers.0", 512, 1, 7, linear=True)
    shapes["features.layers.2.weight"] = (512, 512)
    norm("features.layers.3", 512)
    return shapes


def test_names_shapes_and_counts_are_those_published(published):
    state = published.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == expected_shapes()
    assert len(state) == 333
    assert count_parameters(published) == 2_059_520
    assert all(parameter.requires_grad for parameter in published.parameters())


def test_cost_is_that_published(published):
    assert count_macs(published, 112) / 1e9 == pytest.approx(0.438, abs=0.0005)


def test_strides_and_norms(published):
    strides = [m.stride for m in published.modules() if isinstance(m, torch.nn.Conv2d) and m.stride != (1, 1)]
    assert strides == [(2, 2)] * 4
    assert published.layers[0].layers[0].stride == (2, 2)
    for place in (2, 4, 6):
        assert published.layers[place].layers[1].layers[0].stride == (2, 2)
    norms = [m for m in published.modules() if isinstance(m, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-5, 0.1)}


def test_shortcuts_go_round_the_rows_alone():
    built = small().eval()
    x = torch.randn(2, 64, 8, 8)
    row, down = built.layers[3].layers[0], built.layers[2]
    torch.testing.assert_close(row(x), x + row.layers(x))
    assert torch.equal(down(x), down.layers(x))


def test_a_longer_first_row_is_of_bottlenecks():
    large = small(blocks=(2, 1, 1, 1))
    assert len(large.layers[1].layers) == 2
    assert large(torch.randn(2, 3, 32, 32)).shape == (2, 12)


@pytest.mark.parametrize("size", [32, 33, 50])
def test_images_become_embeddings(size):
    built = small(image_size=size).eval()
    assert built.embedding_size == 12
    assert built(torch.randn(3, 3, size, size)).shape == (3, 12)


def test_every_parameter_learns():
    built = small()
    built(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert [name for name, p in built.named_parameters() if p.grad is None] == []
    assert any(isinstance(module, PReLU) for module in built.modules())


def test_embeddings_stay_float32_under_autocast():
    built, images = small().eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = built(images)
    assert half.dtype == torch.float32
    exact = built(images)
    assert (half - exact).norm() < 0.05 * exact.norm()


def test_memory_formats_give_the_same():
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    plain, last = small().double(), small().double().to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(images.contiguous(memory_format=torch.channels_last)), plain(images))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": (1, 4, 6)}, r"backbone\.blocks is \[1, 4, 6\]: give four positive numbers"),
        ({"blocks": (1, 0, 1, 1)}, r"backbone\.blocks is \[1, 0, 1, 1\]"),
        ({"scale": 0}, r"backbone\.scale is 0"),
        ({"embedding_size": 0}, r"backbone\.embedding_size is 0: give at least 1"),
        ({"image_size": 15}, r"backbone\.image_size is 15 pixels: give at least 16"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)
