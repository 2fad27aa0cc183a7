"""Faces as a surveillance camera gives them: blurred by its lens, sampled coarsely, noisy, and compressed."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from facelab.data.degrade import LowResolution
from facelab.data.jpeg import compress
from facelab.resampling import gaussian, resample, whole

__all__ = ["Surveillance"]

_LEVELS = 16  # widths of blur between the smallest and the largest
_BYTES = 4  # whose sum is nearly normal
_DEVIATION = float(np.sqrt(_BYTES * (256**2 - 1) / 12))  # of that sum
_WORD = 0xFFFFFFFF


class Surveillance(LowResolution):
    """Blur, low resolution, noise and JPEG, in the order in which light becomes a file; then the image's own size.

    Noise and JPEG meet the small image: at 14 pixels one block of JPEG is a third of a face. A pixel's noise is a hash
    of two of the image's draws and of the pixel's place, so that seven draws are enough for an image.

    Args:
        prob: probability that an image is degraded.
        sizes: pixels of the small images, one drawn for each image; see `LowResolution`.
        kernel: what shrinks.
        enlarge: what enlarges again.
        validation: whether held-out identities are degraded too.
        blur: smallest and largest standard deviation of a Gaussian, in pixels of the image before it shrinks; or None.
        noise: smallest and largest standard deviation of each channel's noise, in levels of 255; or None.
        jpeg: lowest and highest quality, 1 to 100 as libjpeg counts them; or None.

    Raises:
        ValueError: as `LowResolution`; a range that is none.
    """

    draws = 7

    def __init__(
        self,
        prob: float,
        sizes: int | Sequence[int],
        kernel: str,
        enlarge: str,
        validation: bool,
        blur: Sequence[float] | None,
        noise: Sequence[float] | None,
        jpeg: Sequence[int] | None,
    ) -> None:
        super().__init__(prob, sizes, kernel, enlarge, validation)
        self.blur = _range("blur", blur, 0, 16)
        self.noise = _range("noise", noise, 0, 128)
        self.jpeg = _range("jpeg", jpeg, 1, 100)
        self._blurs: dict[tuple[int, torch.device], Tensor] = {}

    def _before(self, images: Tensor, draws: Tensor) -> Tensor:
        if self.blur is None:
            return images
        side = images.shape[1]
        key = (side, images.device)
        if key not in self._blurs:
            widths = np.linspace(*self.blur, _LEVELS)
            made = np.stack([whole(gaussian(width, side)) for width in widths]).astype(np.int16)
            self._blurs[key] = torch.from_numpy(made).to(images.device)
        return resample(images, self._blurs[key][(draws[:, 1].double() * _LEVELS).long()])

    def _between(self, small: Tensor, sizes: Tensor, draws: Tensor) -> Tensor:
        if self.noise is not None:
            lowest, highest = self.noise
            width = lowest + (highest - lowest) * draws[:, 2].double()
            factor = (width / _DEVIATION)[:, None, None, None]
            small = (small + (_sums(draws[:, 4:6], small.shape[1]) * factor).round().float()).clamp(0, 255)
        if self.jpeg is not None:
            lowest, highest = self.jpeg
            quality = int(lowest) + (draws[:, 3].double() * (int(highest) - int(lowest) + 1)).long()
            small = compress(_whole_blocks(small, sizes), quality)[:, : small.shape[1], : small.shape[1]]
        return small

    def extra_repr(self) -> str:
        """Shown in the module's printed form."""
        return f"{super().extra_repr()}, blur={self.blur}, noise={self.noise}, jpeg={self.jpeg}"


def _range(name: str, given: Sequence[float] | None, lowest: float, highest: float) -> tuple[float, float] | None:
    if given is None:
        return None
    if len(given) != 2 or not lowest <= given[0] <= given[1] <= highest:
        raise ValueError(
            f"data.degrade.{name} is {list(given)}: give the smallest and the largest, [a, b] with {lowest} ≤ a ≤ b ≤ "
            f"{highest}, or null for none"
        )
    return given[0], given[1]


def _whole_blocks(small: Tensor, sizes: Tensor) -> Tensor:
    """Images (b,S,S,3) whose pixels lie in the first `sizes` → (b,P,P,3), P a multiple of 8, the last pixel repeated.

    An encoder fills its last blocks like this; zeros instead would ring into the image.
    """
    b, S = small.shape[:2]
    places = torch.arange(-(-S // 8) * 8, device=small.device).minimum(sizes[:, None] - 1)  # (b, P)
    images = torch.arange(b, device=small.device)[:, None, None]
    return small[images, places[:, :, None], places[:, None, :]]


def _sums(draws: Tensor, S: int) -> Tensor:
    """Whole numbers (b,S,S,3) float64 of mean 0 and standard deviation _DEVIATION: sums of four bytes of a hash.

    Args:
        draws: (b,2) in [0, 1), multiples of 2^-24.
        S: pixels; what a pixel gets depends on its place alone.
    """
    row = torch.arange(S, device=draws.device)
    places = ((row[:, None] << 16) + row)[:, :, None] * 4 + torch.arange(3, device=draws.device)
    first, second = (draws.double() * 2**24).long()[:, :, None, None, None].unbind(1)
    words = _mix(_mix(_mix(places & _WORD) ^ first) ^ second)
    total = sum((words >> 8 * number) & 255 for number in range(_BYTES))
    return total.double() - _BYTES * 255 / 2  # type: ignore[union-attr]


def _mix(words: Tensor) -> Tensor:
    """MurmurHash3's finaliser (Appleby): a bijection of 32-bit words, here in int64."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        words = words ^ (words >> shift)
        # In two halves, so that no product leaves 63 bits.
        words = (words * (factor & 0xFFFF) + (((words * (factor >> 16)) & 0xFFFF) << 16)) & _WORD
    return words ^ (words >> 16)
