"""What the losses without a classifier share: the distances of a global batch, and averages that may be empty."""

import torch
from torch import Tensor

from facelab.loss.base import require_finite
from facelab.loss.collective import gather_rows, row_counts
from facelab.loss.columns import unit, widen


def global_batch(embeddings: Tensor, labels: Tensor, even: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(b,D) embeddings and (b,) labels of this rank → (B,D) on the unit sphere, (B,) lengths and labels of all ranks.

    Half precision becomes float32. An embedding of length 0 stays 0, without a gradient. `even`: see Loss.

    Raises:
        ValueError: embeddings or labels have the wrong shape or type, or (NotFinite, on a CPU) an embedding is NaN or
            infinite.
    """
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings of shape {tuple(embeddings.shape)}: one row for each image is needed, (B, D)")
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(f"labels of shape {tuple(labels.shape)}: {len(embeddings)} embeddings need as many labels")
    if labels.dtype != torch.int64:
        raise ValueError(f"labels of type {labels.dtype}: class numbers must be torch.int64, convert with .long()")
    counts = row_counts(labels, even)
    embeddings, labels = gather_rows(widen(embeddings), counts), gather_rows(labels, counts)
    norms = torch.linalg.vector_norm(embeddings, dim=1)
    require_finite(embeddings, norms)
    return unit(embeddings, norms), norms.detach(), labels


def distances(embeddings: Tensor) -> Tensor:
    """(B,D) → (B,B) Euclidean distances, exact also between near neighbours; where one is 0 its gradient is 0."""
    return torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")


def same_person(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) labels → (B,B) bool: two images of one person, and images of two persons."""
    same = labels[:, None] == labels
    return same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~same


def mean_of_active(terms: Tensor) -> Tensor:
    """The mean of the terms above 0, and exactly 0 where there are none; NaN is passed on."""
    return terms.sum() / (terms > 0).sum().clamp(min=1)


@torch.no_grad()
def nearest_is_same(distance: Tensor, positive: Tensor) -> Tensor:
    """The share of rows, among those with another image of their person, whose nearest other row is one."""
    itself = torch.eye(len(distance), dtype=torch.bool, device=distance.device)
    nearest = distance.detach().masked_fill(itself, torch.inf).argmin(dim=1, keepdim=True)
    right, asked = positive.gather(1, nearest)[:, 0], positive.any(dim=1)
    return (right & asked).sum().to(distance.dtype) / asked.sum().clamp(min=1)
