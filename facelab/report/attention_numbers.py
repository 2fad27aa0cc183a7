"""Where attention maps lie on a face, and how alike two of them are: numbers with intervals over people."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Eyes, nose and corners of the mouth in aligned faces of 112 pixels (ArcFace's template): x, y of pixels' centres,
# which are whole numbers there. Left is the picture's left.
SIDE = 112
LEFT_EYE, RIGHT_EYE, NOSE = (38.29, 51.70), (73.53, 51.50), (56.03, 71.74)
LEFT_CORNER, RIGHT_CORNER = (41.55, 92.37), (70.73, 92.20)
# Radii in pixels of 112, ours: with lids and lower brow; from the nose's bridge to its base; both lips. No two regions
# touch, so that their shares add up.
EYE_RADIUS, NOSE_RADIUS, MOUTH_RADIUS = 14.0, 11.0, 9.0
REGIONS = ("eyes", "nose", "mouth")
RESAMPLES = 2000  # of people; percentiles of 95 % then move by a few hundredths of the interval's width
SEED = 0


def regions(size: int) -> dict[str, np.ndarray]:
    """The regions of an aligned face: discs around the eyes and the nose, a capsule around the mouth.

    Args:
        size: H = W of the image in pixels; the template is scaled to it.

    Returns:
        For each of REGIONS (size,size) bool: the pixels whose centre is inside. They do not overlap.
    """
    places = (np.arange(size) + 0.5) * SIDE / size - 0.5  # of the pixels' centres in the template
    x, y = places[None, :], places[:, None]
    eyes = (_distance(x, y, LEFT_EYE, LEFT_EYE) <= EYE_RADIUS) | (_distance(x, y, RIGHT_EYE, RIGHT_EYE) <= EYE_RADIUS)
    nose = _distance(x, y, NOSE, NOSE) <= NOSE_RADIUS
    mouth = _distance(x, y, LEFT_CORNER, RIGHT_CORNER) <= MOUTH_RADIUS
    return dict(zip(REGIONS, (eyes, nose, mouth), strict=True))


def _distance(x: np.ndarray, y: np.ndarray, start: tuple[float, float], end: tuple[float, float]) -> np.ndarray:
    """(H,W) distance of the places from the line between two points, which may be one."""
    along = np.subtract(end, start)
    length = float(along @ along)
    part = np.clip(((x - start[0]) * along[0] + (y - start[1]) * along[1]) / length, 0, 1) if length else 0.0
    return np.hypot(x - start[0] - part * along[0], y - start[1] - part * along[1])


def share(maps: np.ndarray, region: np.ndarray) -> np.ndarray:
    """The share of each map's sum that lies in a region; of a flat map it is the region's share of the area.

    Args:
        maps: (B,H,W), not negative, none of them all zero.
        region: (H,W) bool.

    Returns:
        (B,) float64, 0 … 1.
    """
    maps = np.asarray(maps, np.float64)
    return maps[:, region].sum(1) / maps.sum((1, 2))


def cosine(one: np.ndarray, other: np.ndarray, centred: bool) -> np.ndarray:
    """Cosine of maps as long vectors, as A-SKD compares them (Shin et al., ECCV 2022).

    Args:
        one: (B,…) maps before their sigmoid.
        other: (B,…), of the same shape.
        centred: whether each map's mean is taken away before, which makes it Pearson's correlation. What all places
            have in common then counts for nothing, and only where a map is high and where it is low.

    Returns:
        (B,) float64 in [−1,1]; 0 where a map is zero everywhere (constant, where centred).
    """
    one, other = (np.asarray(maps, np.float64).reshape(len(maps), -1) for maps in (one, other))
    if centred:
        one, other = (maps - maps.mean(1, keepdims=True) for maps in (one, other))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    products = (one * other).sum(1)
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)


@dataclass(frozen=True)
class Interval:
    """A mean over images, and the bounds between which it lies, with 95 %, had other people been taken.

    Attributes:
        mean: over images.
        low: 2.5th percentile.
        high: 97.5th percentile.
    """

    mean: float
    low: float
    high: float


def intervals(values: np.ndarray, people: np.ndarray) -> list[Interval]:
    """Means with their bootstrap intervals (Efron's percentiles): people are drawn again, each with all images.

    Images of one person are alike; drawing images one by one would make the intervals too narrow. All columns see the
    same draws, and the draws are always the same.

    Args:
        values: (N,K), a row for each image.
        people: (N,) who is on it, any integers.

    Returns:
        K intervals.
    """
    values = np.asarray(values, np.float64)
    who = np.unique(people, return_inverse=True)[1]
    count = int(who.max()) + 1
    sums, images = np.zeros((count, values.shape[1])), np.bincount(who, minlength=count)
    np.add.at(sums, who, values)
    rng = np.random.default_rng(SEED)
    means = np.empty((RESAMPLES, values.shape[1]))
    for i in range(RESAMPLES):
        drawn = np.bincount(rng.integers(count, size=count), minlength=count)
        means[i] = drawn @ sums / (drawn @ images)
    low, high = np.percentile(means, (2.5, 97.5), axis=0)
    return [Interval(*map(float, row)) for row in zip(values.mean(0), low, high, strict=True)]


def choose(people: np.ndarray, count: int) -> np.ndarray:
    """Which images are looked at, always the same: a first one of everybody, then a second one, …, at random.

    Args:
        people: (N,) who is on each image.
        count: images wanted; all where there are fewer.

    Returns:
        (min(N, count),) image numbers. The first of them show as many different people as there are.
    """
    rng = np.random.default_rng(SEED)
    order = rng.permutation(len(people))
    by_person = np.argsort(people[order], kind="stable")
    labels = people[order][by_person]
    first = np.flatnonzero(np.concatenate([[True], labels[1:] != labels[:-1]]))
    turn = np.empty(len(people), np.int64)  # how many images of the same person come before
    turn[by_person] = np.arange(len(people)) - np.repeat(first, np.diff([*first, len(people)]))
    return order[np.argsort(turn, kind="stable")][:count]


def people_of_pairs(pairs: np.ndarray, same: np.ndarray, images: int) -> np.ndarray:
    """Who is on the images of a pair list: those that genuine pairs join are one person, all others are different.

    Args:
        pairs: (N,2) image numbers.
        same: (N,) bool.
        images: M.

    Returns:
        (M,) int64, 0 … people − 1.
    """
    one, other = pairs[same].T
    labels, before = np.arange(images), np.full(images, -1)
    while (labels != before).any():
        before = labels.copy()
        lower = np.minimum(labels[one], labels[other])
        np.minimum.at(labels, one, lower)
        np.minimum.at(labels, other, lower)
    return np.unique(labels, return_inverse=True)[1]
