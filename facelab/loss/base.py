"""What every loss is and returns, and the contract between a loss and whoever trains it on many ranks.

A loss is a module called as ``loss(embeddings, labels, step)`` on this rank's part of the batch. On W ranks of
``torch.distributed`` it keeps these promises:

- the value and the logs are those of the *global* batch, the same on every rank;
- a replicated parameter (of the backbone, or of the loss) is to be *averaged* over the ranks, as DDP does. The average
  is the gradient that one process would have computed on the global batch; so the gradient that leaves a loss towards
  the embeddings is W times the single-process one of these rows;
- the parameters and buffers named by ``sharded_parameters()`` differ between ranks. The gradient is exact as it
  stands: never average it, and put norms and checkpoints together over all ranks.

How a loss keeps them is told in ``facelab.loss.collective``.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn


class NotFinite(ValueError):
    """An embedding is NaN or infinite. All ranks raise it together, since all of them see the global batch."""


class LossOutput(NamedTuple):
    """What a loss gives back; all but ``loss`` is detached, and all of it is of the global batch.

    Attributes:
        loss: the scalar to minimise.
        logs: scalars worth a curve, such as ``accuracy``.
        rows: what is known of each of the B images, in the order of ranks, as far as the loss knows it: ``norm``, the
            length of its embedding; ``right``, whether no other class is as near as its own; ``cosine``, the cosine to
            its own class centre, before any margin.
    """

    loss: Tensor
    logs: dict[str, Tensor]
    rows: Mapping[str, Tensor] = MappingProxyType({})


class Loss(nn.Module):
    """A loss over (B,D) embeddings and (B,) labels; pairwise losses inherit from it directly.

    Attributes:
        even: whether every rank always brings as many rows, which whoever trains may promise: else the ranks ask each
            other at every call.
        compares_images: whether it compares the images of a batch with each other, and so learns nothing from a batch
            in which nobody has two.
        takes_margins: whether a call may bring a margin for each image, which a teacher gave (facelab.distill.margin).
    """

    even = False
    compares_images = False
    takes_margins = False

    def sharded_parameters(self) -> list[str]:
        """Dotted names, relative to the loss, of the parameters and buffers of which every rank holds another part."""
        return []

    def forward(self, embeddings: Tensor, labels: Tensor, step: int) -> LossOutput:
        """Compute the loss of the global batch.

        Args:
            embeddings: (B,D) of this rank, not normalised.
            labels: (B,) int64 of this rank, in 0…C−1.
            step: number of the training step, counted from 0.
        """
        raise NotImplementedError


def require_finite(embeddings: Tensor, norms: Tensor) -> None:
    """Refuse embeddings that are NaN or infinite, by the first such row.

    On a CPU alone: a GPU would have to be waited for at every step. There they make the loss NaN.

    Args:
        embeddings: (B,D) of the global batch.
        norms: (B,) their lengths, which tell at less cost whether a closer look is needed.

    Raises:
        NotFinite: naming the row.
    """
    if not norms.is_cpu or bool(norms.isfinite().all()):
        return
    wrong = (~embeddings.isfinite()).any(dim=1).nonzero()[:, 0].tolist()
    if wrong:  # else a length has overflowed, which is no fault of the numbers
        raise NotFinite(
            f"embeddings of {len(wrong)} of {len(embeddings)} rows are NaN or infinite, row {wrong[0]} first: look at "
            "that image, or at the network before the loss (its rate, its number format)"
        )


def require_between(name: str, value: float, low: float, high: float) -> None:
    """Refuse an option outside [low, high] (NaN included) with a ``ValueError`` that names it."""
    if not low <= value <= high:
        raise ValueError(f"{name}={value} is out of range: choose it between {low:g} and {high:g}")
