"""Mirror and shift a whole batch in one gather, on the device where the batch already is."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["Augment", "change_some", "normalise"]


class Augment(nn.Module):
    """Mirrors images, then shifts them by whole pixels.

    Shifting by up to `crop` pixels with the edge repeated is a random crop of the padded image. The module holds no
    random state: what happens to an image is decided by its draws (`plan.uniforms`), whatever batch or device it is in.

    Args:
        mirror: probability that an image is mirrored.
        crop: largest shift in pixels, in each direction; 0 keeps images where they are.

    Raises:
        ValueError: when `mirror` is not in [0, 1] or `crop` is negative.
    """

    # Always the same three columns (mirror, down, right): switching one of them off leaves the others as they were.
    draws = 3

    def __init__(self, mirror: float, crop: int) -> None:
        super().__init__()
        if not 0 <= mirror <= 1:
            raise ValueError(f"mirror is {mirror}: it is a probability, between 0 and 1")
        if crop < 0:
            raise ValueError(f"crop is {crop}: it is the largest shift in pixels, at least 0")
        self.mirror = mirror
        self.crop = crop

    def forward(self, images: Tensor, draws: Tensor) -> Tensor:
        """Images (B,H,W,3) and draws (B,3) in [0, 1) → images (B,H,W,3) of the same type."""
        B, H, W, channels = images.shape
        if self.mirror == 0 and self.crop == 0:
            return images
        shift = (draws[:, 1:3] * (2 * self.crop + 1)).long() - self.crop  # (B, 2), from -crop to crop
        rows = torch.arange(H, device=images.device) + shift[:, 0:1]  # (B, H)
        columns = torch.arange(W, device=images.device) + shift[:, 1:2]  # (B, W)
        rows, columns = rows.clamp_(0, H - 1), columns.clamp_(0, W - 1)
        columns = torch.where(draws[:, 0:1] < self.mirror, W - 1 - columns, columns)
        lines = rows + torch.arange(B, device=images.device)[:, None] * H
        pixels = lines[:, :, None] * W + columns[:, None, :]  # (B, H, W): source pixel of every target pixel
        # On a CPU, index_select is more than twice as fast as images[…].
        return images.reshape(-1, channels).index_select(0, pixels.view(-1)).view(images.shape)

    def extra_repr(self) -> str:
        """Shown in the module's printed form."""
        return f"mirror={self.mirror}, crop={self.crop}"


def normalise(images: Tensor) -> Tensor:
    """Images (B,H,W,3) in 0…255 → float32 (B,3,H,W) in [-1, 1], in channels-last memory: (x - 127.5) / 127.5."""
    return (images.permute(0, 3, 1, 2).to(torch.float32) - 127.5).div_(127.5)


def change_some(
    images: Tensor, draws: Tensor, probability: float, change: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Changes the images (b,H,W,3) whose first draw is below the probability; their other draws say how."""
    if probability == 0:
        return images
    chosen, draws = draws[:, 0] < probability, draws[:, 1:]
    if images.device.type != "cpu":
        # To ask which are chosen would wait for the device: changing all of them costs it less.
        return torch.where(chosen[:, None, None, None], change(images, draws), images)
    rows = chosen.nonzero()[:, 0]
    return images.index_copy(0, rows, change(images[rows], draws[rows])) if len(rows) else images
