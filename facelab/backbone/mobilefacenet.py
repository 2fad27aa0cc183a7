"""MobileFaceNet (Chen et al., "MobileFaceNets", 2018, table 1): (B,3,H,W) → (B,D) embeddings, not normalised.

MobileNetV2's inverted bottlenecks with PReLU, and instead of an average over the last map a depthwise convolution as
large as that map, which gives each of its places a weight of its own. Published weights of InsightFace's MXNet days
("y1") load through `facelab.backbone.weights`; `mxnet_names` says which of their arrays goes where.
"""

import torch
from torch import Tensor, nn

from facelab.backbone.prelu import PReLU
from facelab.backbone.stages import Stage

# Channels, hidden channels of the first bottleneck (stride 2), hidden channels of the residual ones, and their number.
STAGES = ((64, 128, 128, 4), (128, 256, 256, 6), (128, 512, 256, 2))
EPS = 1e-3  # of the batch norms inside, as the published weights were trained (MXNet's default)
LAST_EPS = 2e-5  # of the last one


class ConvNorm(nn.Module):
    """Convolution → BN → PReLU; without padding and PReLU where `linear`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, linear: bool = False):
        super().__init__()
        padding = 0 if linear else kernel // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=EPS)
        self.act = None if linear else PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B,inputs,H,W) → (B,outputs,H/stride,W/stride)."""
        x = self.norm(self.conv(x))
        return x if self.act is None else self.act(x)


class Bottleneck(nn.Module):
    """1×1 to `hidden` channels → 3×3 depthwise with the stride → 1×1, linear; plus the input where the stride is 1."""

    def __init__(self, inputs: int, outputs: int, hidden: int, stride: int):
        super().__init__()
        self.residual = stride == 1
        self.expand = ConvNorm(inputs, hidden, 1)
        self.depthwise = ConvNorm(hidden, hidden, 3, stride, groups=hidden)
        self.project = ConvNorm(hidden, outputs, 1, linear=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B,inputs,H,W) → (B,outputs,H/stride,W/stride)."""
        y = self.project(self.depthwise(self.expand(x)))
        return y + x if self.residual else y


class MobileFaceNet(nn.Module):
    """A stem, three stages of bottlenecks that halve the resolution each, and a global depthwise convolution.

    Args:
        embedding_size: D; 128 as published.
        image_size: H = W of the input in pixels.

    Raises:
        ValueError: where an argument is out of range.
    """

    def __init__(self, embedding_size: int, image_size: int):
        super().__init__()
        if embedding_size < 1:
            raise ValueError(f"backbone.embedding_size is {embedding_size}: give at least 1 (128 as published)")
        if image_size < 16:
            raise ValueError(f"backbone.image_size is {image_size} pixels: give at least 16 (112 is usual)")
        self.embedding_size = embedding_size
        self.stem = ConvNorm(3, 64, 3, stride=2)
        self.depthwise = ConvNorm(64, 64, 3, groups=64)
        self.stage1, self.stage2, self.stage3 = (
            _stage(inputs, *numbers) for inputs, numbers in zip((64, 64, 128), STAGES, strict=True)
        )
        self.expand = ConvNorm(128, 512, 1)
        side = -(-image_size // 16)
        self.weigh = ConvNorm(512, 512, side, groups=512, linear=True)
        self.fc = nn.Linear(512, embedding_size)
        # A free gain behind the last linear layer would only repeat what that layer can do: fixed to 1 as published.
        self.features = nn.BatchNorm1d(embedding_size, eps=LAST_EPS)
        self.features.weight.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) → (B,D), in the precision of the parameters even under autocast."""
        x = self.depthwise(self.stem(images))
        x = self.expand(self.stage3(self.stage2(self.stage1(x))))
        x = self.fc(torch.flatten(self.weigh(x), 1))
        # The last norm decides the embedding's scale; in half precision its variance would lose three digits.
        return self.features(x.to(self.features.weight.dtype))

    def stages(self) -> list[Stage]:
        """See `facelab.backbone.stages`; the convolution at the stem's resolution is a stage too."""
        rows = {f"stage{number}": self.get_submodule(f"stage{number}") for number in (1, 2, 3)}
        return [
            Stage("stem", (self.stem,)),
            Stage("depthwise", (self.depthwise,)),
            *(Stage(name, tuple(row.children())) for name, row in rows.items()),
            Stage("neck", (self.expand, self.weigh, self.fc, self.features)),
        ]

    def mxnet_names(self) -> dict[str, str]:
        """Our names → those of the published MXNet file, `arg:` (trained) or `aux:` (running statistics) in front."""
        units = {"stem": "conv_1", "depthwise": "conv_2_dw", "expand": "conv_6sep", "weigh": "conv_6dw7_7"}
        for stage, (*_, residual) in enumerate(STAGES, start=1):
            rows = [f"dconv_{stage + 1}{stage + 2}", *(f"res_{stage + 2}_block{unit}" for unit in range(residual))]
            for unit, row in enumerate(rows):
                for ours, theirs in (("expand", "conv_sep"), ("depthwise", "conv_dw"), ("project", "conv_proj")):
                    units[f"stage{stage}.{unit}.{ours}"] = f"{row}_{theirs}"
        names = {"fc.weight": "arg:fc1_weight", "fc.bias": "arg:pre_fc1_bias", **_norm_names("features", "fc1")}
        for ours, theirs in units.items():
            names[f"{ours}.conv.weight"] = f"arg:{theirs}_conv2d_weight"
            names |= _norm_names(f"{ours}.norm", f"{theirs}_batchnorm")
            if not ours.endswith(("project", "weigh")):
                names[f"{ours}.act.weight"] = f"arg:{theirs}_relu_gamma"
        return names


def _stage(inputs: int, outputs: int, first: int, hidden: int, residual: int) -> nn.Sequential:
    units = (Bottleneck(outputs, outputs, hidden, stride=1) for _ in range(residual))
    return nn.Sequential(Bottleneck(inputs, outputs, first, stride=2), *units)


def _norm_names(ours: str, theirs: str) -> dict[str, str]:
    return {
        f"{ours}.weight": f"arg:{theirs}_gamma",
        f"{ours}.bias": f"arg:{theirs}_beta",
        f"{ours}.running_mean": f"aux:{theirs}_moving_mean",
        f"{ours}.running_var": f"aux:{theirs}_moving_var",
    }
