"""What a head is: what stands between the backbone and the loss, and may have a loss of its own.

Every head is built as ``Head(embedding_size=D, **options)`` and called as ``head(features)``: (B,D) of the backbone →
(B,D) embeddings, not normalised, each row a function of its own features alone. That is all of it for validation and
use. In training a head that learns by itself (`LearningHead`) is asked by ``training_forward`` instead.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn


class HeadOutput(NamedTuple):
    """What a head gives back in training; all but ``embeddings`` and ``loss`` is detached.

    Attributes:
        embeddings: (B,D) of this rank, not normalised.
        loss: the scalar that is added to the loss, its weight within.
        logs: scalars worth a curve, of the global batch.
        counts: by kind, how many images of the global batch fell where, (K,) int64: counted up over the stretches of a
            run, in its record.
    """

    embeddings: Tensor
    loss: Tensor
    logs: dict[str, Tensor]
    counts: Mapping[str, Tensor] = MappingProxyType({})


class LearningHead(nn.Module):
    """A head with a loss of its own.

    On W ranks it keeps the promise of the losses: value, logs and counts are those of the global batch, the same on
    every rank; what leaves ``loss`` is to be *averaged* over ranks, as DistributedDataParallel does, and the average is
    the gradient of the global batch. All ranks call it together.
    """

    def training_forward(self, features: Tensor, step: int) -> HeadOutput:
        """The embeddings of a batch in training, and what the head wants to learn from it.

        Args:
            features: (B,D) of this rank. Where a step's batch comes in parts (`trainer.accumulate`), each part is a
                call of its own, of the same step.
            step: number of the training step, counted from 0.
        """
        raise NotImplementedError
