"""Weights from files: every kind of file, prefixes, refusals that leave the network alone, and input conventions."""

import copy
import json
import os
import pickle

import numpy as np
import pytest
import torch
from mxnet_graph import published_nodes, random_arrays, run
from safetensors.torch import save_file
from torch import nn

from facelab.backbone.iresnet import IResNet
from facelab.backbone.mbf import MBF
from facelab.backbone.mobilefacenet import MobileFaceNet
from facelab.backbone.weights import HOUSE, Input, load_weights, set_input


def iresnet(seed=0, **changes):
    torch.manual_seed(seed)
    given = {"layers": (1, 1, 1, 1), "widths": (16, 16, 32, 32), "stem_stride": 1, "embedding_size": 12}
    return IResNet(**{**given, "dropout": 0.0, "attention": "none", "image_size": 32, **changes})


def mbf(seed=0):
    torch.manual_seed(seed)
    return MBF((1, 1, 1, 1), 1, 12, 32)


def trained(build):
    """A network no value of which is the one that it begins with."""
    network = build(seed=1)
    with torch.no_grad():
        for value in network.state_dict().values():
            value.add_(torch.rand(value.shape).to(value.dtype) if value.is_floating_point() else 7)
    return network


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def source():
    return trained(iresnet)


def write(path, tensors, prefix=""):
    tensors = {prefix + name: value for name, value in tensors.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in tensors.items()})
    else:
        torch.save(tensors, path)
    return path


# ------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("build", [iresnet, mbf])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".safetensors", ".npz"])
def test_every_kind_of_file_comes_back_bit_for_bit(tmp_path, build, suffix):
    original, network = trained(build), build()
    assert load_weights(network, write(tmp_path / f"a file{suffix}", original.state_dict())) == HOUSE
    assert same(network, original)


def test_names_of_published_weights_need_no_renaming(tmp_path):
    """An r18 as InsightFace publishes it: its names, in half precision, from a process group, without counters."""
    torch.manual_seed(0)
    network = IResNet((2, 2, 2, 2), (16, 16, 16, 16), 1, 8, 0.0, "none", 16)
    state = {f"module.{k}": v.half() for k, v in network.state_dict().items() if "num_batches" not in k}
    assert "module.layer4.1.bn3.running_var" in state
    torch.save(state, tmp_path / "backbone.pth")
    loaded = IResNet((2, 2, 2, 2), (16, 16, 16, 16), 1, 8, 0.0, "none", 16)
    load_weights(loaded, tmp_path / "backbone.pth")
    assert loaded.layer1[0].conv1.weight.dtype == torch.float32
    assert torch.equal(loaded.fc.weight, network.fc.weight.half().float())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("prefix", ["module.", "backbone.", "model.", "features.", "_orig_mod.", "model.backbone."])
def test_prefixes_are_stripped(tmp_path, source, prefix, suffix):
    network = iresnet()
    tensors = {**source.state_dict()}
    path = tmp_path / f"weights{suffix}"
    tensors = {prefix + name: value for name, value in tensors.items()}
    write(path, {**tensors, "head.weight": torch.zeros(3, 12)})  # not the network's, and not asked for
    load_weights(network, path)
    assert same(network, source)


def test_a_network_whose_names_begin_like_prefixes(tmp_path):
    """`features` and `layers` are modules of mbf: what stands in front is told by all its names together."""
    original, network = trained(mbf), mbf()
    load_weights(network, write(tmp_path / "m.pt", original.state_dict(), "features.layers."))
    assert same(network, original)


@pytest.mark.parametrize("key", ["state_dict", "model", "state_dict_backbone"])
def test_a_training_checkpoint_holds_more_than_the_network(tmp_path, source, key):
    network = iresnet()
    optimizer = torch.optim.SGD(source.parameters(), lr=0.1, momentum=0.9)
    content = {"epoch": 3, key: source.state_dict(), "optimizer": optimizer.state_dict(), "name": "r18", "rates": [0.1]}
    torch.save(content, tmp_path / "checkpoint.pt")
    load_weights(network, tmp_path / "checkpoint.pt")
    assert same(network, source)


def test_files_of_torch_before_1_6(tmp_path, source):
    network = iresnet()
    torch.save(source.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    load_weights(network, tmp_path / "old.pth")
    assert same(network, source)


def facelab_checkpoint(path, network, **meta):
    tensors = {f"model.backbone.{name}": value for name, value in network.state_dict().items()}
    tensors |= {"model.loss.weight": torch.zeros(3, 12), "optimizer.backbone.fc.weight.momentum": torch.zeros(2)}
    save_file(tensors, path, metadata={"facelab": json.dumps({"format": 1, "step": 3, **meta})})
    return path


def test_a_checkpoint_of_facelab_brings_its_input_convention(tmp_path, source):
    network, bgr = iresnet(), {"color": "bgr", "mean": 0.0, "std": 255.0}
    assert load_weights(network, facelab_checkpoint(tmp_path / "best.ckpt", source, input=bgr)) == Input("bgr", 0, 255)
    assert same(network, source)
    assert load_weights(network, facelab_checkpoint(tmp_path / "old.ckpt", source)) == HOUSE


def test_of_a_run_with_averaged_weights_these_are_taken(tmp_path, source):
    network, tensors = iresnet(), {f"model.backbone.{k}": v for k, v in iresnet(seed=2).state_dict().items()}
    tensors |= {f"model.average.backbone.{k}": v for k, v in source.state_dict().items()}
    save_file(tensors, tmp_path / "last.ckpt", metadata={"facelab": json.dumps({"format": 1})})
    load_weights(network, tmp_path / "last.ckpt")
    assert same(network, source)


def test_memory_layout_and_frozen_values_stay_the_networks(tmp_path, source):
    network = iresnet().to(memory_format=torch.channels_last)
    load_weights(network, write(tmp_path / "w.pt", source.state_dict()))
    assert network.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not network.features.weight.requires_grad
    assert network.fc.weight.requires_grad


# ------------------------------------------------------------------------------------------------- what is refused


def refused(network, path, *messages):
    before = copy.deepcopy(network)
    with pytest.raises(ValueError, match=r"^backbone\.weights=") as caught:
        load_weights(network, path)
    text = str(caught.value)
    assert path.name in text
    assert "\n" not in text
    for message in messages:
        assert message in text
    assert same(network, before), "a refused file must leave the network as it was"


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"backbone\.weights=.*none\.pt: no such file"):
        load_weights(iresnet(), tmp_path / "none.pt")
    (tmp_path / "folder.pt").mkdir()
    refused(iresnet(), tmp_path / "folder.pt", "is a folder")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz"])
def test_a_truncated_file(tmp_path, source, suffix):
    path = write(tmp_path / f"w{suffix}", source.state_dict())
    path.write_bytes(path.read_bytes()[:5000])
    refused(iresnet(), path, "cannot be read")


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs", b"<!DOCTYPE html>"])
def test_something_else(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    refused(iresnet(), path, "none of safetensors, torch.save's, .npz")


class Hostile:
    """Unpickled without care, it runs a command."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("new", [True, False])
def test_a_pickle_that_wants_to_run_code(tmp_path, source, new):
    path, mark = tmp_path / "w.pt", tmp_path / "ran"
    content = {"state_dict": source.state_dict(), "x": Hostile(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=new)
    refused(iresnet(), path, "asks for", "mkdir", "nothing was read")
    assert not mark.exists()


def test_a_pickled_network_or_plain_pickle(tmp_path, source):
    torch.save(source, tmp_path / "whole.pt")
    refused(iresnet(), tmp_path / "whole.pt", "asks for facelab.backbone.iresnet.IResNet", "Save the state_dict alone")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"a": np.zeros(3)}, protocol=2))
    refused(iresnet(), tmp_path / "plain.pkl", "asks for")


def test_arrays_of_python_objects(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.array([Hostile(tmp_path / "ran")], dtype=object))
    refused(iresnet(), tmp_path / "w.npz", "cannot be read", "allow_pickle")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_missing_and_unexpected_names(tmp_path, source, prefix):
    tensors = {prefix + name: value for name, value in source.state_dict().items()}
    for name in ("fc.bias", "bn1.weight"):
        del tensors[prefix + name]
    tensors |= {f"{prefix}extra.{i}": torch.zeros(1) for i in range(5)}
    refused(
        iresnet(),
        write(tmp_path / "w.pt", tensors),
        "2 missing (bn1.weight, fc.bias)",
        "5 unexpected (extra.0, extra.1, extra.2, …)",
        "this IResNet has 96 arrays, the file 99",
    )


def test_another_depth(tmp_path):
    deeper = iresnet(layers=(1, 2, 1, 1)).state_dict()
    refused(iresnet(), write(tmp_path / "d.pt", deeper, "module."), "unexpected (layer2.1.bn1.weight", "layer2.1")
    refused(
        iresnet(layers=(1, 2, 1, 1)),
        write(tmp_path / "s.pt", iresnet().state_dict(), "module."),
        "missing (layer2.1.bn1.weight",
    )


def test_another_family(tmp_path):
    refused(
        iresnet(),
        write(tmp_path / "mbf.pt", mbf().state_dict(), "module."),
        "is of another network: this IResNet has 96 arrays",
        "missing (conv1.weight, ",
        "unexpected (",
        "layers.0.layers.0.weight",
    )
    refused(mbf(), write(tmp_path / "r.pt", iresnet().state_dict()), "this MBF has", "unexpected (conv1.weight, ")


def test_another_embedding(tmp_path):
    path = write(tmp_path / "w.pt", iresnet(embedding_size=20).state_dict())
    refused(
        iresnet(),
        path,
        "the file has embedding 20, the network 12 (backbone.embedding_size)",
        "of another shape (fc.weight: 20×128 in the file, 12×128 here, fc.bias: 20 in the file, 12 here, ",
    )


def test_other_widths(tmp_path):
    path = write(tmp_path / "w.pt", iresnet(widths=(32, 32, 32, 32)).state_dict())
    refused(iresnet(), path, "conv1.weight: 32×3×3×3 in the file, 16×3×3×3 here")


def test_a_run_of_facelab_says_what_it_was(tmp_path):
    config = {"backbone": {"_target_": "facelab.backbone.mbf.MBF", "scale": 1, "embedding_size": 12, "weights": "a"}}
    path = facelab_checkpoint(tmp_path / "best.ckpt", mbf(), config=config)
    refused(iresnet(), path, "this IResNet", "a run of facelab with MBF {scale: 1, embedding_size: 12}")


def test_two_such_networks_in_one_file(tmp_path, source):
    state = source.state_dict()
    path = write(tmp_path / "w.pt", {**{f"teacher.{k}": v for k, v in state.items()}, **state})
    refused(iresnet(), path, "holds this network 2 times, as ", "teacher.*")


# ------------------------------------------------------------------------------------------------- MXNet's names


def images(count=2, seed=0):
    """Pixels (count,3,112,112), 0…255, and the same as the house hands them over."""
    pixels = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, 112, 112)))
    return pixels, (pixels.float() - 127.5) / 127.5


@pytest.fixture(scope="module")
def mxnet(tmp_path_factory):
    """A file with random values in the format of the published one: (path, nodes, arrays)."""
    folder = tmp_path_factory.mktemp("mxnet")
    nodes = published_nodes()
    arrays = random_arrays(nodes, seed=1)
    np.savez(folder / "y1.npz", **arrays)
    (folder / "y1.graph.jsonl").write_text("\n".join(json.dumps(node) for node in nodes))
    return folder / "y1.npz", nodes, arrays


def test_a_published_graph_gives_its_embeddings(mxnet):
    path, nodes, arrays = mxnet
    network = MobileFaceNet(128, 112).eval()
    convention = load_weights(network, path)
    assert convention == Input("rgb", 127.5, 128.0)
    set_input(network, convention)
    pixels, house = images()
    with torch.no_grad():
        ours = network(house).double()
    assert (arrays["arg:fc1_gamma"] != 1).all(), "MXNet ignores this gain, and so must we"
    theirs = run(nodes, arrays, pixels)
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
    set_input(network, HOUSE)
    with torch.no_grad():
        wrong = network(house).double()
    assert (wrong - theirs).abs().max() > 1e-3 * theirs.abs().max(), "128 is not 127.5"


def test_without_its_graph_the_house_is_assumed(mxnet, tmp_path):
    arrays = mxnet[2]
    np.savez(tmp_path / "alone.npz", **arrays)
    network = MobileFaceNet(128, 112)
    assert load_weights(network, tmp_path / "alone.npz") == HOUSE
    assert torch.equal(network.fc.bias, torch.from_numpy(arrays["arg:pre_fc1_bias"]))


@pytest.mark.parametrize(
    ("scalars", "expected"),
    [
        ([("_minus_scalar", "100"), ("_mul_scalar", "0.125")], Input("rgb", 100.0, 8.0)),
        ([("_mul_scalar", "0.0078125"), ("_minus_scalar", "1")], Input("rgb", 128.0, 128.0)),
        ([("_minus_scalar", "3")], Input("rgb", 3.0, 1.0)),
        ([], HOUSE),
    ],
)
def test_conventions_that_a_graph_may_state(mxnet, tmp_path, scalars, expected):
    _, nodes, arrays = mxnet
    first, at = [], "data"
    for place, (op, scalar) in enumerate(scalars):
        first.append({"op": op, "name": f"_scalar{place}", "inputs": [at], "attrs": {"scalar": scalar}})
        at = f"_scalar{place}"
    later = [{**nodes[2], "inputs": [at, nodes[2]["inputs"][1]]}, *nodes[3:]]
    np.savez(tmp_path / "m.npz", **arrays)
    (tmp_path / "m.graph.jsonl").write_text("\n".join(json.dumps(node) for node in first + later))
    assert load_weights(MobileFaceNet(128, 112), tmp_path / "m.npz") == expected


def test_mxnets_arrays_that_do_not_fit(mxnet, tmp_path):
    path, nodes, arrays = mxnet
    refused(iresnet(), path, "MXNet's names (arg:…, aux:…), of which IResNet knows none", "backbone=mobilefacenet")
    refused(MobileFaceNet(256, 112), path, "the file has embedding 128, the network 256")
    without = {name: array for name, array in arrays.items() if name != "arg:fc1_weight"}
    np.savez(tmp_path / "w.npz", **without, **{"arg:other": np.zeros(3, np.float32)})
    refused(MobileFaceNet(128, 112), tmp_path / "w.npz", "1 missing (fc.weight)", "1 unexpected (arg:other)")
    (tmp_path / "w.graph.jsonl").write_text(json.dumps({**nodes[3], "attrs": {"fix_gamma": "False", "eps": "1e-5"}}))
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(ValueError, match=r"w\.graph\.jsonl: conv_1_batchnorm has eps 1e-05, MobileFaceNet has 0\.001"):
        load_weights(MobileFaceNet(128, 112), tmp_path / "w.npz")


@pytest.mark.data
def test_the_published_network_on_real_faces(real_data):
    """Embeddings of eight people of LFW, against the graph in float64."""
    from facelab.benchmark.pair_files import read_folder

    weights, lfw = real_data / "weights" / "mobilefacenet_y1.npz", real_data / "lfw"
    network = MobileFaceNet(128, 112).eval()
    set_input(network, load_weights(network, weights))
    assert network.input_convention == Input("rgb", 127.5, 128.0)
    faces = read_folder(lfw / "images", lfw / "pairs.txt", "lfw", 10, 112)
    pixels = torch.stack([torch.from_numpy(faces.load(i)) for i in range(0, 4000, 500)]).permute(0, 3, 1, 2)
    nodes = [json.loads(line) for line in weights.with_name("mobilefacenet_y1.graph.jsonl").read_text().splitlines()]
    theirs = run(nodes, dict(np.load(weights)), pixels)
    with torch.no_grad():
        ours = network((pixels.float() - 127.5) / 127.5).double()
    assert theirs.std() > 0.5
    assert (ours - theirs).abs().max() < 1e-4


# ------------------------------------------------------------------------------------------------- conventions


class Mean(nn.Module):
    """Embeddings that are the channels' means: shows what arrives."""

    def __init__(self):
        super().__init__()
        self.register_buffer("one", torch.ones(1))

    def forward(self, images):
        return images.mean((2, 3)) * self.one


@pytest.mark.parametrize(
    "convention", [Input("bgr", 127.5, 127.5), Input("bgr", 0.0, 255.0), Input("rgb", 127.5, 128.0)]
)
def test_it_is_as_if_the_network_were_fed_converted_pixels(convention, source):
    network = copy.deepcopy(source).eval()
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32))).float()
    ordered = pixels.flip(1) if convention.color == "bgr" else pixels
    with torch.no_grad():
        expected = network((ordered - convention.mean) / convention.std)
        set_input(network, convention)
        ours = network((pixels - 127.5) / 127.5)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert network.input_convention == convention


def test_a_second_convention_replaces_the_first():
    network, red = Mean(), torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1)
    set_input(network, Input("bgr", 127.5, 127.5))
    assert network(red).tolist() == [[-1, 0, 1]]
    set_input(network, Input("rgb", 0.0, 255.0))
    assert network(red).tolist() == [[1, 0.5, 0]]
    set_input(network, HOUSE)
    assert network(red).tolist() == [[1, 0, -1]]
    assert not network._forward_pre_hooks
    assert network.input_convention == HOUSE


def test_names_of_the_network_stay(source):
    network = copy.deepcopy(source)
    set_input(network, Input("bgr", 0.0, 255.0))
    assert same(network, source)
    assert len(list(network.modules())) == len(list(source.modules()))


def test_copies_and_pickles_convert_too():
    network, red = Mean(), torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1)
    set_input(network, Input("bgr", 127.5, 127.5))
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert other(red).tolist() == [[-1, 0, 1]]
        set_input(other, HOUSE)
        assert other(red).tolist() == [[1, 0, -1]]
        assert network(red).tolist() == [[-1, 0, 1]], "the copy has its own"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("gbr", 0, 1), r"backbone\.input\.color is 'gbr': give rgb or bgr"),
        (("rgb", 0, 0), r"backbone\.input\.std is 0: give a positive number"),
        (("rgb", 0, float("nan")), r"backbone\.input\.std is nan"),
    ],
)
def test_impossible_conventions(values, message):
    with pytest.raises(ValueError, match=message):
        Input(*values)
