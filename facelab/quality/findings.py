"""The numbers of a study, out of what was measured: no model and no image is needed any more."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facelab.atomic import atomic
from facelab.quality import error_discard
from facelab.quality.correlation import Correlation, pearson, spearman
from facelab.quality.error_discard import Curve
from facelab.quality.options import FIXED, DiscardOptions
from facelab.quality.standardised import Standardiser

COLUMNS = ("image", "identity", "class_size", "norm", "standardised", "brisque")


@dataclass(frozen=True)
class Samples:
    """The training images.

    Attributes:
        labels: (N,) int64 classes.
        sizes: (C,) images of each class in training.
        norms: (N,) lengths of the embeddings.
        standardised: (N,) the same within their classes.
        brisque: (N,) lower is better; NaN where there is none.
    """

    labels: np.ndarray
    sizes: np.ndarray
    norms: np.ndarray
    standardised: np.ndarray
    brisque: np.ndarray

    @property
    def judged(self) -> np.ndarray:
        """(N,) bool, the images that have a BRISQUE."""
        return np.isfinite(self.brisque)

    def class_means(self) -> tuple[np.ndarray, np.ndarray]:
        """Sizes and mean norms of the K classes with images here, (K,) each, from the largest on."""
        counts = np.bincount(self.labels, minlength=len(self.sizes))
        there = np.flatnonzero(counts)
        means = np.bincount(self.labels, weights=self.norms, minlength=len(self.sizes))[there] / counts[there]
        order = np.argsort(-self.sizes[there], kind="stable")
        return self.sizes[there][order], means[order]


def correlations(samples: Samples, replicates: int, seed: int) -> dict[str, Correlation]:
    """What goes together, with intervals over classes; a pair of numbers of which one does not vary is left out.

    ``norm_brisque/pearson`` and the like: of norm and of standardised norm with BRISQUE, over images; of mean norm with
    the number of a class's images, over classes.
    """
    drawn = {"replicates": replicates, "seed": seed}
    sizes, means = samples.class_means()
    asked = {"norm_size": (means, sizes, np.arange(len(sizes)))}
    kept = samples.judged
    if kept.any():
        brisque, labels = samples.brisque[kept], samples.labels[kept]
        for name, values in (("norm", samples.norms), ("standardised", samples.standardised)):
            asked[f"{name}_brisque"] = (values[kept], brisque, labels)
    found = {}
    for name, given in asked.items():
        for kind, measure in (("pearson", pearson), ("spearman", spearman)):
            one = measure(*given, **drawn)  # type: ignore[arg-type]
            if np.isfinite(one).all():
                found[f"{name}/{kind}"] = one
    return found


def curves(
    scores: np.ndarray,
    same: np.ndarray,
    pairs: np.ndarray,
    qualities: Mapping[str, np.ndarray],
    options: DiscardOptions,
) -> dict[str, Curve]:
    """Error-versus-discard curves of each quality, and of random discarding; of a fixed threshold, the oracle's too.

    Args:
        scores: (N,) of the pairs, higher is more alike.
        same: (N,) bool.
        pairs: (N,2) image numbers.
        qualities: (M,) of the images each, higher is better.
        options: which definition.
    """
    if options.threshold == FIXED:
        threshold = error_discard.threshold_at(scores[same], options.start)
        found = {
            name: error_discard.fixed(scores[same], error_discard.pair_quality(quality, pairs[same]), threshold)
            for name, quality in qualities.items()
        }
        found["oracle"] = error_discard.oracle(scores[same], threshold)
    else:
        found = {
            name: error_discard.rederived(
                scores, same, error_discard.pair_quality(quality, pairs), options.far, options.limit, options.steps
            )
            for name, quality in qualities.items()
        }
    return {**found, "random": error_discard.flat(next(iter(found.values())))}


def relative_areas(found: Mapping[str, Curve], limit: float) -> dict[str, float]:
    """Areas up to `limit` as shares of that of random discarding: 1 is no help, lower is better."""
    whole = found["random"].area(limit)
    return {name: curve.area(limit) / whole if whole > 0 else float("nan") for name, curve in found.items()}


def write_samples(path: Path, samples: Samples, names: Callable[[int], str], people: Sequence[str]) -> Path:
    """A row for each image: `COLUMNS`; an image without a BRISQUE has none."""
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for i, label in enumerate(samples.labels.tolist()):
            brisque = samples.brisque[i]
            numbers = (f"{samples.norms[i]:.6g}", f"{samples.standardised[i]:.6g}")
            last = f"{brisque:.6g}" if np.isfinite(brisque) else ""
            writer.writerow([names(i), people[label], samples.sizes[label], *numbers, last])
    return path


def qualities_of(
    norms: np.ndarray, embeddings: np.ndarray, brisque: np.ndarray, standardiser: Standardiser, nearest: int
) -> dict[str, np.ndarray]:
    """What each quality thinks of unseen images, higher is better.

    Args:
        norms: (M,) lengths.
        embeddings: (M,D).
        brisque: (M,) as it is, lower is better; NaN is the worst. All NaN: there is none.
        standardiser: of the training images.
        nearest: classes whose statistics an image takes.
    """
    found = {"norm": norms, "standardised": standardiser.score(norms, embeddings, nearest)}
    if np.isfinite(brisque).any():
        found["brisque"] = np.where(np.isfinite(brisque), -brisque, -np.inf)
    return found
