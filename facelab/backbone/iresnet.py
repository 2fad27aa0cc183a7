"""IResNet, the residual network of the InsightFace family: (B,3,H,W) in [−1,1] → (B,D) embeddings, not normalised.

Improved residual units (Duta et al., "Improved Residual Networks", 2020) as ArcFace uses them: a batch norm before the
first convolution, PReLU between the two, the stride in the second, nothing after the sum. The names of the parameters
are those of the published checkpoints of this family, which therefore load without renaming.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from facelab.backbone.attention import build_attention, reset_attention
from facelab.backbone.prelu import PReLU
from facelab.backbone.stages import Stage


class Block(nn.Module):
    """One residual unit: BN → conv 3×3 → BN → PReLU → conv 3×3 with the stride → BN (→ CBAM), plus the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, project: bool, attention: str):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if project
            else None
        )
        self.attention = build_attention(attention, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B,inputs,H,W) → (B,outputs,H/stride,W/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        x = self.bn3(self.conv2(x))
        return (x if self.attention is None else self.attention(x)) + shortcut


class IResNet(nn.Module):
    """A stem, four stages of residual units that halve the resolution each, and one linear layer to the embedding.

    Args:
        layers: units in each of the four stages; [3,4,14,3] is r50.
        widths: channels of the four stages; [64,128,256,512] in every published network. The stem has widths[0].
        stem_stride: stride of the first convolution: 1 as published, 2 quarters the cost.
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
        stem_stride: int,
        embedding_size: int,
        dropout: float,
        attention: str,
        image_size: int,
    ):
        super().__init__()
        check_residual(layers, widths, embedding_size, dropout, image_size)
        if stem_stride not in (1, 2):
            raise ValueError(f"backbone.stem_stride is {stem_stride}: give 1 (as published) or 2")
        self.embedding_size = embedding_size
        self.conv1 = nn.Conv2d(3, widths[0], 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = PReLU(widths[0])
        self.layer1 = _stage(widths[0], widths[0], layers[0], attention)
        self.layer2 = _stage(widths[0], widths[1], layers[1], attention)
        self.layer3 = _stage(widths[1], widths[2], layers[2], attention)
        self.layer4 = _stage(widths[2], widths[3], layers[3], attention)
        self.bn2 = nn.BatchNorm2d(widths[3])
        self.dropout = nn.Dropout(dropout)
        side = image_size
        for _ in range(4 + (stem_stride == 2)):
            side = (side + 1) // 2
        self.fc = nn.Linear(widths[3] * side * side, embedding_size)
        # A free gain behind the last linear layer would only repeat what that layer can do: the published networks
        # fix it to 1 and train the shift alone.
        self.features = nn.BatchNorm1d(embedding_size)
        nn.init.ones_(self.features.weight)
        self.features.weight.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.1)
        reset_attention(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) → (B,D), in the precision of the parameters even under autocast."""
        x = self.prelu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.dropout(self.bn2(x))
        # (B,C,h,w) is flattened channel by channel, as the published linear layers expect, in any memory format.
        x = self.fc(torch.flatten(x, 1))
        # The last norm decides the embedding's scale; in half precision its variance would lose three digits.
        return self.features(x.to(self.features.weight.dtype))

    def stages(self) -> list[Stage]:
        """See `facelab.backbone.stages`."""
        rows = {f"layer{number}": self.get_submodule(f"layer{number}") for number in (1, 2, 3, 4)}
        return [
            Stage("stem", (self.conv1, self.bn1, self.prelu)),
            *(Stage(name, tuple(row.children())) for name, row in rows.items()),
            Stage("neck", (self.bn2, self.dropout, self.fc, self.features)),
        ]


def _stage(inputs: int, outputs: int, units: int, attention: str) -> nn.Sequential:
    first = Block(inputs, outputs, stride=2, project=True, attention=attention)
    others = (Block(outputs, outputs, stride=1, project=False, attention=attention) for _ in range(units - 1))
    return nn.Sequential(first, *others)


def check_residual(
    layers: Sequence[int], widths: Sequence[int], embedding_size: int, dropout: float, image_size: int
) -> None:
    """Refuses what no residual network of four stages can have; the arguments are those of `IResNet`.

    Raises:
        ValueError: names the argument, its value and what to give.
    """
    for name, values in (("layers", layers), ("widths", widths)):
        if len(values) != 4 or min(values) < 1:
            raise ValueError(f"backbone.{name} is {list(values)}: give four positive numbers, one a stage")
    if min(widths) < 16:
        # Seen with torch 2.15: the backward pass of a strided 1×1 convolution of fewer than 16 channels, channels
        # last, writes outside its memory on a CPU when the batch is odd. No network of use is that narrow.
        raise ValueError(f"backbone.widths are {list(widths)}: give at least 16 channels to every stage")
    if embedding_size < 1:
        raise ValueError(f"backbone.embedding_size is {embedding_size}: give at least 1 (512 is usual)")
    if not 0 <= dropout < 1:
        raise ValueError(f"backbone.dropout is {dropout}: give a probability of at least 0 and below 1")
    if image_size < 16:
        raise ValueError(f"backbone.image_size is {image_size} pixels: give at least 16 (112 is usual)")
