"""Held-out identities: faces of people the model never trains on, for choosing a checkpoint."""

import numpy as np

from facelab.data.plan import uniforms

__all__ = ["hold_out"]


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
    if not isinstance(fraction, int | float) or not 0 <= fraction < 1:
        raise ValueError(f"fraction of held-out identities is {fraction!r}: it must be at least 0 and below 1")
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
