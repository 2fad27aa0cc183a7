"""Plain softmax: the classifier without normalisation, margin or scale."""

from facelab.loss.classifier import MarginLoss


class Softmax(MarginLoss):
    """Softmax cross-entropy of x·W, without a bias: L = −log( exp(x·w_y) / Σ_j exp(x·w_j) ).

    Source: DeepFace (Taigman et al., CVPR 2014) and all classification before it; the baseline of every margin paper.

    Args:
        embedding_size: D.
        num_classes: C, over all ranks.
    """

    normalised = False

    def __init__(self, embedding_size: int, num_classes: int):
        super().__init__(embedding_size, num_classes, scale=1.0)
