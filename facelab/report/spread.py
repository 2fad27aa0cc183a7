"""How something is spread, and how that changes in training: histograms, one for each stretch of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Histograms over the stretches of a run.

    Attributes:
        images: (n+1,) images seen at the bounds of the n stretches.
        edges: (b+1,) bounds of the bins, ascending; the last may be inf.
        counts: (n,b) images of a stretch in a bin.
    """

    images: np.ndarray
    edges: np.ndarray
    counts: np.ndarray

    def quantiles(self, shares: Sequence[float]) -> np.ndarray:
        """(n,len(shares)), see `quantiles`."""
        return quantiles(self.counts, self.edges, shares)

    def density(self) -> np.ndarray:
        """(n,b) share of a stretch's images in a bin, smoothed over neighbouring bins as their number asks for.

        A Gaussian kernel of the width that suits a normal distribution, 1.06·σ·N^(−1/5), σ and N being those of an
        average stretch (Silverman, Density Estimation, 1986, equation 3.28).
        """
        number = np.maximum(self.counts.sum(axis=1, keepdims=True), 1)
        shares = self.counts / number
        bins = np.arange(self.counts.shape[1])
        variance = (shares * bins**2).sum(axis=1) - (shares * bins).sum(axis=1) ** 2
        width = 1.06 * np.sqrt(np.median(np.maximum(variance, 0))) * np.median(number) ** -0.2
        if width < 0.2:
            return shares
        kernel = np.exp(-0.5 * (np.subtract.outer(bins, bins) / width) ** 2)
        return shares @ (kernel / kernel.sum(axis=1, keepdims=True))


def quantiles(counts: np.ndarray, edges: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Values below which a share of the counted lies, as exact as the bins; in the last bin to inf its lower bound.

    Args:
        counts: (n,b) numbers in the bins.
        edges: (b+1,) bounds of the bins.
        shares: k numbers within 0…1; 0.5 is the median.

    Returns:
        (n,k); NaN where nothing was counted.
    """
    known = edges if np.isfinite(edges[-1]) else np.append(edges[:-1], edges[-2])
    found = np.full((len(counts), len(shares)), np.nan)
    for row, of_row in zip(found, counts, strict=True):
        if of_row.any():
            some = np.flatnonzero(of_row)  # within an empty bin nobody lies, so no quantile does
            below = np.cumsum(of_row)[some]
            wanted = np.asarray(shares) * below[-1]
            place = np.minimum(np.searchsorted(below, wanted), len(some) - 1)
            bins = some[place]
            part = (wanted - (below - of_row[some])[place]) / of_row[bins]
            row[:] = known[bins] + part * (known[bins + 1] - known[bins])
    return found
