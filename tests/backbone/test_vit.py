"""Vision transformers: names of the published files, the formula written out, masking, drop path, refusals."""

import pytest
import timm
import torch
import torch.nn.functional as F

from facelab.backbone.complexity import count_parameters
from facelab.backbone.families import recognise
from facelab.backbone.vit import ViT
from facelab.backbone.weights import load_weights

GOOD = {"patch": 9, "width": 16, "depth": 2, "heads": 4, "drop_path": 0.0, "mask": 0.0}


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    return ViT(**{**GOOD, "embedding_size": 12, "image_size": 32, **changes})


def images(count=4, size=32, dtype=torch.float64):
    return torch.randn(count, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(1))


def test_names_are_those_published():
    names = {"patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed", "mask_token", "norm.weight", "norm.bias"}
    for block in (0, 1):
        layers = ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2")
        names |= {f"blocks.{block}.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
        names |= {f"blocks.{block}.attn.qkv.weight"}
    names |= {"feature.0.weight", "feature.2.weight"}
    entries = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names |= {f"feature.{layer}.{entry}" for layer in (1, 3) for entry in entries}
    assert set(tiny().state_dict()) == names


@pytest.mark.parametrize(("width", "depth"), [(256, 12), (512, 24)])
def test_parameters_are_those_of_the_parts(width, depth):
    with torch.device("meta"):
        network = ViT(9, width, depth, 8, 0.1, 0.1, 512, 112)
    block = 12 * width**2 + 10 * width  # qkv, proj, two layers of four times the width, their biases, two norms
    embedding = 144 * width * width + 2 * width + width * 512 + 2 * 512
    expected = (3 * 81 + 1) * width + 145 * width + depth * block + 2 * width + embedding
    assert count_parameters(network) == expected


def reference(network, x):
    """The network's formula in eval mode, head by head."""
    state = network.state_dict()

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, (16,), state[f"{name}.weight"], state[f"{name}.bias"])

    def batch_norm(x, name):
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return (x - mean) / (var + 2e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    patches = [x[:, :, 9 * row : 9 * row + 9, 9 * column : 9 * column + 9] for row in range(3) for column in range(3)]
    kernel = state["patch_embed.proj.weight"].flatten(1)
    x = torch.stack([patch.flatten(1) @ kernel.T for patch in patches], dim=1) + state["patch_embed.proj.bias"]
    x = x + state["pos_embed"]
    for name in ("blocks.0", "blocks.1"):
        q, k, v = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv").chunk(3, dim=2)
        heads = []
        for part in (slice(4 * head, 4 * head + 4) for head in range(4)):
            share = (q[..., part] @ k[..., part].mT / 2).softmax(dim=2)
            heads.append(share @ v[..., part])
        x = x + linear(torch.cat(heads, dim=2), f"{name}.attn.proj")
        x = x + linear(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1").clamp(0, 6), f"{name}.mlp.fc2")
    x = batch_norm(linear(norm(x, "norm").flatten(1), "feature.0"), "feature.1")
    return batch_norm(linear(x, "feature.2"), "feature.3")


def test_it_computes_the_formula_and_each_image_by_itself():
    network = tiny(mask=0.3, drop_path=0.5).double().eval()
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(0.3 * torch.rand_like(value))
        together = network(images())
        torch.testing.assert_close(together, reference(network, images()))
        torch.testing.assert_close(together, torch.cat([network(image[None]) for image in images()]))
    assert together.shape == (4, 12)


def test_a_share_of_the_patches_is_left_out_in_training():
    """The embedding layer sees the learned token at as many places, at other ones for each image, and draws anew."""
    network = tiny(mask=0.5).double()
    with torch.no_grad():
        network.mask_token.fill_(7.0)
    seen = []
    network.feature[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].unflatten(1, (9, 16))))
    network(images())
    network(images())
    masked = [(tokens == 7.0).all(2) for tokens in seen]
    assert [mask.sum(1).tolist() for mask in masked] == [[5] * 4] * 2  # of 9 places int(9 · 0.5) = 4 are kept
    assert len({tuple(row.tolist()) for mask in masked for row in mask}) > 2
    assert not torch.equal(masked[0], masked[1])


def test_tokens_come_back_to_their_places():
    """With blocks that do nothing, what is kept is what it is without masking."""
    network = tiny(mask=0.5, depth=1).double()
    with torch.no_grad():
        network.blocks[0].attn.proj.weight.zero_()
        network.blocks[0].mlp.fc2.weight.zero_()
        network.mask_token.fill_(7.0)
        tokens = network.patch_embed(images()) + network.pos_embed
        masked, whole = network._masked(tokens), network.norm(tokens)
    kept = (masked != 7.0).all(2)
    assert kept.sum(1).tolist() == [4] * 4
    torch.testing.assert_close(masked[kept], whole[kept])


@pytest.mark.parametrize("mask", [0.0, 0.3])
def test_every_parameter_that_can_learn_gets_a_gradient(mask):
    network = tiny(mask=mask)
    network(images(dtype=torch.float32)).square().sum().backward()
    without = {name for name, p in network.named_parameters() if p.grad is None}
    assert without == ({"feature.3.weight", "mask_token"} if mask == 0 else {"feature.3.weight"})
    assert without == {name for name, p in network.named_parameters() if not p.requires_grad}
    assert torch.equal(network.feature[3].weight, torch.ones(12))


def test_drop_path_rises_to_the_last_block_and_acts_in_training_alone():
    network = tiny(drop_path=0.3, depth=4)
    assert [block.drop_path.drop_prob for block in network.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
    network, x = tiny(drop_path=0.9, depth=2), images(dtype=torch.float32)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_embeddings_stay_float32_under_autocast():
    network, x = tiny().eval(), images(2, dtype=torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = network(x)
    assert half.dtype == torch.float32
    exact = network(x)
    assert (half - exact).norm() < 0.05 * exact.norm()
    with torch.autocast("cpu", torch.bfloat16):  # masked, in training
        assert tiny(mask=0.3)(x).dtype == torch.float32


def test_patches_of_eight_cover_112_pixels():
    with torch.device("meta"):
        assert tiny(patch=8, image_size=112).pos_embed.shape == (1, 14 * 14, 16)
        assert tiny(patch=9, image_size=112).pos_embed.shape == (1, 12 * 12, 16)


def test_weights_without_renaming(tmp_path):
    source, network = tiny(1), tiny(2)
    torch.save({f"module.{name}": value for name, value in source.state_dict().items()}, tmp_path / "model.pt")
    load_weights(network, tmp_path / "model.pt")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in network.state_dict().items())
    with torch.device("meta"):
        other = ViT(**{**GOOD, "depth": 3}, embedding_size=12, image_size=32)
    with pytest.raises(ValueError, match=r"These are weights of the ViT .* family, with 2 units$"):
        load_weights(other, tmp_path / "model.pt")


def test_depths_have_names_and_timms_transformers_are_not_ours():
    assert recognise(tiny(depth=24).state_dict()).option == "vit_b"
    assert recognise(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1).state_dict()) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, r"backbone\.heads is 3, which does not divide backbone\.width=16"),
        ({"heads": 0}, r"backbone\.heads is 0: give at least 1"),
        ({"depth": 0}, r"backbone\.depth is 0: give at least 1"),
        ({"embedding_size": 0}, r"backbone\.embedding_size is 0: give at least 1"),
        ({"patch": 33}, r"backbone\.patch is 33: give 1 to 32 pixels"),
        ({"patch": 0}, r"backbone\.patch is 0"),
        ({"drop_path": 1.0}, r"backbone\.drop_path is 1\.0: give a probability"),
        ({"mask": -0.1}, r"backbone\.mask is -0\.1: give a probability"),
        ({"mask": 0.95}, r"backbone\.mask is 0\.95, which leaves none of 9 patches"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)
