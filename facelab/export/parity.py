"""Is what was exported still the same model? Its embeddings, its error rates, and the layer where it parts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from facelab.benchmark.operating_points import fold_accuracy, tar_at_far
from facelab.benchmark.pair_sampling import sample_pairs
from facelab.export.base import Format, Seen

PAIRS, FOLDS, SEED = 2000, 5, 0  # of the verification accuracy: pairs that are drawn, folds, seed of the draw


@dataclass(frozen=True)
class Tolerance:
    """How far an export may be from its original; explained in conf/export.yaml.

    Attributes:
        max: the largest cosine distance of an image's two embeddings.
        mean: of all images.
        accuracy: how much lower the verification accuracy may be.
        fnmr: how much higher the FNMR may be.

    Raises:
        ValueError: a value is missing or negative.
    """

    max: float
    mean: float
    accuracy: float
    fnmr: float

    def __post_init__(self) -> None:
        for one in fields(self):
            if not getattr(self, one.name) >= 0:
                raise ValueError(f"parity.tolerance…{one.name} is {getattr(self, one.name)}: give a number from 0 on")


@dataclass(frozen=True)
class Parity:
    """What was found; distances are 1 − cosine, rates shares."""

    images: int
    fmr: float
    max: float
    mean: float
    worst: int  # the number of the image with the largest distance
    accuracy_before: float
    accuracy_after: float
    fnmr_before: float
    fnmr_after: float

    def complaints(self, tolerance: Tolerance) -> list[str]:
        """Where it is beyond tolerance, in words; empty where the export holds."""
        checks = (
            ("largest cosine distance", self.max, tolerance.max),
            ("mean cosine distance", self.mean, tolerance.mean),
            ("loss of accuracy", self.accuracy_before - self.accuracy_after, tolerance.accuracy),
            (f"rise of FNMR at FMR {self.fmr:g}", self.fnmr_after - self.fnmr_before, tolerance.fnmr),
        )
        return [f"{name} {value:.2g}, {limit:.2g} allowed" for name, value, limit in checks if not value <= limit]

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)


def compare(before: np.ndarray, after: np.ndarray, labels: np.ndarray, fmr: float) -> Parity:
    """Compares embeddings of the same images.

    Args:
        before: (M,D) unit rows of the original.
        after: the same of the export.
        labels: (M,) identity.
        fmr: false match rate at which FNMRs are compared; over all comparisons of different people.

    Raises:
        ValueError: embeddings of another length.
    """
    if before.shape != after.shape:
        raise ValueError(f"the export gives embeddings of shape {after.shape[1:]}, the original {before.shape[1:]}")
    before, after = before.astype(np.float64), after.astype(np.float64)
    # 1 − cosine of unit vectors; from their difference, for 1 − 0.99999999 has lost its digits.
    distances = np.square(before - after).sum(axis=1) / 2
    rates = [_rates(rows, labels, fmr) for rows in (before, after)]
    return Parity(
        images=len(labels),
        fmr=fmr,
        max=float(distances.max()),
        mean=float(distances.mean()),
        worst=int(distances.argmax()),
        accuracy_before=rates[0][0],
        accuracy_after=rates[1][0],
        fnmr_before=rates[0][1],
        fnmr_after=rates[1][1],
    )


def _rates(rows: np.ndarray, labels: np.ndarray, fmr: float) -> tuple[float, float]:
    """Verification accuracy over folds of drawn pairs, and FNMR at an FMR over all comparisons."""
    pairs, same, fold = sample_pairs(labels, PAIRS, min(FOLDS, len(np.unique(labels))), SEED)
    distance = np.square(rows[pairs[:, 0]] - rows[pairs[:, 1]]).sum(axis=1)
    accuracy, _ = fold_accuracy(distance, same, fold)
    one, other = np.triu_indices(len(rows), 1)
    scores, genuine = (rows @ rows.T)[one, other], labels[one] == labels[other]
    point = tar_at_far(scores[genuine], scores[~genuine], fmr, "at_most")
    return float(accuracy.mean()), 1 - point.tar


class Layer(NamedTuple):
    """A layer and how far its result is from the original's: ‖a − b‖/‖b‖."""

    name: str
    difference: float


def layers(format: Format, file: Path, seen: Seen, folded: Mapping[str, str]) -> list[Layer]:
    """How far the layers of an exported file are from the original's, in the order in which they run.

    Args:
        format: of the file.
        file: as it was written.
        seen: what the original's layers took and gave.
        folded: layer → the norm that was folded into it.
    """
    found = []
    order = list(seen.outputs)
    for name, value in format.layers(file, seen):
        expected = seen.outputs[name].numpy() if name in seen.outputs else None
        if expected is None or expected.shape != value.shape:
            continue
        length = float(np.linalg.norm(expected)) or 1.0
        difference = float(np.linalg.norm(value.astype(np.float64) - expected)) / length
        words = f"{folded[name]} (folded into {name})" if name in folded else name
        found.append((order.index(name), Layer(words, difference if np.isfinite(difference) else np.inf)))
    return [layer for _, layer in sorted(found, key=lambda one: one[0])]


def parts_at(found: list[Layer], tolerance: Tolerance) -> str:
    """A sentence about where a file and its original part.

    Args:
        found: in the order in which they run.
        tolerance: of the embeddings: a layer may be as far away as an embedding, in its length.
    """
    if not found:
        return "this format's layers cannot be looked at: format=onnx shows where they part"
    limit = float(np.sqrt(2 * tolerance.max))
    first = next((layer for layer in found if layer.difference > limit), None)
    if first is None:
        worst = max(found, key=lambda layer: layer.difference)
        return f"no layer is far away by itself, the farthest is {worst.name} ({worst.difference:.2g} of its length)"
    return f"they first part in the layer {first.name} ({first.difference:.2g} of its length)"


def as_seen(inputs: Mapping[str, Any], outputs: Mapping[str, Any], images: Any, folded: Mapping[str, str]) -> Seen:
    """What the original's layers gave, where a layer with a norm folded into it is to give what the norm gave."""
    inside = set(folded.values())
    expected = {
        name: outputs[folded[name]] if name in folded else value
        for name, value in outputs.items()
        if name not in inside
    }
    given = {name: inputs[name] for name in expected}
    return Seen(images if isinstance(images, np.ndarray) else torch.as_tensor(images).numpy(), given, expected)
