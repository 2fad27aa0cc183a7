"""AdaM-softmax: a cosine margin for every class, learned with the classes."""

import torch
from torch import Tensor

from facelab.loss.base import require_between
from facelab.loss.classifier import Context, MarginLoss
from facelab.loss.collective import sum_over_shards

_MARGIN_RANGE = (0.0, 1.0)  # where the margins are kept
_SEED_OFFSET = 0xADA  # another stream of random numbers than the centres', from the same seed


class AdaMSoftmax(MarginLoss):
    """Adaptive margin softmax: the target logit is s·(cosθ_y − m_y), the others are s·cosθ_j; loss − λ·mean(m).

    m_y is learnable, one for each class, started at random and kept in [0, 1]. Cross-entropy lowers the margins of
    classes that are hard to tell apart, the regulariser raises all by the same force λ/C. A class whose images have the
    target probability p pulls with about s·(1 − p)/C: with λ ≥ s all margins end at 1.

    Source: AdaptiveFace (Liu et al., CVPR 2019), equations 3 and 4. FaceX-Zoo, with the same gradients, adds the
    constant λ to the loss, so that it is never negative.

    The margins lie with their classes: each rank owns those of its centres, so that they cost C/W floats a rank, and
    their gradients no communication. They are a parameter group of their own, without weight decay; where classes are
    sampled all of them move.

    Args:
        embedding_size: D.
        num_classes: C, over all ranks.
        scale: s, 30…64; FaceX-Zoo's 30.
        margin_low: lower end of the first margins' uniform distribution, in units of the cosine, 0…1.
        margin_high: upper end.
        lambda_margin: λ, 0 or more.

    Attributes:
        margins: (C_rank,) the margins of this rank's classes.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        scale: float,
        margin_low: float,
        margin_high: float,
        lambda_margin: float,
    ):
        super().__init__(embedding_size, num_classes, scale)
        require_between("margin_low", margin_low, *_MARGIN_RANGE)
        require_between("margin_high", margin_high, margin_low, _MARGIN_RANGE[1])
        require_between("lambda_margin", lambda_margin, 0.0, 1e4)
        self.lambda_margin = lambda_margin
        # All classes are drawn and this rank's are kept, so that the margins are a function of the seed alone.
        generator = torch.Generator().manual_seed((torch.initial_seed() + _SEED_OFFSET) % 2**63)
        drawn = torch.empty(num_classes, device="cpu", dtype=torch.float32)
        drawn.uniform_(margin_low, margin_high, generator=generator)
        mine = drawn[self.classifier.start : self.classifier.stop].clone()
        self.margins = torch.nn.Parameter(mine.to(self.classifier.weight.device))
        self.register_state_dict_pre_hook(_keep_in_range)

    @property
    def without_decay(self) -> list[torch.nn.Parameter]:
        """The parameters that weight decay spares."""
        return [self.margins]

    def sharded_parameters(self) -> list[str]:
        """The class centres and their margins."""
        return [*super().sharded_parameters(), "margins"]

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        """Return cosθ_y − m_y."""
        _keep_in_range(self)
        start, stop = self.classifier.start, self.classifier.stop
        here = (context.labels >= start) & (context.labels < stop)
        own = self.margins[torch.where(here, context.labels - start, 0)]
        return cosine - sum_over_shards(torch.where(here, own, 0)).to(cosine.dtype)

    def regulariser(self, context: Context) -> Tensor:
        """Return −λ·mean(m), over the classes of all ranks."""
        return -self.lambda_margin * sum_over_shards(self.margins.sum()) / self.classifier.num_classes


@torch.no_grad()
def _keep_in_range(loss: AdaMSoftmax, *_: object) -> None:
    """Before margins are used or saved: the optimizer may have left the range."""
    loss.margins.clamp_(*_MARGIN_RANGE)
