"""CurricularFace: hard negatives count for little while training is young, and for more as it grows up."""

import torch
from torch import Tensor

from facelab.loss.arcface import ArcFace
from facelab.loss.base import require_between
from facelab.loss.classifier import Context


class CurricularFace(ArcFace):
    """ArcFace's target s·cos(θ_y + m); a negative with cosθ_j above it becomes s·cosθ_j·(t + cosθ_j).

    t is a moving average of the target cosine, so it starts at 0 (hard negatives are damped) and rises as the network
    learns (they are magnified). It has no gradient.

    Source: CurricularFace, arXiv:2004.00288, equations 6, 9 and 10; t moves before it is used, as in the authors' code.
    There a negative is held against cos(θ_y + m) even past θ_y + m = π, where that rises again; here against the target
    itself.

    t sees the global batch and moves at every call in training: where a batch is cut into A parts
    (``trainer.accumulate``) it moves A times a step, each time towards the mean of a part; t_alpha/A then keeps its
    pace.

    Args:
        embedding_size: D.
        num_classes: C, over all ranks.
        scale: s.
        margin: m, in radians, 0…π/2 (0.5 rad = 28.6°).
        t_alpha: share of the new batch in t, above 0 and at most 1.

    Attributes:
        t: saved in checkpoints.

    Raises:
        ValueError: an option is out of range.
    """

    t: Tensor

    def __init__(self, embedding_size: int, num_classes: int, scale: float, margin: float, t_alpha: float):
        super().__init__(embedding_size, num_classes, scale, margin, gradient=True, past_pi="monotone")
        require_between("t_alpha", t_alpha, 1e-6, 1.0)
        self.t_alpha = t_alpha
        self.register_buffer("t", torch.tensor(0.0))

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        """Return cos(θ_y + m)."""
        if context.training:
            self.t = self.t.lerp(cosine.detach().mean().to(self.t), self.t_alpha)
        return super().target(cosine, context)

    def non_target(self, cosines: Tensor, target: Tensor, context: Context) -> Tensor:
        """Return cosθ_j, or cosθ_j·(t + cosθ_j) where it lies above the target."""
        return torch.where(cosines > target[:, None], cosines * (self.t + cosines), cosines)
