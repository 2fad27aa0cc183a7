"""The model that is exported: images in, embeddings out, with as much around the network as was asked for."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facelab.backbone.weights import HOUSE, Input, set_input

__all__ = ["EmbeddingModel"]


class EmbeddingModel(nn.Module):
    """A backbone and its head, and around them preprocessing, the mirrored image and the unit length.

    With preprocessing inside, images (B,H,W,3) uint8 RGB → (B,D) float32. With preprocessing outside it takes (B,3,H,W)
    float32 as the weights were trained: their order of colours, (pixel − mean)/std.

    Args:
        backbone: (B,3,H,W) → (B,D); a conversion of its input, if it has one, is taken off, for its convention is
            applied here.
        head: (B,D) → (B,D).
        convention: what the backbone's weights are used to.
        preprocessing: whether it is inside.
        mirror: whether the mirrored image's embedding is added.
        unit: whether embeddings are brought to length 1.
    """

    def __init__(
        self, backbone: Any, head: nn.Module, convention: Input, preprocessing: bool, mirror: bool, unit: bool
    ):
        super().__init__()
        set_input(backbone, HOUSE)
        self.backbone, self.head = backbone, head
        self.convention, self.preprocessing, self.mirror, self.unit = convention, preprocessing, mirror, unit
        self.dtype = torch.float32

    def forward(self, images: Tensor) -> Tensor:
        """Images as the class says → (B,D) float32."""
        if self.preprocessing:
            images = images.permute(0, 3, 1, 2).to(torch.float32)
            if self.convention.color != HOUSE.color:
                images = images.flip(1)
            images = (images - self.convention.mean) * (1 / self.convention.std)
        if self.mirror:  # in one batch: each layer is there once, and is one product
            images = torch.cat([images, images.flip(3)])
        rows = self.head(self.backbone(images.to(self.dtype))).to(torch.float32)
        if self.mirror:
            rows = rows.unflatten(0, (2, -1)).sum(0)
        return F.normalize(rows) if self.unit else rows

    def cast(self, dtype: torch.dtype) -> "EmbeddingModel":
        """The same with weights and products in another precision; preprocessing and the last step stay in float32."""
        self.backbone.to(dtype)
        self.head.to(dtype)
        self.dtype = dtype
        return self
