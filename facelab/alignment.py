"""From five points of a face to the aligned image that networks are trained on, the same way in every room."""

import cv2
import numpy as np

__all__ = ["TEMPLATE", "TEMPLATE_SIZE", "similarities", "warp"]

TEMPLATE_SIZE = 112
# Eye, eye, nose, corner of the mouth, corner of the mouth, from left to right as the viewer sees them; x and y in
# pixels of a 112×112 image (ArcFace's, Deng et al., 2019).
TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)


def similarities(points: np.ndarray, size: int) -> np.ndarray:
    """The similarity transforms with the least squared error from points to the template, (N,2,3) float64.

    Umeyama (TPAMI 13, 1991), without reflections. In the plane a rotation and a scale are one complex number, so that
    the least squares have a closed form: no decomposition, and all faces at once.

    Args:
        points: (N,5,2) x, y in pixels of the photographs.
        size: of the aligned image, pixels; the template's coordinates are scaled by size/112.

    Raises:
        ValueError: points that are not finite, or fall on one place (counted, the first named).
    """
    points = np.asarray(points, dtype=np.float64)
    assert points.ndim == 3, "points are (N,5,2)"
    target = (TEMPLATE * (size / TEMPLATE_SIZE)) @ [1, 1j]
    with np.errstate(invalid="ignore"):  # points that are none are told below
        source = points @ [1, 1j]
        middle, aim = source.mean(axis=1, keepdims=True), target.mean()
        a, b = source - middle, target - aim
        spread = (np.abs(a) ** 2).sum(axis=1)
    bad = ~(np.isfinite(spread) & (spread > 0))
    if bad.any():
        raise ValueError(
            f"{int(bad.sum()):,} of {len(bad):,} faces have no five distinct, finite points, the first is face "
            f"{int(np.argmax(bad))}: correct them"
        )
    turn = (a.conj() * b).sum(axis=1) / spread
    shift = aim - turn * middle[:, 0]
    rows = [[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]]
    return np.moveaxis(np.array(rows), 2, 0)


def warp(image: np.ndarray, matrix: np.ndarray, size: int, out: np.ndarray | None = None) -> np.ndarray:
    """The aligned face (size,size,3) uint8: bilinear, black outside the photograph, as the field's own tools do it.

    Args:
        image: (H,W,3) uint8.
        matrix: (2,3) one of `similarities`.
        size: pixels.
        out: (size,size,3) uint8, contiguous: where the pixels go.
    """
    return cv2.warpAffine(image, matrix, (size, size), dst=out, flags=cv2.INTER_LINEAR)
