"""The augmentation that AdaFace was trained with (Kim, Jain and Liu, CVPR 2022), a whole batch at a time on its device.

Three things, each with a probability of its own: a rectangle of the image is kept and the rest becomes black; the image
is made small and enlarged again; brightness, contrast and saturation change. Then it is mirrored, as everywhere.

All pixel arithmetic is in whole numbers that float32 holds exactly, so a batch gives the same bytes on every device,
in mixed precision, and whatever other images are in it. docs/augmentation.md lists where this differs from the code
that was published with the paper.
"""

import math

import torch
from torch import Tensor, nn

from facelab.data.augment import change_some
from facelab.resampling import INTERPOLATIONS, resample, tables

__all__ = ["AdaFaceAugment"]

_LARGEST_RATIO = 4 / 3  # of a kept rectangle's sides, the longer to the shorter
_NEWTON_STEPS = 6  # after four, the error is below float64's
_STEPS = 1024  # factors of the jitter are multiples of 1/_STEPS: their products with bytes are exact in float32


class AdaFaceAugment(nn.Module):
    """Keeps a rectangle, lowers the resolution, changes the colours, mirrors.

    The module holds no random state: what happens to an image is decided by its draws (`plan.uniforms`).

    Args:
        mirror: probability that an image is mirrored.
        crop_prob: probability that only a rectangle of the image is kept, at its place; the rest becomes 0.
        crop_scale: smallest share of the image's area that is kept.
        low_res_prob: probability that an image is made small and enlarged again, each by one of OpenCV's five
            interpolations.
        low_res_scale: smallest side of the small image, as a share of the image's.
        photometric_prob: probability that brightness, contrast and saturation change, in a random order.
        jitter: their factors lie within 1 - jitter and 1 + jitter.

    Raises:
        ValueError: when a probability is not in [0, 1], a scale not in (0, 1], or `jitter` is not in [0, 1]. When
            called: when the images are not square.
    """

    # Always the same columns: switching one thing off leaves the others as they were.
    draws = 15

    def __init__(
        self,
        mirror: float,
        crop_prob: float,
        crop_scale: float,
        low_res_prob: float,
        low_res_scale: float,
        photometric_prob: float,
        jitter: float,
    ) -> None:
        super().__init__()
        probabilities = {"mirror": mirror, "crop_prob": crop_prob, "low_res_prob": low_res_prob}
        for name, value in {**probabilities, "photometric_prob": photometric_prob}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}: it is a probability, between 0 and 1")
        for name, value in {"crop_scale": crop_scale, "low_res_scale": low_res_scale}.items():
            if not 0 < value <= 1:
                raise ValueError(f"{name} is {value}: it is the smallest share that is left, above 0 and at most 1")
        if not 0 <= jitter <= 1:
            raise ValueError(f"jitter is {jitter}: it is the largest change of a factor of 1, between 0 and 1")
        self.mirror = mirror
        self.crop_prob, self.crop_scale = crop_prob, crop_scale
        self.low_res_prob, self.low_res_scale = low_res_prob, low_res_scale
        self.photometric_prob, self.jitter = photometric_prob, jitter
        self._matrices: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def forward(self, images: Tensor, draws: Tensor) -> Tensor:
        """Images (B,H,H,3) uint8 RGB and draws (B,15) in [0, 1) → images (B,H,H,3) uint8."""
        if images.shape[1] != images.shape[2]:
            raise ValueError(f"images are {images.shape[1]}×{images.shape[2]} pixels: this augmentation needs squares")
        with torch.autocast(images.device.type, enabled=False):  # 8 bits of a bfloat16 would not hold the weights
            images = change_some(images, draws[:, 1:6], self.crop_prob, self._keep_rectangle)
            images = change_some(images, draws[:, 6:10], self.low_res_prob, self._lower_resolution)
            images = change_some(images, draws[:, 10:15], self.photometric_prob, self._jitter_colours)
        if self.mirror == 0:
            return images
        return torch.where((draws[:, 0] < self.mirror)[:, None, None, None], images.flip(2), images)

    def _keep_rectangle(self, images: Tensor, draws: Tensor) -> Tensor:
        """A rectangle of torchvision's RandomResizedCrop, left where it is.

        torchvision draws area and ratio of the sides until they fit into the image. Here they are drawn at once from
        the distribution that this gives: |log ratio| by inverting its cumulative distribution (Newton, which from the
        left of a concave function never oversteps), then the area among those that fit.
        """
        H, W = images.shape[1:3]
        area, ratio, down, right = draws.double().unbind(1)
        smallest = self.crop_scale
        widest = min(math.log(_LARGEST_RATIO), -math.log(smallest))
        signed = 2 * ratio - 1
        wanted = signed.abs() * (1 - math.exp(-widest) - smallest * widest)
        log_ratio = torch.zeros_like(wanted)
        for _ in range(_NEWTON_STEPS):
            error = 1 - torch.exp(-log_ratio) - smallest * log_ratio - wanted
            log_ratio = log_ratio - error / (torch.exp(-log_ratio) - smallest).clamp(min=1e-6)
        area = smallest + area * (torch.exp(-log_ratio) - smallest)
        log_ratio = log_ratio * signed.sign()
        height = (H * torch.sqrt(area * torch.exp(-log_ratio))).round().clamp(1, H)
        width = (W * torch.sqrt(area * torch.exp(log_ratio))).round().clamp(1, W)
        kept_rows = _within((down * (H - height + 1)).floor(), height, H)
        kept_columns = _within((right * (W - width + 1)).floor(), width, W)
        return images * (kept_rows[:, :, None] & kept_columns[:, None, :])[..., None]

    def _lower_resolution(self, images: Tensor, draws: Tensor) -> Tensor:
        """Both axes shrunk by one interpolation, rounded to bytes, and enlarged by another."""
        side = images.shape[1]
        smallest = max(1, int(self.low_res_scale * side))
        key = (side, images.device)
        if key not in self._matrices:
            down, up = (torch.from_numpy(table).to(images.device) for table in tables(side, smallest))
            self._matrices[key] = down, up
        share = self.low_res_scale + draws[:, 0].double() * (1 - self.low_res_scale)
        size = (share * side).long().clamp(smallest, side) - smallest
        kinds = (draws[:, 1:3] * len(INTERPOLATIONS)).long()
        down, up = self._matrices[key]
        small = resample(images.float(), down[kinds[:, 0], size])
        return resample(small, up[kinds[:, 1], size]).to(torch.uint8)

    def _jitter_colours(self, images: Tensor, draws: Tensor) -> Tensor:
        """Pillow's brightness, contrast and saturation, in one of their six orders; bytes after each, as there."""
        jitter = 2 * self.jitter * draws[:, :3].double()
        factors = ((1 - self.jitter + jitter) * _STEPS).round().float() / _STEPS
        order = (draws[:, 3] * 6).long()
        first = order % 3
        second = (first + 1 + order // 3) % 3
        pixels = images.float()
        for change in (first, second, 3 - first - second):
            grey = _grey(pixels)
            # What a factor of 0 would leave of the image: black, its mean grey, or its greys.
            extreme = torch.where((change == 2)[:, None, None], grey, (_mean(grey) * (change == 1))[:, None, None])
            factor = factors.gather(1, change[:, None])[:, :, None, None]
            rest = extreme.float()[..., None]
            pixels = (rest + (pixels - rest) * factor).clamp_(0, 255).floor_()
        return pixels.to(torch.uint8)

    def extra_repr(self) -> str:
        """Shown in the module's printed form."""
        return (
            f"mirror={self.mirror}, crop={self.crop_prob} (from {self.crop_scale}), low_res={self.low_res_prob} "
            f"(from {self.low_res_scale}), photometric={self.photometric_prob} (±{self.jitter})"
        )


def _within(first: Tensor, count: Tensor, length: int) -> Tensor:
    """(B, length): which places lie in first … first + count - 1."""
    places = torch.arange(length, device=first.device)
    return (places >= first[:, None]) & (places < (first + count)[:, None])


def _grey(pixels: Tensor) -> Tensor:
    """Pixels (b,H,W,3) of bytes → (b,H,W) int32: Pillow's luma (ITU-R 601), in its own whole numbers."""
    red, green, blue = pixels.to(torch.int32).unbind(3)
    return (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16


def _mean(grey: Tensor) -> Tensor:
    """(b,H,W) → (b,) int64, rounded."""
    count = grey[0].numel()
    return torch.div(2 * grey.sum((1, 2)) + count, 2 * count, rounding_mode="floor")
