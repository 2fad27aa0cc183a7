"""IR and IR-SE, the residual networks of the AdaFace and TFace family: (B,3,H,W) in [−1,1] → (B,D), not normalised.

The units are those of `facelab.backbone.iresnet` (BN → conv → BN → PReLU → conv → BN); the networks differ in three
places: a shortcut has a convolution only where the number of channels changes, so the first stage's has none; the last
batch norm has neither gain nor shift; and IR-SE weighs the channels of every unit (Hu et al., "Squeeze-and-Excitation
Networks", 2018). The names of the parameters are those of the published checkpoints of this family, which therefore
load without renaming, and which no network of the other family can take.
"""

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from facelab.backbone.attention import build_attention, reset_attention
from facelab.backbone.iresnet import check_residual
from facelab.backbone.prelu import PReLU
from facelab.backbone.stages import Stage

SQUEEZE = 16  # channels of a unit for one in the middle of its squeeze-and-excitation, in every published network


class SqueezeExcite(nn.Module):
    """Weighs each channel by a sigmoid of what all channels are on average."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // SQUEEZE, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // SQUEEZE, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B,channels,H,W) → the same shape."""
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Unit(nn.Module):
    """One residual unit: BN → conv 3×3 → BN → PReLU → conv 3×3 with the stride → BN (→ SE → CBAM), plus shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, se: bool, attention: str):
        super().__init__()
        self.shortcut_layer: nn.Module
        if inputs == outputs:
            self.shortcut_layer = nn.MaxPool2d(1, stride) if stride > 1 else nn.Identity()
        else:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut_layer = nn.Sequential(projection, nn.BatchNorm2d(outputs))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
            PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        if se:
            self.res_layer.add_module("se_block", SqueezeExcite(outputs))
        self.attention = build_attention(attention, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B,inputs,H,W) → (B,outputs,H/stride,W/stride)."""
        residual = self.res_layer(x)
        return (residual if self.attention is None else self.attention(residual)) + self.shortcut_layer(x)


class IR(nn.Module):
    """A stem, four stages of residual units that halve the resolution each, and one linear layer to the embedding.

    Args:
        layers: units in each of the four stages; [3,4,14,3] is IR_50, [3,13,30,3] IR_101.
        widths: channels of the four stages; [64,128,256,512] in every published network. The stem has widths[0].
        se: whether every unit ends with squeeze-and-excitation (IR-SE).
        embedding_size: D.
        dropout: probability of dropping a value of the last feature map, in [0,1).
        attention: none, or cbam at the end of every unit (`facelab.backbone.attention`).
        image_size: H = W of the input in pixels.

    Raises:
        ValueError: where `layers` or `widths` are not four positive numbers, or another argument is out of range.
    """

    def __init__(
        self,
        layers: Sequence[int],
        widths: Sequence[int],
        se: bool,
        embedding_size: int,
        dropout: float,
        attention: str,
        image_size: int,
    ):
        super().__init__()
        check_residual(layers, widths, embedding_size, dropout, image_size)
        self.embedding_size = embedding_size
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), PReLU(widths[0])
        )
        self.layers = list(layers)
        units, inputs, side = [], widths[0], image_size
        for count, outputs in zip(layers, widths, strict=True):
            units.append(Unit(inputs, outputs, 2, se, attention))
            units += [Unit(outputs, outputs, 1, se, attention) for _ in range(count - 1)]
            inputs, side = outputs, (side + 1) // 2
        self.body = nn.Sequential(*units)
        linear = nn.Linear(inputs * side * side, embedding_size)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Dropout(dropout),
            nn.Flatten(),  # channel by channel, as the published linear layers expect, in any memory format
            linear,
            nn.BatchNorm1d(embedding_size, affine=False),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        reset_attention(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) → (B,D), in the precision of the parameters even under autocast."""
        norm, dropout, flatten, linear, last = self.output_layer
        x = linear(flatten(dropout(norm(self.body(self.input_layer(images))))))
        # The last norm decides the embedding's scale; in half precision its variance would lose three digits.
        return last(x.to(linear.weight.dtype))

    def stages(self) -> list[Stage]:
        """See `facelab.backbone.stages`."""
        units = iter(self.body)
        rows = [tuple(islice(units, count)) for count in self.layers]
        return [
            Stage("input_layer", (self.input_layer,)),
            *(Stage(f"stage{number}", row) for number, row in enumerate(rows, start=1)),
            Stage("output_layer", (self.output_layer,)),
        ]
