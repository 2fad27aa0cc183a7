"""CBAM at the end of every residual unit, and its maps for distillation.

Woo et al., "CBAM: Convolutional Block Attention Module", 2018, eqs. 1 to 3, as A-SKD uses it (Shin et al., "Teaching
Where to Look", 2022): before the sum with the shortcut, a convolution 3×3 in place of 7×7, no biases. What A-SKD
compares are the maps before their sigmoid.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

ATTENTIONS = ("none", "cbam")  # what `backbone.attention` can be
REDUCTION = 16  # channels for one in the middle of the channel attention; in CBAM and in A-SKD


class ChannelAttention(nn.Module):
    """Which channels? One MLP over the mean and over the maximum of each channel, added up."""

    def __init__(self, channels: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, channels // REDUCTION, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels // REDUCTION, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B,channels,H,W) → (B,channels,1,1), before the sigmoid."""
        return self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True))


class SpatialAttention(nn.Module):
    """Which places? A convolution 3×3 over mean and maximum of the channels at each place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B,channels,H,W) → (B,1,H,W), before the sigmoid."""
        return self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1))


class CBAM(nn.Module):
    """x ← x·σ(channel map), then x ← x·σ(spatial map).

    Args:
        channels: of x; at least 16.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.channel = ChannelAttention(channels)
        self.spatial = SpatialAttention()
        self.record: list[tuple[Tensor, Tensor]] | None = None  # where maps go while `attention_maps` asks for them

    def reset_parameters(self) -> None:
        """Xavier's uniform values, as in A-SKD; to be called after a network has initialised all its convolutions."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B,channels,H,W) → the same shape."""
        channel = self.channel(x)
        x = x * torch.sigmoid(channel)
        spatial = self.spatial(x)
        if self.record is not None:
            self.record.append((channel, spatial))
        return x * torch.sigmoid(spatial)


def build_attention(attention: str, channels: int) -> CBAM | None:
    """What a unit of so many channels ends with.

    Args:
        attention: none or cbam.
        channels: of the unit's result.

    Raises:
        ValueError: `attention` is another word.
    """
    if attention not in ATTENTIONS:
        raise ValueError(f"backbone.attention is {attention!r}: give one of {', '.join(ATTENTIONS)}")
    return CBAM(channels) if attention == "cbam" else None


def reset_attention(network: nn.Module) -> None:
    """Gives every CBAM of a network its own initial values."""
    for module in network.modules():
        if isinstance(module, CBAM):
            module.reset_parameters()


@contextmanager
def attention_maps(network: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collects the maps of what a network computes inside the `with`; outside it costs nothing.

        with attention_maps(network) as maps:
            embeddings = network(images)
        for channel, spatial in maps: …

    Args:
        network: with CBAM in its units.

    Yields:
        A list that grows by one pair for each unit and forward pass, in the order of the units: channel map (B,C,1,1)
        and spatial map (B,1,H,W), before their sigmoid, with gradients where the network has them.

    Raises:
        ValueError: the network has no attention.
    """
    modules = [module for module in network.modules() if isinstance(module, CBAM)]
    if not modules:
        raise ValueError(
            f"this {type(network).__name__} has no attention whose maps could be taken: set backbone.attention=cbam"
        )
    maps: list[tuple[Tensor, Tensor]] = []
    before = [module.record for module in modules]
    for module in modules:
        module.record = maps
    try:
        yield maps
    finally:
        for module, earlier in zip(modules, before, strict=True):
            module.record = earlier
