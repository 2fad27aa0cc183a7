"""IR and IR-SE against the published networks: names, counts, structure; and as a module: shapes, precision."""

import pytest
import torch
import torch.nn.functional as F

from facelab.backbone.complexity import count_parameters
from facelab.backbone.families import recognise
from facelab.backbone.ir_se import IR, SqueezeExcite
from facelab.backbone.iresnet import IResNet
from facelab.backbone.mbf import MBF
from facelab.backbone.weights import HOUSE, load_weights

# layers, squeeze-and-excitation, parameters, entries of the state_dict. IR_SE_101: by the formula of its parts, below.
PUBLISHED = {
    "ir_50": ((3, 4, 14, 3), False, 43_585_600, 467),
    "ir_101": ((3, 13, 30, 3), False, 65_150_912, 917),
    "ir_se_50": ((3, 4, 14, 3), True, 43_808_320, 515),
    "ir_se_101": ((3, 13, 30, 3), True, 65_150_912 + 372_224, 917 + 2 * 49),
}
WIDTHS = (64, 128, 256, 512)


def published(name):
    with torch.device("meta"):
        return IR(*PUBLISHED[name][:1], WIDTHS, PUBLISHED[name][1], 512, 0.4, "none", 112)


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    given = {"layers": (1, 2, 1, 1), "widths": (16, 16, 32, 32), "se": True, "embedding_size": 12}
    return IR(**{**given, "dropout": 0.0, "attention": "none", "image_size": 32, **changes})


def iresnet(**changes):
    torch.manual_seed(0)
    given = {"layers": (1, 2, 1, 1), "widths": (16, 16, 32, 32), "stem_stride": 1, "embedding_size": 12}
    return IResNet(**{**given, "dropout": 0.0, "attention": "none", "image_size": 32, **changes})


def expected_names(layers, se):
    """The names of a published checkpoint, from the list of its layers alone."""

    def norm(name, affine=True):
        entries = ("running_mean", "running_var", "num_batches_tracked") + ("weight", "bias") * affine
        return {f"{name}.{entry}" for entry in entries}

    names = {"input_layer.0.weight", "input_layer.2.weight", "output_layer.3.weight", "output_layer.3.bias"}
    names |= norm("input_layer.1") | norm("output_layer.0") | norm("output_layer.4", affine=False)
    unit = 0
    for stage, units in enumerate(layers):
        for place in range(units):
            block = f"body.{unit}"
            names |= {f"{block}.res_layer.{layer}.weight" for layer in (1, 3, 4)}
            names |= norm(f"{block}.res_layer.0") | norm(f"{block}.res_layer.2") | norm(f"{block}.res_layer.5")
            if se:
                names |= {f"{block}.res_layer.se_block.fc1.weight", f"{block}.res_layer.se_block.fc2.weight"}
            if stage and not place:  # only where the channels change
                names |= {f"{block}.shortcut_layer.0.weight"} | norm(f"{block}.shortcut_layer.1")
            unit += 1
    return names


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_counts_are_those_published(name):
    layers, se, parameters, entries = PUBLISHED[name]
    network = published(name)
    state = network.state_dict()
    assert set(state) == expected_names(layers, se)
    assert len(state) == entries
    assert count_parameters(network) == parameters
    assert state["output_layer.3.weight"].shape == (512, 25_088)  # of a 7×7 map


def test_squeeze_and_excitation_adds_two_small_matrices_a_unit():
    added = count_parameters(published("ir_se_101")) - count_parameters(published("ir_101"))
    assert added == sum(2 * width * width // 16 * units for width, units in zip(WIDTHS, (3, 13, 30, 3), strict=True))


def test_squeeze_and_excitation_weighs_channels():
    torch.manual_seed(0)
    module = SqueezeExcite(32).double()
    x = torch.randn(2, 32, 3, 5, dtype=torch.float64)
    inner = F.relu(x.mean((2, 3)) @ module.fc1.weight[:, :, 0, 0].T)
    weights = torch.sigmoid(inner @ module.fc2.weight[:, :, 0, 0].T)
    torch.testing.assert_close(module(x), torch.einsum("bchw,bc->bchw", x, weights))


def reference(network, x):
    """The network's formula written out, without its modules' own forward, in eval mode."""
    state = network.state_dict()

    def norm(x, name):
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, state.get(f"{name}.weight"), state.get(f"{name}.bias"), eps=1e-5)

    x = norm(F.conv2d(x, state["input_layer.0.weight"], padding=1), "input_layer.1")
    x = F.prelu(x, state["input_layer.2.weight"])
    for unit, stride in enumerate((2, 2, 1, 2, 2)):
        name = f"body.{unit}"
        y = F.conv2d(norm(x, f"{name}.res_layer.0"), state[f"{name}.res_layer.1.weight"], padding=1)
        y = F.prelu(norm(y, f"{name}.res_layer.2"), state[f"{name}.res_layer.3.weight"])
        y = norm(F.conv2d(y, state[f"{name}.res_layer.4.weight"], stride=stride, padding=1), f"{name}.res_layer.5")
        if f"{name}.shortcut_layer.0.weight" in state:
            x = norm(F.conv2d(x, state[f"{name}.shortcut_layer.0.weight"], stride=stride), f"{name}.shortcut_layer.1")
        else:
            x = x[:, :, ::stride, ::stride]
        x = x + y
    x = norm(x, "output_layer.0").flatten(1) @ state["output_layer.3.weight"].T + state["output_layer.3.bias"]
    return norm(x, "output_layer.4")


def test_it_computes_the_published_formula():
    network = tiny(se=False).double().eval()
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.mul_(0.5).add_(0.1 * torch.rand_like(value))  # no norm is the identity
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network(images), reference(network, images))


def test_no_learnable_gain_or_shift_stands_behind_the_embedding():
    network = tiny()
    assert network.output_layer[4].weight is None
    network(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("size", [32, 33, 50])
def test_images_become_embeddings_and_each_by_itself(size):
    network = tiny(image_size=size, dropout=0.4).double().eval()
    assert network.embedding_size == 12
    images = torch.randn(3, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        together = network(images)
        torch.testing.assert_close(together, torch.cat([network(image[None]) for image in images]))
    assert together.shape == (3, 12)


def test_dropout_acts_in_training_alone():
    network, images = tiny(dropout=0.5), torch.randn(4, 3, 32, 32)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_embeddings_stay_float32_under_autocast():
    network, images = tiny().eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = network(images)
    assert half.dtype == torch.float32
    exact = network(images)
    assert (half - exact).norm() < 0.05 * exact.norm()


def test_memory_formats_give_the_same():
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    plain, last = tiny().double(), tiny().double().to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(images.contiguous(memory_format=torch.channels_last)), plain(images))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (1, 2, 3)}, r"backbone\.layers is \[1, 2, 3\]: give four positive numbers"),
        ({"widths": (8, 16, 16, 16)}, r"backbone\.widths are .*at least 16"),
        ({"embedding_size": 0}, r"backbone\.embedding_size is 0"),
        ({"dropout": 1.0}, r"backbone\.dropout is 1\.0"),
        ({"image_size": 15}, r"backbone\.image_size is 15 pixels"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


# ------------------------------------------------------------------------------------------------- its weights


@pytest.mark.parametrize("se", [False, True])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "features.", "state_dict.model."])
def test_published_weights_need_no_renaming(tmp_path, prefix, se):
    """As AdaFace publishes them: a Lightning checkpoint with the head beside, or a bare state_dict."""
    source, network = tiny(1, se=se), tiny(2, se=se)
    state = {prefix + name: value for name, value in source.state_dict().items()}
    if prefix:
        state["head.kernel"] = torch.zeros(12, 5)
    torch.save(state, tmp_path / "adaface.ckpt")
    assert load_weights(network, tmp_path / "adaface.ckpt") == HOUSE
    ours, theirs = network.state_dict(), source.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def deep(name):
    """A network of published depth, as narrow as can be."""
    return tiny(layers=PUBLISHED[name][0], widths=(16,) * 4, se=PUBLISHED[name][1])


FILES = {
    **{name: lambda name=name: deep(name) for name in PUBLISHED},
    "r18": lambda: iresnet(layers=(2, 2, 2, 2)),
    "r50": lambda: iresnet(layers=(3, 4, 14, 3), widths=(16,) * 4),
    "mbf": lambda: MBF((1, 4, 6, 2), 1, 12, 32),
}


@pytest.mark.parametrize("name", FILES)
def test_weights_of_another_family_are_told_by_name(tmp_path, name):
    source = FILES[name]()
    torch.save({f"module.{k}": v for k, v in source.state_dict().items()}, tmp_path / "w.pt")
    with torch.device("meta"):
        others = [build() for other, build in FILES.items() if other != name]
    for network in others:
        with pytest.raises(ValueError, match=rf"These are weights of the .+ family: backbone={name}$"):
            load_weights(network, tmp_path / "w.pt")


def rename(state, names):
    """A state_dict with parts of its names replaced."""
    renamed = {}
    for name, value in state.items():
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name] = value
    return renamed


def test_weights_that_no_backbone_takes_are_told_too(tmp_path):
    state = tiny().state_dict()
    older = {k: v for k, v in state.items() if ".res_layer.2." not in k}
    older = rename(older, {"layer.3.": "layer.2.", "layer.4.": "layer.3.", "layer.5.": "layer.4.", "se_block": "5"})
    torch.save(older, tmp_path / "older.pt")
    with pytest.raises(ValueError, match=r"weights of the older IR \(no .*which no backbone of facelab takes"):
        load_weights(tiny(), tmp_path / "older.pt")


def test_of_the_same_kind_of_network_nothing_more_is_said(tmp_path):
    torch.save(tiny(embedding_size=20).state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match="Choose the backbone that it belongs to"):
        load_weights(tiny(), tmp_path / "w.pt")
    assert recognise(["some.other.weight"]) is None


def test_a_depth_without_a_name_is_counted(tmp_path):
    torch.save(iresnet().state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"These are weights of the IResNet \(InsightFace\) family, with 5 units$"):
        load_weights(tiny(), tmp_path / "w.pt")
