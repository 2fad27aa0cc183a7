"""MobileFaceNet against the paper's table and the published model: structure, counts, and what it computes."""

import json

import numpy as np
import pytest
import torch
from mxnet_graph import published_nodes, random_arrays, run

from facelab.backbone.complexity import count_macs, count_parameters
from facelab.backbone.mobilefacenet import MobileFaceNet


def small(embedding_size=12, image_size=32):
    torch.manual_seed(0)
    return MobileFaceNet(embedding_size, image_size)


@pytest.fixture(scope="module")
def published():
    with torch.device("meta"):
        return MobileFaceNet(128, 112)


def test_counts_are_those_of_the_paper(published):
    """0.99 M parameters and 221 M multiply-adds (Chen et al. 2018, tables 1 and 4)."""
    arrays = random_arrays(published_nodes(), seed=0)
    assert count_parameters(published) == sum(a.size for name, a in arrays.items() if name.startswith("arg:"))
    assert count_parameters(published) == 1_003_264
    assert count_macs(published, 112) / 1e6 == pytest.approx(221, rel=1e-3)


def test_maps_are_those_of_the_papers_table(published):
    seen = []
    for name in ("stem", "depthwise", "stage1", "stage2", "stage3", "expand", "weigh"):
        getattr(published, name).register_forward_hook(lambda m, i, output: seen.append(tuple(output.shape[1:])))
    published(torch.empty(2, 3, 112, 112, device="meta"))
    assert seen == [(64, 56, 56), (64, 56, 56), (64, 28, 28), (128, 14, 14), (128, 7, 7), (512, 7, 7), (512, 1, 1)]
    assert [len(stage) for stage in (published.stage1, published.stage2, published.stage3)] == [5, 7, 3]


def test_every_array_of_the_published_file_has_one_place_of_its_shape(published):
    arrays, state = random_arrays(published_nodes(), seed=0), published.state_dict()
    names = published.mxnet_names()
    assert sorted(names.values()) == sorted(arrays)
    assert set(names) == {name for name in state if "num_batches_tracked" not in name}
    assert {n: tuple(state[n].shape) for n in names} == {n: arrays[theirs].shape for n, theirs in names.items()}


def test_it_computes_the_published_graph():
    """Against the interpreter, in float64: wiring, strides, shortcuts, epsilons, whatever the values."""
    nodes = published_nodes()
    arrays = random_arrays(nodes, seed=3)
    network = MobileFaceNet(128, 112).double().eval()
    state = network.state_dict()
    for ours, theirs in network.mxnet_names().items():
        state[ours].copy_(torch.from_numpy(arrays[theirs]))
    with torch.no_grad():
        network.features.weight.fill_(1.0)
        images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 112, 112)).astype(np.float64))
        ours = network((images - 127.5) * 0.0078125)
    torch.testing.assert_close(ours, run(nodes, arrays, images), rtol=1e-9, atol=1e-9)


@pytest.mark.data
def test_our_list_of_nodes_is_the_published_graph(real_data):
    lines = (real_data / "weights" / "mobilefacenet_y1.graph.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == published_nodes()


@pytest.mark.parametrize("size", [32, 33, 112])
def test_images_become_embeddings(size):
    built = small(image_size=size).eval()
    assert built.embedding_size == 12
    assert built(torch.randn(3, 3, size, size)).shape == (3, 12)


def test_the_last_gain_is_one_and_stays_so():
    built = small()
    assert torch.equal(built.features.weight, torch.ones(12))
    built(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert [name for name, p in built.named_parameters() if p.grad is None] == ["features.weight"]


def test_embeddings_stay_float32_under_autocast():
    built, images = small().eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = built(images)
    assert half.dtype == torch.float32
    exact = built(images)
    assert (half - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_size": 0}, r"backbone\.embedding_size is 0: give at least 1"),
        ({"image_size": 15}, r"backbone\.image_size is 15 pixels: give at least 16"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)
