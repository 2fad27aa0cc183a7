"""MBF, the mobile network of the InsightFace family: (B,3,H,W) in [−1,1] → (B,D) embeddings, not normalised.

MobileFaceNet's inverted residual units with twice the channels between them, as InsightFace (recognition/arcface_torch)
trains and publishes it. The names of the parameters are those of the published checkpoints, which therefore load
without renaming: hence `layers` at every level. `facelab.backbone.mobilefacenet` is the network of the paper.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from facelab.backbone.prelu import PReLU
from facelab.backbone.stages import Stage


class ConvBlock(nn.Module):
    """Convolution → BN → PReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int):
        super().__init__()
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.layers = nn.Sequential(convolution, nn.BatchNorm2d(outputs), PReLU(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B,inputs,H,W) → (B,outputs,H/stride,W/stride)."""
        return self.layers(x)


class LinearBlock(nn.Module):
    """Convolution → BN, without padding and activation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int):
        super().__init__()
        convolution = nn.Conv2d(inputs, outputs, kernel, groups=groups, bias=False)
        self.layers = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B,inputs,H,W) → (B,outputs,H−kernel+1,W−kernel+1)."""
        return self.layers(x)


class DepthWise(nn.Module):
    """Inverted bottleneck: 1×1 to `hidden` channels → 3×3 of each channel by itself, with the stride → 1×1, linear."""

    def __init__(self, inputs: int, outputs: int, hidden: int, stride: int, residual: bool):
        super().__init__()
        self.residual = residual
        self.layers = nn.Sequential(
            ConvBlock(inputs, hidden, kernel=1, stride=1, groups=1),
            ConvBlock(hidden, hidden, kernel=3, stride=stride, groups=hidden),
            LinearBlock(hidden, outputs, kernel=1, groups=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B,inputs,H,W) → (B,outputs,H/stride,W/stride)."""
        return x + self.layers(x) if self.residual else self.layers(x)


class Residual(nn.Module):
    """A row of bottlenecks with shortcuts, at one resolution."""

    def __init__(self, channels: int, hidden: int, units: int):
        super().__init__()
        self.layers = nn.Sequential(*(DepthWise(channels, channels, hidden, 1, residual=True) for _ in range(units)))

    def forward(self, x: Tensor) -> Tensor:
        """(B,channels,H,W) → the same shape."""
        return self.layers(x)


class GDC(nn.Module):
    """Global depthwise convolution: every channel weighs the places of its map by itself; then linear → BN."""

    def __init__(self, channels: int, side: int, embedding_size: int):
        super().__init__()
        self.layers = nn.Sequential(
            LinearBlock(channels, channels, kernel=side, groups=channels),
            nn.Flatten(),
            nn.Linear(channels, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B,channels,side,side) → (B,D), in the precision of the parameters even under autocast."""
        weigh, flatten, linear, norm = self.layers
        # The last norm decides the embedding's scale; in half precision its variance would lose three digits.
        return norm(linear(flatten(weigh(x))).to(norm.weight.dtype))


class MBF(nn.Module):
    """A stem, a first row at its resolution, and three times: a bottleneck with stride 2, then a row of residual ones.

    Args:
        blocks: units of the first row and the three others; [1,4,6,2] is mbf, [2,8,12,4] mbf_large. A first row of one
            unit is a single grouped convolution.
        scale: channels between the units in multiples of 64; 2 is mbf, 4 mbf_large. Inside them they do not grow.
        embedding_size: D.
        image_size: H = W of the input in pixels.

    Raises:
        ValueError: where `blocks` are not four positive numbers, or another argument is out of range.
    """

    def __init__(self, blocks: Sequence[int], scale: int, embedding_size: int, image_size: int):
        super().__init__()
        if len(blocks) != 4 or min(blocks) < 1:
            raise ValueError(f"backbone.blocks is {list(blocks)}: give four positive numbers, one a row")
        if scale < 1:
            raise ValueError(f"backbone.scale is {scale}: give at least 1 (2 as published)")
        if embedding_size < 1:
            raise ValueError(f"backbone.embedding_size is {embedding_size}: give at least 1 (512 is usual)")
        if image_size < 16:
            raise ValueError(f"backbone.image_size is {image_size} pixels: give at least 16 (112 is usual)")
        self.embedding_size = embedding_size
        narrow, wide = 64 * scale, 128 * scale
        # 64 groups whatever the scale: so the published networks were trained.
        first = ConvBlock(narrow, narrow, 3, 1, groups=64) if blocks[0] == 1 else Residual(narrow, 128, blocks[0])
        self.layers = nn.ModuleList(
            [
                ConvBlock(3, narrow, kernel=3, stride=2, groups=1),
                first,
                DepthWise(narrow, narrow, 128, stride=2, residual=False),
                Residual(narrow, 128, blocks[1]),
                DepthWise(narrow, wide, 256, stride=2, residual=False),
                Residual(wide, 256, blocks[2]),
                DepthWise(wide, wide, 512, stride=2, residual=False),
                Residual(wide, 256, blocks[3]),
            ]
        )
        self.conv_sep = ConvBlock(wide, 512, kernel=1, stride=1, groups=1)
        side = -(-image_size // 16)
        self.features = GDC(512, side, embedding_size)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) → (B,D)."""
        x = images
        for layer in self.layers:
            x = layer(x)
        return self.features(self.conv_sep(x))

    def stages(self) -> list[Stage]:
        """See `facelab.backbone.stages`."""
        stem, first, *others = self.layers
        pairs = zip(others[::2], others[1::2], strict=True)
        rows = [_units(first), *((strided, *_units(row)) for strided, row in pairs)]
        return [
            Stage("stem", (stem,)),
            *(Stage(f"row{number}", row) for number, row in enumerate(rows, start=1)),
            Stage("neck", (self.conv_sep, self.features)),
        ]


def _units(row: nn.Module) -> tuple[nn.Module, ...]:
    return tuple(row.layers.children()) if isinstance(row, Residual) else (row,)
