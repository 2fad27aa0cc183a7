"""AdaFace: the margin depends on the embedding's length, a stand-in for the quality of the image."""

import math

import torch
from torch import Tensor

from facelab.loss.base import require_between
from facelab.loss.classifier import Context, MarginLoss

# Of the authors' code.
_EPSILON = 1e-3  # keeps cosines from ±1 and angles from 0 and π
NORM_RANGE = (1e-3, 100.0)
_FIRST_MEAN, _FIRST_STD = 20.0, 100.0  # so large a spread that training starts as CosFace(m)


class AdaFace(MarginLoss):
    """Quality-adaptive margin: the target logit is s·(cos(θ_y − m·ẑ) − (m + m·ẑ)), the others are s·cosθ_j.

    ẑ = clip(h·(‖x‖ − μ)/(σ + ε), −1, 1) with μ, σ moving averages of the mean and standard deviation of the lengths:
    ẑ = −1 is ArcFace(m), 0 is CosFace(m), 1 a negative angular margin, which spends most of its force on hard rows.
    ẑ has no gradient. Cosines are clipped to ±(1 − ε), the angle θ_y − m·ẑ to [ε, π − ε], both with ε = 0.001 and
    without a gradient beyond.

    Source: AdaFace, arXiv:2204.00964, equations 12 to 15; clipping, first averages (20 and 100) and the order (the
    averages move before they are used) from the authors' code, whose numbers it gives.

    The averages see the global batch and move at every call in training: where a batch is cut into A parts
    (``trainer.accumulate``), they move A times a step, each time towards the statistics of a part; t_alpha/A then keeps
    their pace. The standard deviation of a single row is unknown, and leaves σ as it was.

    Args:
        embedding_size: D.
        num_classes: C, over all ranks.
        scale: s.
        margin: m, in radians and in units of the cosine, 0…1 (0.4 rad = 22.9°).
        concentration: h, above 0; ẑ reaches ±1 at 1/h standard deviations. The paper's 0.333.
        t_alpha: share of the new batch in the moving averages, above 0 and at most 1.

    Attributes:
        mean_norm, std_norm: μ and σ, saved in checkpoints.

    Raises:
        ValueError: an option is out of range.
    """

    mean_norm: Tensor
    std_norm: Tensor

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        scale: float,
        margin: float,
        concentration: float,
        t_alpha: float,
    ):
        super().__init__(embedding_size, num_classes, scale)
        require_between("margin", margin, 0.0, 1.0)
        require_between("concentration", concentration, 1e-6, 100.0)
        require_between("t_alpha", t_alpha, 1e-6, 1.0)
        self.margin, self.concentration, self.t_alpha = margin, concentration, t_alpha
        self.register_buffer("mean_norm", torch.tensor(_FIRST_MEAN))
        self.register_buffer("std_norm", torch.tensor(_FIRST_STD))

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        """Return cos(θ_y − m·ẑ) − (m + m·ẑ)."""
        quality = self._quality(context)
        theta = torch.acos(_clipped(cosine)) - self.margin * quality
        return torch.cos(theta.clamp(_EPSILON, math.pi - _EPSILON)) - (self.margin + self.margin * quality)

    def non_target(self, cosines: Tensor, target: Tensor, context: Context) -> Tensor:
        """Return cosθ_j, clipped."""
        return _clipped(cosines)

    @torch.no_grad()
    def _quality(self, context: Context) -> Tensor:
        """→ (B,) ẑ in [−1, 1]."""
        norms = context.norms.clamp(*NORM_RANGE)
        if context.training:
            self.mean_norm = self.mean_norm.lerp(norms.mean().to(self.mean_norm), self.t_alpha)
            if len(norms) > 1:
                self.std_norm = self.std_norm.lerp(norms.std().to(self.std_norm), self.t_alpha)
        return standardised(norms, self.mean_norm, self.std_norm, self.concentration)


def standardised(norms: Tensor, mean: Tensor, std: Tensor, concentration: float) -> Tensor:
    """(B,) lengths, their mean and standard deviation, one or (B,) → (B,) clip(h·(‖x‖ − μ)/(σ + ε), −1, 1)."""
    return ((norms - mean) / (std + _EPSILON) * concentration).clamp(-1, 1)


def _clipped(cosine: Tensor) -> Tensor:
    return cosine.clamp(-1 + _EPSILON, 1 - _EPSILON)
