"""Resizing as matrices, the same way in every room, so that images of one batch can be resized each to its own size.

Resizing is linear and goes axis by axis: `resized = M · image · Mᵀ`, where row i of M (new, old) says which old pixels
make up new pixel i. A batch of such matrices is one `bmm`, on any device, without a loop over images. OpenCV's
interpolations are in `matrix`, the antialiased kernels of Pillow and torch in `antialiased`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "BETWEEN",
    "ENLARGING",
    "INTERPOLATIONS",
    "SHRINKING",
    "WEIGHT",
    "antialiased",
    "check_kernels",
    "down_and_up",
    "gaussian",
    "matrix",
    "resample",
    "resample_image",
    "tables",
]

# Weights are whole multiples of 1/WEIGHT (OpenCV's own fixed point for bytes is the same): see `tables`.
WEIGHT = 2048
BETWEEN = 4  # pixels between two axes of a resize are multiples of 1/BETWEEN: exact, and finer than the result
INTERPOLATIONS = ("nearest", "linear", "area", "cubic", "lanczos4")
SHRINKING = ("bicubic", "bilinear", "area", "nearest")
ENLARGING = ("bicubic", "bilinear", "nearest")  # there is nothing to average over where a pixel becomes many


def _linear(x: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - x)


def _keys(x: np.ndarray, a: float) -> np.ndarray:
    """The cubic kernel of Keys (1981) with its free parameter."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _cubic(x: np.ndarray) -> np.ndarray:
    return _keys(x, -0.75)  # OpenCV's parameter


def _bicubic(x: np.ndarray) -> np.ndarray:
    return _keys(x, -0.5)  # Keys' own, which Pillow and torch's antialiased resize have


def _lanczos4(x: np.ndarray) -> np.ndarray:
    return np.where(x < 4, np.sinc(x) * np.sinc(x / 4), 0)


_KERNELS = {"linear": (_linear, 1), "cubic": (_cubic, 2), "lanczos4": (_lanczos4, 4)}


def matrix(kind: str, old: int, new: int) -> np.ndarray:
    """The matrix (new, old) float64, rows summing to 1, of `cv2.resize` from `old` to `new` pixels along one axis.

    Args:
        kind: one of INTERPOLATIONS. As in OpenCV only `area` averages over what a new pixel covers; the others look at
            a few old pixels and alias when they shrink. `area` that enlarges is OpenCV's variant of `linear`.
        old: pixels before.
        new: pixels after.
    """
    places = np.arange(new)
    if kind == "area" and new <= old:
        edges = np.arange(new + 1)[:, None] * (old / new) - np.arange(old)  # (new + 1, old): edges seen from each pixel
        covered = np.clip(edges, 0, 1)
        return (covered[1:] - covered[:-1]) * (new / old)
    if kind in _KERNELS:
        kernel, reach = _KERNELS[kind]
        centres = (places + 0.5) * (old / new) - 0.5
        taps = np.floor(centres).astype(int)[:, None] + np.arange(1 - reach, reach + 1)
        weights = kernel(np.abs(centres[:, None] - taps))
    else:  # these count from the pixels' upper left corners
        left = places * old // new
        if kind == "area":
            right = (places + 1) - (left + 1) * (new / old)
            right = np.where(right > 0, right - np.floor(right), 0)
        else:
            right = np.zeros(new)
        taps, weights = np.stack([left, left + 1], 1), np.stack([1 - right, right], 1)
    result = np.zeros((new, old))
    np.add.at(result, (places[:, None], np.clip(taps, 0, old - 1)), weights)  # beyond the edge: the edge again
    return result / result.sum(1, keepdims=True)


_ANTIALIASED = {"bilinear": _linear, "bicubic": _bicubic}


def antialiased(kernel: str, old: int, new: int) -> np.ndarray:
    """The matrix (new, old) float64, rows summing to 1, of a resize along one axis that does not alias.

    `bicubic` and `bilinear` are Pillow's, and torch's `interpolate(antialias=True)`: where an image shrinks, the kernel
    is stretched until it covers what a new pixel covers. `area` is the mean over exactly that. `nearest` is one old
    pixel, the one at the new pixel's centre (Pillow's, torch's `nearest-exact`), and aliases by its nature.

    Args:
        kernel: one of SHRINKING; one of ENLARGING where new > old.
        old: pixels before.
        new: pixels after.
    """
    if kernel == "area":
        return matrix("area", old, new)
    places = np.arange(new)[:, None]
    if kernel == "nearest":
        return ((2 * places + 1) * old // (2 * new) == np.arange(old)).astype(float)
    centres = (places + 0.5) * (old / new)
    weights = _ANTIALIASED[kernel](np.abs(np.arange(old) + 0.5 - centres) / max(old / new, 1))
    return weights / weights.sum(1, keepdims=True)


def gaussian(sigma: float, size: int) -> np.ndarray:
    """The matrix (size, size) float64, rows summing to 1, of a Gaussian blur along one axis; the edge is repeated.

    Args:
        sigma: standard deviation in pixels, at least 0 (nothing happens).
        size: pixels.
    """
    if sigma == 0:
        return np.eye(size)
    reach = int(np.ceil(4 * sigma))
    steps = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    places = np.arange(size)[:, None]
    result = np.zeros((size, size))
    np.add.at(result, (np.broadcast_to(places, (size, len(steps))), np.clip(places + steps, 0, size - 1)), weights)
    return result / weights.sum()


def check_kernels(prefix: str, kernel: str, enlarge: str) -> None:
    """Refuses kernels that there are not.

    Args:
        prefix: before the two names in a message, `data.degrade.`.
        kernel: what shrinks.
        enlarge: what enlarges.

    Raises:
        ValueError: an unknown one, or one that cannot do it.
    """
    for name, value, known in (("kernel", kernel, SHRINKING), ("enlarge", enlarge, ENLARGING)):
        if value not in known:
            raise ValueError(f"{prefix}{name} is {value!r}: give one of {', '.join(known)}")


def down_and_up(side: int, sizes: Sequence[int], kernel: str, enlarge: str) -> tuple[np.ndarray, np.ndarray]:
    """The matrices that bring images of `side` pixels to each of the sizes, and those that bring them back.

    Args:
        side: pixels of the image.
        sizes: K sizes in pixels, each at most `side`.
        kernel: one of SHRINKING.
        enlarge: one of ENLARGING.

    Returns:
        down (K, max(sizes), side) and up (K, side, max(sizes)), int16 in units of 1/WEIGHT. Of `down` the rows beyond
        a size are 0, of `up` the columns.
    """
    largest = max(sizes)
    down, up = np.zeros((len(sizes), largest, side), np.int16), np.zeros((len(sizes), side, largest), np.int16)
    for number, size in enumerate(sizes):
        down[number, :size] = whole(antialiased(kernel, side, size))
        up[number, :, :size] = whole(antialiased(enlarge, size, side))
    return down, up


def whole(weights: np.ndarray) -> np.ndarray:
    """Weights as whole multiples of 1/WEIGHT; the largest of each row takes what rounding left of its sum, 1."""
    whole = np.rint(weights * WEIGHT).astype(np.int64)
    rows = np.arange(len(whole))
    whole[rows, whole.argmax(1)] += WEIGHT - whole.sum(1)
    return whole


def tables(side: int, smallest: int) -> tuple[np.ndarray, np.ndarray]:
    """All matrices that bring images of `side` pixels to `smallest` … `side` pixels, and all that bring them back.

    Bytes times these weights, and their sums, are whole numbers that float32 holds exactly (TensorFloat-32 too): what
    is computed with them does not depend on the order of additions, hence not on device or batch.

    Returns:
        down and up, int16 in units of 1/WEIGHT, (len(INTERPOLATIONS), side - smallest + 1, side, side): by kind, then
        by size s - smallest. Of `down` the rows from s on are 0, of `up` the columns.
    """
    shape = (len(INTERPOLATIONS), side - smallest + 1, side, side)
    down, up = np.zeros(shape, np.int16), np.zeros(shape, np.int16)
    for number, kind in enumerate(INTERPOLATIONS):
        for size in range(smallest, side + 1):
            down[number, size - smallest, :size] = whole(matrix(kind, side, size))
            up[number, size - smallest, :, :size] = whole(matrix(kind, size, side))
    return down, up


def resample(images: Tensor, weights: Tensor) -> Tensor:
    """Bytes (b,H,H,3), float32, and matrices (b,n,H) in units of 1/WEIGHT → M · image · Mᵀ (b,n,n,3), bytes again.

    In whole numbers, which float32 adds exactly; autocast must be off, since bfloat16 does not hold them.
    """
    weights = weights.float() / WEIGHT
    rows = _apply(weights, images).mul_(BETWEEN).round_().div_(BETWEEN)
    return _apply(weights, rows).round_().clamp_(0, 255)


def _apply(weights: Tensor, images: Tensor) -> Tensor:
    """Each matrix along the first axis of its image, which comes back with its axes exchanged."""
    b, _, W, channels = images.shape
    return torch.bmm(weights, images.flatten(2)).view(b, -1, W, channels).transpose(1, 2)


def resample_image(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The same of one image (H,H,3) uint8 and one matrix (n,H), in numpy: → (n,n,3) uint8, the same bytes."""
    matrix = weights.astype(np.float32) / WEIGHT
    rows = np.tensordot(matrix, image.astype(np.float32), (1, 0))
    rows = np.rint(rows * BETWEEN) / BETWEEN
    pixels = np.tensordot(matrix, rows, (1, 1)).transpose(1, 0, 2)
    return np.ascontiguousarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
