"""OpenCV's interpolations as matrices, so that images of one batch can be resized each to a size of its own.

Resizing is linear and goes axis by axis: `resized = M · image · Mᵀ`, where row i of M (new, old) says which old pixels
make up new pixel i. A batch of such matrices is one `bmm`, on any device, without a loop over images.
"""

import numpy as np

__all__ = ["INTERPOLATIONS", "WEIGHT", "matrix", "tables"]

# Weights are whole multiples of 1/WEIGHT (OpenCV's own fixed point for bytes is the same): see `tables`.
WEIGHT = 2048
INTERPOLATIONS = ("nearest", "linear", "area", "cubic", "lanczos4")
_CUBIC = -0.75  # OpenCV's free parameter of the cubic kernel; Keys' own is -0.5


def _linear(x: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - x)


def _cubic(x: np.ndarray) -> np.ndarray:
    near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    far = ((_CUBIC * x - 5 * _CUBIC) * x + 8 * _CUBIC) * x - 4 * _CUBIC
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


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


def _whole(weights: np.ndarray) -> np.ndarray:
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
            down[number, size - smallest, :size] = _whole(matrix(kind, side, size))
            up[number, size - smallest, :, :size] = _whole(matrix(kind, size, side))
    return down, up
