"""Drawing with OpenCV on (H, W, 3) uint8 pictures: anti-aliased polygons, soft patches, tapered strokes."""

from __future__ import annotations

import cv2
import numpy as np

Colour = tuple[float, float, float]
BLEED = 0.4  # pixels by which OpenCV's anti-aliasing widens a polygon on every side


def fill(image: np.ndarray, points: np.ndarray, colour: Colour) -> None:
    """Fill a polygon (n, 2), or several that do not overlap (k, n, 2), sub-pixel and anti-aliased, in place."""
    corners = np.rint(points * 16).astype(np.int32)
    cv2.fillPoly(image, list(corners) if corners.ndim == 3 else [corners], colour, cv2.LINE_AA, 4)


def soft_fill(image: np.ndarray, points: np.ndarray, colour: Colour, alpha: float, blur: float) -> None:
    """Blend polygons, (n, 2) or (k, n, 2), with a soft border of `blur` pixels over the picture, in place."""
    margin = 3 * blur + 2
    flat = points.reshape(-1, 2)
    (left, top), (right, bottom) = (flat.min(0) - margin).tolist(), (flat.max(0) + margin).tolist()
    x, y = max(int(left), 0), max(int(top), 0)
    part = image[y : max(int(bottom) + 1, 0), x : max(int(right) + 1, 0)]
    if not part.size:
        return
    mask = np.zeros(part.shape[:2], np.uint8)
    fill(mask, points - (x, y), (255, 255, 255))
    blend(part, soften(mask, blur), colour, alpha)


def soften(mask: np.ndarray, sigma: float) -> np.ndarray:
    """Blur a mask by about `sigma` pixels; two box filters where a Gaussian would be slow."""
    if sigma < 0.2:
        return mask
    if sigma < 1:
        return cv2.GaussianBlur(mask, (3, 3), sigma)
    width = 2 * round((6 * sigma**2 + 1) ** 0.5 / 2 - 0.5) + 1
    return cv2.blur(cv2.blur(mask, (width, width)), (width, width))


def blend(image: np.ndarray, mask: np.ndarray, colour: Colour, alpha: float) -> None:
    """Mix a colour into a picture (h, w, 3) where the mask (h, w) uint8 says so, in place."""
    weight = (mask * np.float32(alpha / 255.0))[..., None]
    mixed = image + (np.array(colour, np.float32) - image) * weight
    np.copyto(image, mixed, casting="unsafe")


def stroke(image: np.ndarray, points: np.ndarray, widths: np.ndarray | float, colour: Colour) -> None:
    """Draw a brush stroke along points (n, 2), or several (k, n, 2), with half widths in pixels, in place."""
    along = np.empty_like(points)
    along[..., 1:-1, :] = points[..., 2:, :] - points[..., :-2, :]
    along[..., 0, :] = points[..., 1, :] - points[..., 0, :]
    along[..., -1, :] = points[..., -1, :] - points[..., -2, :]
    length = np.hypot(along[..., 0], along[..., 1]) + 1e-6
    offset = along[..., ::-1] * (-1, 1) * (np.maximum(widths - BLEED, 0.05) / length)[..., None]
    fill(image, np.concatenate([points + offset, (points - offset)[..., ::-1, :]], axis=-2), colour)


def darker(colour: Colour, factor: float) -> Colour:
    """Scale a colour's brightness."""
    return colour[0] * factor, colour[1] * factor, colour[2] * factor
