"""A-SKD's published weights: names of its own for what is an IResNet with CBAM."""

import pytest
import torch
from torch import nn

from facelab.backbone.families import recognise
from facelab.backbone.ir_se import IR
from facelab.backbone.iresnet import IResNet
from facelab.backbone.weights import HOUSE, load_weights

LAYERS, WIDTHS = (2, 1, 1, 2), (16, 16, 32, 32)


class Channels(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.shared_mlp = nn.Sequential(
            nn.Conv2d(width, width // 16, 1, bias=False), nn.ReLU(), nn.Conv2d(width // 16, width, 1, bias=False)
        )

    def forward(self, x):
        pools = nn.functional.adaptive_avg_pool2d(x, 1), nn.functional.adaptive_max_pool2d(x, 1)
        return x * torch.sigmoid(sum(self.shared_mlp(pooled) for pooled in pools))


class Places(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1, bias=False)

    def forward(self, x):
        return x * torch.sigmoid(self.conv(torch.stack([x.mean(1), x.max(1).values], 1)))


class Unit(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.channel_layer, self.spatial_layer = Channels(outputs), Places()
        self.shortcut_layer = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride == 2
            else nn.Identity()
        )

    def forward(self, x):
        return self.shortcut_layer(x) + self.spatial_layer(self.channel_layer(self.res_layer(x)))


class Theirs(nn.Module):
    """A-SKD's network, small, from its description: the names are those of its checkpoints."""

    def __init__(self):
        super().__init__()
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.PReLU(WIDTHS[0])
        )
        inputs = WIDTHS[0]
        for number, (count, outputs) in enumerate(zip(LAYERS, WIDTHS, strict=True), start=1):
            units = [Unit(inputs, outputs, 2), *(Unit(outputs, outputs, 1) for _ in range(count - 1))]
            self.add_module(f"layer{number}", nn.Sequential(*units))
            inputs = outputs
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(inputs * 2 * 2, 12),
            nn.BatchNorm1d(12),
        )

    def forward(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.input_layer(x)))))
        return self.output_layer(x)


def ours(**changes):
    given = {"layers": LAYERS, "widths": WIDTHS, "stem_stride": 1, "embedding_size": 12, "dropout": 0.0}
    return IResNet(**{**given, "attention": "cbam", "image_size": 32, **changes})


@pytest.fixture(scope="module")
def theirs():
    """With values everywhere that are not those that it was made with."""
    torch.manual_seed(0)
    network = Theirs()
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand_like(value) * 0.1)
    return network.eval()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_they_give_the_same_embeddings(theirs, tmp_path, prefix):
    state = {f"{prefix}{name}": value for name, value in theirs.state_dict().items()}
    torch.save({"iters": 3, "net_state_dict": state}, tmp_path / "last_net.ckpt")
    network = ours()
    assert load_weights(network, tmp_path / "last_net.ckpt") == HOUSE
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(network.double().eval()(images), theirs.double()(images))
    theirs.float()


def test_the_published_sizes_are_an_r50_with_cbam():
    with torch.device("meta"):
        network = ours(layers=(3, 4, 14, 3), widths=(64, 128, 256, 512), embedding_size=512, image_size=112)
    kind = recognise(network.state_dict())
    assert (kind.option, kind.attention) == ("r50", "cbam")


@pytest.mark.parametrize(
    ("network", "line"),
    [
        (lambda: ours(attention="none"), r"IResNet \(InsightFace\) family.* backbone\.attention=cbam"),
        (lambda: IR(LAYERS, WIDTHS, False, 12, 0.0, "cbam", 32), r"weights of the IResNet \(InsightFace\) family"),
    ],
)
def test_another_network_is_told_which_one_takes_them(theirs, tmp_path, network, line):
    torch.save({"net_state_dict": theirs.state_dict()}, tmp_path / "last_net.ckpt")
    with pytest.raises(ValueError, match=line):
        load_weights(network(), tmp_path / "last_net.ckpt")
