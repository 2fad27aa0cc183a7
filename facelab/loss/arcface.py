"""ArcFace: a margin on the angle, and what becomes of it where θ+m exceeds π."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from facelab.loss.angle import chosen_gradient, sine, straight_through
from facelab.loss.base import require_between
from facelab.loss.classifier import Context, MarginLoss

Number = float | Tensor


class ArcFace(MarginLoss):
    """Additive angular margin: the target logit is s·cos(θ_y + m), the others are s·cosθ_j.

    Source: ArcFace, arXiv:1801.07698, equation 3.

    Args:
        embedding_size: D.
        num_classes: C, over all ranks.
        scale: s.
        margin: m, in radians, 0…π/2 (0.5 rad = 28.6°).
        gradient: ``True`` for the derivative of the formula; ``"straight_through"`` for ∂target/∂cosθ_y = 1, as in
            arcface_torch. The true target gradient is sin(θ+m)/sinθ times the other: results of the two do not compare.
        past_pi: the target where θ+m > π, after four public codes:
            ``"monotone"``: cosθ − m·sin m; it keeps falling, after a jump (original ArcFace, CurricularFace);
            ``"unguarded"``: cos(θ+m), which rises again (arcface_torch);
            ``"clip"``: −1, without a gradient (AdaFace's code, which stops 0.001 rad earlier);
            ``"clamp_angle"``: −1, with ∂target/∂cosθ_y = 1 (opensphere).

    Raises:
        ValueError: an option is out of range or unknown.
    """

    takes_margins = True

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        scale: float,
        margin: float,
        gradient: bool | str,
        past_pi: str,
    ):
        super().__init__(embedding_size, num_classes, scale)
        require_between("margin", margin, 0.0, math.pi / 2)
        self.margin = margin
        self.gradient = chosen_gradient(gradient)
        if past_pi not in _PAST_PI:
            raise ValueError(f"past_pi={past_pi} is unknown: choose one of {', '.join(_PAST_PI)}")
        self.past_pi = past_pi

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        """Return cos(θ_y + m)."""
        cos, sin, drop = self._of_margin(context.margins)
        within = cosine * cos - sine(cosine) * sin
        mapped = torch.where(cosine <= -cos, _PAST_PI[self.past_pi](cosine, within, drop), within)
        return self.gradient(cosine, mapped)

    def _of_margin(self, margins: Tensor | None) -> tuple[Number, Number, Number]:
        """What the formulas take of m: cos m, sin m and m·sin m; of the loss's own margin, or of (B,) margins."""
        if margins is None:
            return math.cos(self.margin), math.sin(self.margin), self.margin * math.sin(self.margin)
        return margins.cos(), margins.sin(), margins * margins.sin()


# (cosine, cos(θ+m), m·sin m) → the target past π
_PAST_PI: dict[str, Callable[[Tensor, Tensor, Number], Tensor]] = {
    "monotone": lambda cosine, within, drop: cosine - drop,
    "unguarded": lambda cosine, within, drop: within,
    "clip": lambda cosine, within, drop: torch.full_like(cosine, -1),
    "clamp_angle": lambda cosine, within, drop: straight_through(cosine, torch.full_like(cosine, -1)),
}
