"""What is held out: identities the model never trains on, or images of the classes that it does train on."""

import numpy as np

from facelab.data.plan import uniforms

__all__ = ["hold_out", "hold_out_images"]


def hold_out(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides the identities of a training set into those trained on and those held out.

    Only an identity with at least two images can be held out: one image makes no genuine pair. A larger fraction holds
    out the same identities and more.

    Args:
        labels: (N,) identity of each image.
        fraction: share of the eligible identities that is held out, in [0, 1); 0 holds nothing out.
        seed: the split's own seed, not the run's: runs that are compared hold out the same people.

    Returns:
        Training identities and held-out identities, both sorted int64.

    Raises:
        ValueError: when `fraction` is not in [0, 1), or leaves fewer than two identities on either side.
    """
    _check(fraction, "identities")
    identities, counts = np.unique(np.asarray(labels, dtype=np.int64), return_counts=True)
    eligible = identities[counts >= 2]
    order = np.argsort(uniforms(seed, 0, eligible, 1)[:, 0], kind="stable")
    held = np.sort(eligible[order[: round(fraction * len(eligible))]])
    train = np.setdiff1d(identities, held, assume_unique=True)
    if fraction > 0 and len(held) < 2:
        raise ValueError(
            f"holding out {fraction} of {len(eligible)} identities with two or more images leaves {len(held)} "
            "held-out identities: at least 2 are needed, raise the fraction (or set it to 0)"
        )
    if len(train) < 2:
        raise ValueError(
            f"holding out {fraction} of {len(identities)} identities leaves {len(train)} for training: "
            "at least 2 are needed, lower the fraction"
        )
    return train, held


def hold_out_images(labels: np.ndarray, fraction: float, seed: int, parts: int) -> list[np.ndarray]:
    """Divides the images of every class into those trained on and those held out.

    Of each class the share is held out, and at least an image for each part; but one is always trained on, so that a
    class with too few images gives the first parts something, or none. A larger fraction holds out the same images and
    more.

    Args:
        labels: (N,) class of each image; images below 0 are in no part.
        fraction: share of each class's images that is held out, in [0, 1); 0 holds nothing out.
        seed: the split's own seed, not the run's.
        parts: how many parts share evenly what is held out.

    Returns:
        Numbers of the images to train on, then those of each part; all sorted int64.

    Raises:
        ValueError: when `fraction` is not in [0, 1).
    """
    _check(fraction, "images")
    images = np.flatnonzero(np.asarray(labels) >= 0)
    order = images[np.lexsort((uniforms(seed, 0, images, 1)[:, 0], labels[images]))]
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(first, counts)  # within its class
    wanted = np.maximum(np.rint(fraction * counts).astype(np.int64), parts) if fraction > 0 else 0 * counts
    part = np.where(place < np.repeat(np.minimum(wanted, counts - 1), counts), place % parts, -1)
    return [np.sort(order[part == number]) for number in range(-1, parts)]


def _check(fraction: float, what: str) -> None:
    if not isinstance(fraction, int | float) or not 0 <= fraction < 1:
        raise ValueError(f"fraction of held-out {what} is {fraction!r}: it must be at least 0 and below 1")
