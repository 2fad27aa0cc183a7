"""Triplet loss: an image nearer to its own person than to any other by a margin; no classifier."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from facelab.loss.base import Loss, LossOutput, require_between
from facelab.loss.pairs import distances, global_batch, mean_of_active, nearest_is_same, same_person


class Triplet(Loss):
    """Mean of max(0, δ(a,p) − δ(a,n) + α), δ = d² on the unit sphere (0…4), over the triplets with a term above 0.

    Anchor a, positive p and negative n are mined in the global batch, which needs several images of a person. A batch
    without such a triplet has the loss 0 and a gradient of zeros.

    Source: FaceNet, arXiv:1503.03832, equations 2 to 4; batch-hard and batch-all: Hermans et al., arXiv:1703.07737,
    equations 5 and 6 (there batch-hard is averaged over all anchors, and d is not squared). The semi-hard triplets are
    all that there are, as in pytorch-metric-learning (there d is not squared either), not one for each (a,p).

    Args:
        embedding_size: D.
        num_classes: C; the loss has nothing of that size.
        margin: α, in units of δ, above 0 and up to 4; the paper's 0.2.
        mining: which triplets:
            ``"batch_all"``: all;
            ``"batch_hard"``: for each anchor the farthest positive and the nearest negative;
            ``"semi_hard"``: those with δ(a,p) < δ(a,n) ≤ δ(a,p) + α.
        squared: ``True`` for δ = d², the paper's, ``False`` for δ = d.

    Raises:
        ValueError: an option is out of range or unknown; in the call: embeddings or labels have the wrong shape or
            type.
    """

    compares_images = True

    def __init__(self, embedding_size: int, num_classes: int, margin: float, mining: str, squared: bool):
        super().__init__()
        require_between("margin", margin, 1e-6, 4.0)
        if mining not in _MINING:
            raise ValueError(f"mining={mining} is unknown: choose one of {', '.join(_MINING)}")
        self.margin, self.mining, self.squared = margin, mining, squared

    def forward(self, embeddings: Tensor, labels: Tensor, step: int) -> LossOutput:
        """(b,D) embeddings, (b,) int64 labels of this rank → the global batch's loss and nearest-neighbour accuracy."""
        with torch.autocast(embeddings.device.type, enabled=False):
            units, norms, labels = global_batch(embeddings, labels, self.even)
            distance = distances(units)
            positive, negative = same_person(labels)
            delta = distance**2 if self.squared else distance
            terms = _MINING[self.mining](delta, positive, negative, self.margin)
            # 0·Σ ties an empty set to the embeddings, and passes on what is no number.
            loss = mean_of_active(terms) + 0 * units.sum()
        return LossOutput(loss, {"accuracy": nearest_is_same(distance, positive)}, {"norm": norms})


# (B,B) δ, positive and negative pairs, α → the terms of the mined triplets, in any shape. The triplets are laid out as
# (pairs of anchor and positive, B): for P persons of K images K/B of all B³ combinations.


def _batch_all(delta: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    anchor, other = positive.nonzero(as_tuple=True)
    terms = F.relu(delta[anchor, other, None] - delta[anchor] + margin)
    return torch.where(negative[anchor], terms, 0)


def _semi_hard(delta: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    anchor, other = positive.nonzero(as_tuple=True)
    harder = delta[anchor, other, None] < delta[anchor]
    return torch.where(harder, _batch_all(delta, positive, negative, margin), 0)


def _batch_hard(delta: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    farthest = delta.masked_fill(~positive, -torch.inf).amax(dim=1)
    nearest = delta.masked_fill(~negative, torch.inf).amin(dim=1)
    return F.relu(farthest - nearest + margin)  # an anchor that lacks a positive or a negative: −∞, hence 0


_MINING: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "batch_all": _batch_all,
    "batch_hard": _batch_hard,
    "semi_hard": _semi_hard,
}
