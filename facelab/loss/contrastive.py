"""Contrastive loss: images of one person together, images of two persons a margin apart; no classifier."""

import torch
import torch.nn.functional as F
from torch import Tensor

from facelab.loss.base import Loss, LossOutput, require_between
from facelab.loss.pairs import distances, global_batch, mean_of_active, nearest_is_same, same_person


class Contrastive(Loss):
    """Mean of d over positive pairs + mean of max(0, m − d) over negative pairs, or of ½·( )²; d on the unit sphere.

    All pairs of the global batch are used, so that a batch needs several images of a person; each of the two means is
    over the pairs with a term above 0, since there are many more negative pairs than positive ones, most of them far
    apart. A batch without any such pair has the loss 0 and a gradient of zeros.

    Source: Hadsell, Chopra and LeCun, CVPR 2006, equation 4: halved squares, there summed over given pairs of vectors
    that are not normalised. pytorch-metric-learning's ContrastiveLoss is ``squared=False, margin=1``.

    Args:
        embedding_size: D.
        num_classes: C; the loss has nothing of that size.
        margin: m, a distance on the unit sphere, above 0 and up to 2 (1 is an angle of 60°, 1.414 of 90°).
        squared: ``True`` for the paper's ½·d² and ½·max(0, m − d)², ``False`` for d and max(0, m − d).

    Raises:
        ValueError: margin is out of range; in the call: embeddings or labels have the wrong shape or type.
    """

    compares_images = True

    def __init__(self, embedding_size: int, num_classes: int, margin: float, squared: bool):
        super().__init__()
        require_between("margin", margin, 1e-6, 2.0)
        self.margin, self.squared = margin, squared

    def forward(self, embeddings: Tensor, labels: Tensor, step: int) -> LossOutput:
        """(b,D) embeddings, (b,) int64 labels of this rank → the global batch's loss and nearest-neighbour accuracy."""
        with torch.autocast(embeddings.device.type, enabled=False):
            units, norms, labels = global_batch(embeddings, labels, self.even)
            distance = distances(units)
            positive, negative = same_person(labels)
            near, far = distance[positive], F.relu(self.margin - distance[negative])
            if self.squared:
                near, far = near**2 / 2, far**2 / 2
            # 0·Σ ties an empty set to the embeddings, and passes on what is no number.
            loss = mean_of_active(near) + mean_of_active(far) + 0 * units.sum()
        return LossOutput(loss, {"accuracy": nearest_is_same(distance, positive)}, {"norm": norms})
