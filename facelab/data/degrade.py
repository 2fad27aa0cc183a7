"""Faces as a far or cheap camera gives them: shrunk to a few pixels and enlarged again, on the batch's device.

All pixel arithmetic is in whole numbers that float32 holds exactly, so a batch gives the same bytes on every device,
in mixed precision, and whatever other images are in it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from facelab.data.augment import change_some
from facelab.resampling import check_kernels, down_and_up, resample

__all__ = ["LowResolution", "Untouched"]

_KEY = "data.degrade"


class Untouched(nn.Module):
    """Images as the augmentation leaves them."""

    draws = 0
    validation = False

    def check(self, size: int) -> None:
        """Images of every size are fine."""

    def forward(self, images: Tensor, draws: Tensor) -> Tensor:
        """Images (B,H,W,3) and draws (B,0) → the same images."""
        return images


class LowResolution(nn.Module):
    """Shrinks images to one of several sizes and back to their own (A-SKD: Shin et al., ECCV 2022).

    The module holds no random state: what happens to an image is decided by its draws (`plan.uniforms`). The small
    image is one of bytes, as a file would hold it.

    Args:
        prob: probability that an image is degraded.
        sizes: pixels of the small images; of several, one is drawn for each image, each as likely as it is often named.
        kernel: what shrinks: `bicubic`, `bilinear` (both antialiased), `area` or `nearest`.
        enlarge: what brings them back: `bicubic`, `bilinear` or `nearest`.
        validation: whether the held-out identities that choose best.ckpt are degraded too, each image always alike; for
            whoever trains, nothing here depends on it.

    Raises:
        ValueError: a probability that is none, no size, a size below 1, an unknown kernel. When called: images that are
            not square, or smaller than a size.
    """

    # Always the same columns: other values of the options leave what is drawn as it was.
    draws = 2

    def __init__(self, prob: float, sizes: int | Sequence[int], kernel: str, enlarge: str, validation: bool) -> None:
        super().__init__()
        if not 0 <= prob <= 1:
            raise ValueError(f"{_KEY}.prob is {prob}: it is a probability, between 0 and 1")
        self.sizes = [sizes] if isinstance(sizes, int) else list(sizes)
        if not self.sizes:
            raise ValueError(
                f"{_KEY}.sizes is empty: name at least one size in pixels, as {_KEY}.sizes=[14,28,56], or leave images "
                "as they are with data/degrade=none"
            )
        for size in self.sizes:
            if type(size) is not int or size < 1:
                raise ValueError(f"{_KEY}.sizes has {size!r}: a size is a whole number of pixels, at least 1")
        check_kernels(f"{_KEY}.", kernel, enlarge)
        self.prob, self.kernel, self.enlarge, self.validation = prob, kernel, enlarge, validation
        self._matrices: dict[tuple[int, torch.device], tuple[Tensor, Tensor, Tensor]] = {}

    def check(self, size: int) -> None:
        """Refuses sizes above that of the images, in pixels, before anything is trained.

        Raises:
            ValueError: naming both.
        """
        if max(self.sizes) > size:
            raise ValueError(
                f"{_KEY}.sizes has {max(self.sizes)}, but images have {size} pixels and only become smaller: give "
                f"sizes up to {size}"
            )

    def forward(self, images: Tensor, draws: Tensor) -> Tensor:
        """Images (B,H,H,3) uint8 RGB and draws (B,k) in [0, 1) → images (B,H,H,3) uint8."""
        if images.shape[1] != images.shape[2]:
            raise ValueError(f"images are {images.shape[1]}×{images.shape[2]} pixels: {_KEY} needs squares")
        self.check(images.shape[1])
        with torch.autocast(images.device.type, enabled=False):  # 8 bits of a bfloat16 would not hold the weights
            return change_some(images, draws, self.prob, self._change)

    def _change(self, images: Tensor, draws: Tensor) -> Tensor:
        side = images.shape[1]
        key = (side, images.device)
        if key not in self._matrices:
            made = (*down_and_up(side, self.sizes, self.kernel, self.enlarge), self.sizes)
            down, up, sizes = (torch.as_tensor(table).to(images.device) for table in made)
            self._matrices[key] = down, up, sizes
        down, up, sizes = self._matrices[key]
        which = (draws[:, 0].double() * len(self.sizes)).long()
        small = resample(self._before(images.float(), draws), down[which])
        small = self._between(small, sizes[which], draws)
        return resample(small, up[which]).to(torch.uint8)

    def _before(self, images: Tensor, draws: Tensor) -> Tensor:
        """What befalls an image (b,H,H,3), bytes as float32, before it is small."""
        return images

    def _between(self, small: Tensor, sizes: Tensor, draws: Tensor) -> Tensor:
        """What befalls small images (b,S,S,3), bytes as float32, whose pixels lie in the first `sizes` (b,) of S."""
        return small

    def extra_repr(self) -> str:
        """Shown in the module's printed form."""
        return f"prob={self.prob}, sizes={self.sizes}, kernel={self.kernel}, enlarge={self.enlarge}"
