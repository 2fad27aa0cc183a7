"""The combined margin: a factor on the angle, an addition to the angle, an addition to the cosine, all at once."""

import math

import torch
from torch import Tensor

from facelab.loss.angle import angle, chosen_gradient
from facelab.loss.base import require_between
from facelab.loss.classifier import Context, MarginLoss


class Combined(MarginLoss):
    """Combined margin: the target logit is s·(cos(m1·θ_y + m2) − m3), the others are s·cosθ_j.

    (1, m, 0) is ArcFace, (1, 0, m) is CosFace. Where m1·θ + m2 > π the target is cosθ − max(q·sin q, 1 − cos q) − m3, q
    being what is added to the angle where the sum reaches π, π − (π − m2)/m1: it keeps falling for all m1, and with
    m1 = 1 it is ArcFace's cosθ − m2·sin m2.

    Source: ArcFace, arXiv:1801.07698, equation 4. arcface_torch's CombinedMarginLoss ignores m1 (save for
    choosing between its branches), has the gradient ``straight_through`` and no guard past π.

    Args:
        embedding_size: D.
        num_classes: C, over all ranks.
        scale: s.
        m1: factor on the angle, 0.5…5; 1 for none.
        m2: addition to the angle, in radians, 0…π/2 (0.3 rad = 17.2°).
        m3: subtracted from the cosine, 0…1.
        gradient: ``True`` for the derivative of the formula, ``"straight_through"`` for ∂target/∂cosθ_y = 1.

    Raises:
        ValueError: an option is out of range or unknown.
    """

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        scale: float,
        m1: float,
        m2: float,
        m3: float,
        gradient: bool | str,
    ):
        super().__init__(embedding_size, num_classes, scale)
        require_between("m1", m1, 0.5, 5.0)
        require_between("m2", m2, 0.0, math.pi / 2)
        require_between("m3", m3, 0.0, 1.0)
        self.m1, self.m2, self.m3, self.gradient = m1, m2, m3, chosen_gradient(gradient)
        added = math.pi - (math.pi - m2) / m1
        self.drop = max(added * math.sin(added), 1 - math.cos(added))

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        """Return cos(m1·θ_y + m2) − m3."""
        theta = self.m1 * angle(cosine) + self.m2
        mapped = torch.where(theta > math.pi, cosine - self.drop, torch.cos(theta)) - self.m3
        return self.gradient(cosine, mapped)
