"""MagFace: the longer the embedding, the larger its margin; and a reward for length that easy images can afford."""

import math

import torch
from torch import Tensor

from facelab.loss.angle import sine
from facelab.loss.base import require_between
from facelab.loss.classifier import Context, MarginLoss


class MagFace(MarginLoss):
    """Length-aware margin: the target logit is s·cos(θ_y + m(a)), the others are s·cosθ_j; loss + λ_g·mean(g(a)).

    a = clamp(‖x‖, l_a, u_a) with its gradient, m(a) rises linearly from l_m at l_a to u_m at u_a, and
    g(a) = a/u_a² + 1/a falls with a: easy rows grow long, hard ones stay short, and the length measures quality.
    Where θ_y + m(a) > π the target is cosθ_y − m(a)·sin m(a), as in ArcFace.

    Source: MagFace, arXiv:2103.06627, equations 3 and 4, and the authors' code, which uses the easy margin and λ_g = 20
    by default; its own theory needs λ_g ≥ 22.59 for these bounds, and its recipes say 35.

    A backbone that ends in a batch norm gives lengths of about √D (16 for D = 256, 22.6 for 512), within l_a…u_a. A
    row outside has no gradient through its length.

    Args:
        embedding_size: D.
        num_classes: C, over all ranks.
        scale: s.
        norm_low: l_a, length below which nothing changes any more; above 0.
        norm_high: u_a, the same above.
        margin_low: l_m, margin at l_a, radians, 0…π/2 (0.45 rad = 25.8°).
        margin_high: u_m, margin at u_a, radians, at least l_m (0.8 rad = 45.8°).
        lambda_norm: λ_g, weight of the regulariser, 0 or more.
        easy_margin: no margin where cosθ_y ≤ 0 (the authors' default), instead of the monotone form.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        scale: float,
        norm_low: float,
        norm_high: float,
        margin_low: float,
        margin_high: float,
        lambda_norm: float,
        easy_margin: bool,
    ):
        super().__init__(embedding_size, num_classes, scale)
        require_between("norm_low", norm_low, 1e-3, 1e4)
        require_between("norm_high", norm_high, norm_low * (1 + 1e-6), 1e5)
        require_between("margin_low", margin_low, 0.0, math.pi / 2)
        require_between("margin_high", margin_high, margin_low, math.pi / 2)
        require_between("lambda_norm", lambda_norm, 0.0, 1e4)
        self.norm_low, self.norm_high = norm_low, norm_high
        self.margin_low, self.margin_high = margin_low, margin_high
        self.lambda_norm, self.easy_margin = lambda_norm, easy_margin

    def margin(self, norms: Tensor) -> Tensor:
        """(B,) lengths → (B,) margins in radians."""
        slope = (self.margin_high - self.margin_low) / (self.norm_high - self.norm_low)
        return self.margin_low + slope * (self._clamped(norms) - self.norm_low)

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        """Return cos(θ_y + m(a))."""
        margin = self.margin(context.norms)
        within = cosine * torch.cos(margin) - sine(cosine) * torch.sin(margin)
        if self.easy_margin:
            return torch.where(cosine > 0, within, cosine)
        return torch.where(cosine <= -torch.cos(margin), cosine - margin * torch.sin(margin), within)

    def regulariser(self, context: Context) -> Tensor:
        """Return λ_g·mean(g(a)), over the global batch."""
        norms = self._clamped(context.norms)
        return self.lambda_norm * (norms / self.norm_high**2 + 1 / norms).mean()

    def _clamped(self, norms: Tensor) -> Tensor:
        return norms.clamp(self.norm_low, self.norm_high)
