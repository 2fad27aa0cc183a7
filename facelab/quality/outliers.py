"""Is the norm a judge of whether this is a face at all, and of somebody known? AUROC against what is neither.

Each set of outliers is compared with a set of faces: the area under the ROC is the probability that a face has the
higher quality of the two; 0.5 says nothing. (The norm as a score for out-of-distribution inputs is the paper's other
reading of it: Kim and Sohn.)
"""

from __future__ import annotations

import numpy as np

from facelab.benchmark.operating_points import auc

TILES = 7  # tiles of a side that a scrambled face is cut into: 16 pixels of 112


def noise(count: int, size: int, seed: int) -> np.ndarray:
    """(count,size,size,3) uint8: every value by itself, evenly from 0 to 255."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def scrambled(image: np.ndarray, seed: int) -> np.ndarray:
    """A face's tiles in another order: its colours and edges, and no face.

    Args:
        image: (H,H,3) uint8; the rows and columns that are left over by tiles of H//7 pixels stay.
        seed: of the order.

    Returns:
        A new image.
    """
    side = image.shape[0] // TILES
    order = np.random.default_rng(seed).permutation(TILES * TILES)
    result = image.copy()
    for place, taken in enumerate(order):
        (y, x), (down, across) = divmod(place, TILES), divmod(int(taken), TILES)
        tile = image[down * side : (down + 1) * side, across * side : (across + 1) * side]
        result[y * side : (y + 1) * side, x * side : (x + 1) * side] = tile
    return result


def auroc(faces: np.ndarray, others: np.ndarray) -> float:
    """P(a face has the higher quality) + ½·P(both have the same), of (N,) and (K,) qualities."""
    return auc(faces, others)
