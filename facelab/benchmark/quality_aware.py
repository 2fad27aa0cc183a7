"""QMagFace: a similarity that trusts long embeddings more, where the length of an embedding is its quality.

    s' = s + q·ω(s)        ω(s) = min(0, β·s − α)        q = min(‖z_1‖, ‖z_2‖)

with s the cosine. ω is never positive: it only lowers similarities, and those of good images more, so that a small
cosine between two good images counts as a difference, and one with a bad image is let off. With α = β = 0 it is the
cosine.

Source: Terhörst et al., QMagFace, WACV 2023, equations 4 to 6. α and β are fitted by `facelab.quality.qmagface`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


class QualityAware:
    """The similarity with given numbers.

    Args:
        options: ``alpha`` and ``beta`` of a configuration.
        option: its key, for messages.

    Raises:
        ValueError: a number that is not finite, or beyond ±100.
    """

    def __init__(self, options: Mapping[str, float], option: str):
        self.alpha, self.beta = (float(options[key]) for key in ("alpha", "beta"))
        if not (abs(self.alpha) <= 100 and abs(self.beta) <= 100):
            raise ValueError(
                f"{option} has alpha {self.alpha} and beta {self.beta}: give two numbers as python -m facelab.quality "
                "fits them (0.08 and 0.13), or 0 and 0 for the cosine alone"
            )

    @property
    def active(self) -> bool:
        """Whether it is another one than the cosine."""
        return self.alpha != 0 or self.beta != 0

    def added(self, similarity: np.ndarray, quality: np.ndarray) -> np.ndarray:
        """What is added to the cosines.

        Args:
            similarity: (N,) cosines.
            quality: (N,) lengths of the shorter embeddings.

        Returns:
            (N,) float64, none above 0.
        """
        return np.minimum(0, self.beta * similarity - self.alpha) * quality

    def __str__(self) -> str:
        return f"cosine + min(0, {self.beta:g}·cosine − {self.alpha:g})·min length"
