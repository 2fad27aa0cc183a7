"""CosFace: a margin on the cosine."""

from torch import Tensor

from facelab.loss.base import require_between
from facelab.loss.classifier import Context, MarginLoss


class CosFace(MarginLoss):
    """Additive cosine margin: the target logit is s·(cosθ_y − m), the others are s·cosθ_j.

    Source: CosFace, arXiv:1801.09414, equation 4; the same as AM-Softmax, arXiv:1801.05599.

    Args:
        embedding_size: D.
        num_classes: C, over all ranks.
        scale: s.
        margin: m, in units of the cosine, 0…1.

    Raises:
        ValueError: scale or margin is out of range.
    """

    takes_margins = True

    def __init__(self, embedding_size: int, num_classes: int, scale: float, margin: float):
        super().__init__(embedding_size, num_classes, scale)
        require_between("margin", margin, 0.0, 1.0)
        self.margin = margin

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        """Return cosθ_y − m."""
        return cosine - (self.margin if context.margins is None else context.margins)
