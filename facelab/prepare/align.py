"""Brings a face upright to a known place: five points onto a template, by the similarity that fits them best."""

import cv2
import numpy as np

__all__ = ["TEMPLATE", "similarity", "warp"]

# Eyes, nose and corners of the mouth in an image of 112×112 pixels, left to right as one sees them: where InsightFace
# puts them, and so where every published model expects them.
TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
_TEMPLATE_SIZE = 112


def similarity(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation, scaling and shift (2,3), float64, that bring points (n,2) nearest to a target (n,2).

    Least squares (Umeyama 1991). In the plane, a rotation times a scale is [[a, −b], [b, a]], so that the sum of
    squares is quadratic in a, b and the shift: with centred x and y, a = Σ x·y / Σ|x|² and b = Σ x×y / Σ|x|².

    Raises:
        ValueError: when all points are one, or not finite.
    """
    points, target = np.asarray(points, np.float64), np.asarray(target, np.float64)
    if not np.isfinite(points).all():
        raise ValueError("the points of a face must be finite and differ")
    middle, goal = points.mean(0), target.mean(0)
    x, y = points - middle, target - goal
    spread = (x * x).sum()
    if not spread > 0:
        raise ValueError("the points of a face must be finite and differ")
    a = (x * y).sum() / spread
    b = (x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0]).sum() / spread
    turn = np.array([[a, -b], [b, a]])
    return np.column_stack([turn, goal - turn @ middle])


def warp(image: np.ndarray, points: np.ndarray, size: int) -> np.ndarray:
    """The face (size,size,3) of an image (H,W,3), its five points (5,2) on the template; black beyond the image.

    Bilinear, without smoothing, as published sets are made: a face much larger than `size` is sampled sparsely.
    """
    matrix = similarity(points, TEMPLATE * (size / _TEMPLATE_SIZE))
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
