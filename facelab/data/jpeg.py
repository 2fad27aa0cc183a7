"""What JPEG takes from an image, a batch at a time on its device: everything of the format that loses something.

Colours to YCbCr (JFIF), the cosine transform of 8×8 blocks, quantisation, and back (ITU-T T.81). What is left out, the
coding of the quantised numbers, loses nothing. Chroma keeps its resolution (4:4:4).

Numbers are whole, and float64 holds every sum of them exactly: the same bytes on every device and in every batch.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["compress", "quantisation_tables"]

# T.81, Annex K.1: steps of the coefficients, of luma and chroma, at quality 50.
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_CORNER = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))  # 99 elsewhere
_SCALE = 1 << 16  # of the colour transforms' whole numbers
_FROM_RGB = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))  # JFIF
_CHROMA_TO_RGB = ((0, 1.402), (-0.344136286, -0.714136286), (1.772, 0))
_COSINE = 1 << 18  # of the cosines': 128 · 8 · their product stays below 2^53
_FINE = 64  # coefficients become multiples of 1/_FINE before they are divided: ties do not hang on a cosine's last bits


def quantisation_tables() -> np.ndarray:
    """Steps (100, 2, 8, 8) int64 of the coefficients, as libjpeg scales them: by quality - 1, of luma and of chroma."""
    chroma = np.full((8, 8), 99)
    chroma[:4, :4] = _CHROMA_CORNER
    quality = np.arange(1, 101)
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    steps = (np.stack([np.array(_LUMA), chroma]) * scale[:, None, None, None] + 50) // 100
    return np.clip(steps, 1, 255)


def compress(images: Tensor, quality: Tensor) -> Tensor:
    """Images (b,P,P,3) of bytes, float32, RGB, P a multiple of 8 → the same, as JPEG leaves them.

    Args:
        images: pixels, whole numbers in 0…255.
        quality: (b,) int64 in 1…100, libjpeg's.
    """
    b, P = images.shape[:2]
    assert P % 8 == 0, "whole blocks"
    device = images.device
    steps = torch.from_numpy(quantisation_tables()).to(device)[quality - 1][:, [0, 1, 1]].double()  # (b, 3, 8, 8)
    steps = steps[:, None, None]
    cosines = torch.from_numpy(_cosines()).to(device)
    blocks = (_to_ycc(images.double()) - 128).view(b, P // 8, 8, P // 8, 8, 3).permute(0, 1, 3, 5, 2, 4)
    fine = (_on_both_sides(blocks, cosines.T) * _FINE).round()
    # Halves go away from zero, as in libjpeg.
    levels = fine.sign() * ((fine.abs() + _FINE / 2 * steps) / (_FINE * steps)).floor()
    pixels = (_on_both_sides(levels * steps, cosines).round() + 128).clamp(0, 255)
    return _to_rgb(pixels.permute(0, 1, 4, 2, 5, 3).reshape(images.shape)).float()


def _cosines() -> np.ndarray:
    """The orthonormal cosine transform (8, 8) float64, frequencies by places, in whole multiples of 1/_COSINE."""
    frequency, place = np.arange(8)[:, None], np.arange(8)
    matrix = np.cos((2 * place + 1) * frequency * np.pi / 16) / 2
    matrix[0] /= np.sqrt(2)
    return np.rint(matrix * _COSINE)


def _on_both_sides(blocks: Tensor, right: Tensor) -> Tensor:
    """rightᵀ · block · right of each block (…,8,8), with `right` (8,8) in units of 1/_COSINE."""
    rows = (blocks @ right).transpose(-1, -2)
    return (rows @ right).transpose(-1, -2) / _COSINE**2


def _whole(matrix: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """A matrix of the colour transforms (k, n) in whole multiples of 1/_SCALE, transposed, float64."""
    return torch.from_numpy(np.rint(np.array(matrix) * _SCALE).T.copy()).to(device)


def _to_ycc(pixels: Tensor) -> Tensor:
    """RGB (…,3) → Y, Cb, Cr in 0…255, float64; halves as in libjpeg: up in Y, down in the others."""
    offset = torch.tensor([_SCALE // 2, _SCALE // 2 - 1 + 128 * _SCALE, _SCALE // 2 - 1 + 128 * _SCALE])
    return ((pixels @ _whole(_FROM_RGB, pixels.device) + offset.to(pixels)) / _SCALE).floor()


def _to_rgb(pixels: Tensor) -> Tensor:
    """Y, Cb, Cr (…,3) → RGB in 0…255, float64."""
    colour = (pixels[..., 1:] - 128) @ _whole(_CHROMA_TO_RGB, pixels.device)
    return (pixels[..., :1] + ((colour + _SCALE // 2) / _SCALE).floor()).clamp(0, 255)
