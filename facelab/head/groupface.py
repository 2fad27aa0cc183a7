"""GroupFace (Kim et al., "GroupFace: Learning Latent Groups and Constructing Group-based Representations for Face
Recognition", CVPR 2020, arXiv:2005.10497).
"""

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from facelab.head.base import HeadOutput, LearningHead

ENSEMBLES = ("soft", "hard")


class Decision(NamedTuple):
    """What the group decision network makes of a batch.

    Attributes:
        instance: (B,D) v_x, the instance vector, which it looked at.
        hidden: (B,D) v̂, its last representation before the logits; centred.
        logits: (B,K), in float32 at least.
    """

    instance: Tensor
    hidden: Tensor
    logits: Tensor


def self_distributed(probabilities: Tensor, expected: Tensor) -> Tensor:
    """Group probabilities after the balancing, p̃_k = (1/K)(p_k − E[p_k]) + 1/K: each has the mean 1/K over the data.

    Args:
        probabilities: (B,K) p.
        expected: (K,) E[p].
    """
    groups = probabilities.shape[1]
    return (probabilities - expected) / groups + 1 / groups


class GroupFace(LearningHead):
    """Embeddings with the words of a group: v̄ = v_x + v_x^G.

    The backbone's result is the trunk that all share, D numbers wide. Of it are made, by fully connected layers without
    bias, the instance vector v_x (B,D) and K group-aware vectors v^{G_k} (B,K,D), the latter by one matrix of K·D·D
    numbers. The group decision network looks at v_x: fully connected → batch norm → ReLU → fully connected → batch norm
    → v̂ (B,D) → fully connected → logits (B,K), nothing behind them. Their softmax is p (B,K). Then v_x^G is the soft
    ensemble Σ_k p_k v^{G_k}, or the hard one, the group-aware vector of argmax p.

    What stands between its layers is ours; the paper does not say. No logit has a mean of its own, since v̂ is centred
    and the last layer has no bias, and all begin with the same variance, its rows being orthogonal. That matters:
    p_k − E[p_k] is in proportion to E[p_k], so a group that once was rare gets few labels and becomes rarer. With
    biases and without norms two of eight groups took all of 80 rendered people, so six to seven share them.

    The decision network learns from labels of its own making: G* = argmax_k p̃_k (`self_distributed`), by
    weight · cross-entropy(logits, G*). E[p] is the mean over the images of the latest `window` global batches, the
    present one included. It begins empty: at the first step E[p] is the mean of the first batch alone, then of two, and
    so on. A batch that comes in parts is still one batch of the window: a part sees itself and the parts before it.

    Args:
        embedding_size: D.
        groups: K.
        ensemble: ``soft`` or ``hard``.
        window: batches over which E[p] is taken.
        weight: of the group loss.

    Raises:
        ValueError: an option is out of range.
    """

    window_sums: Tensor
    window_images: Tensor
    window_step: Tensor

    def __init__(self, embedding_size: int, groups: int, ensemble: str, window: int, weight: float):
        super().__init__()
        if groups < 2:
            raise ValueError(f"head.groups is {groups}: give 2 or more (32 is the paper's best), or leave head=none")
        if ensemble not in ENSEMBLES:
            raise ValueError(f"head.ensemble is {ensemble!r}: give one of {', '.join(ENSEMBLES)}")
        if window < 1:
            raise ValueError(f"head.window is {window}: give 1 batch or more (8 is usual)")
        if not 0 <= weight < math.inf:
            raise ValueError(f"head.weight is {weight}: give 0 or more (0.1 is the paper's)")
        self.groups, self.ensemble, self.window, self.weight = groups, ensemble, window, weight
        self.instance = nn.Linear(embedding_size, embedding_size, bias=False)
        self.vectors = nn.Linear(embedding_size, groups * embedding_size, bias=False)
        self.hidden = nn.Sequential(
            nn.Linear(embedding_size, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size),
            nn.ReLU(),
            nn.Linear(embedding_size, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size, affine=False),
        )
        self.logits = nn.Linear(embedding_size, groups, bias=False)
        for layer in (self.instance, self.vectors):  # vectors as long as the trunk's
            nn.init.normal_(layer.weight, std=embedding_size**-0.5)
        nn.init.orthogonal_(self.logits.weight)
        # Batch number s of a run lies in row s mod window: sums of its images' probabilities, and their number.
        self.register_buffer("window_sums", torch.zeros(window, groups))
        self.register_buffer("window_images", torch.zeros(window, dtype=torch.int64))
        self.register_buffer("window_step", torch.tensor(-1))

    def forward(self, features: Tensor) -> Tensor:
        """(B,D) → (B,D) embeddings, not normalised; it neither reads E[p] nor moves it."""
        decision = self.decide(features)
        return decision.instance + self._group_vector(features, decision.logits.softmax(1))

    def decide(self, features: Tensor) -> Decision:
        """(B,D) → what group each is of; the probabilities are the softmax of the logits."""
        instance = self.instance(features)
        hidden = self.hidden(instance)
        logits = self.logits(hidden)
        return Decision(instance, hidden, logits.to(torch.promote_types(logits.dtype, torch.float32)))

    def training_forward(self, features: Tensor, step: int) -> HeadOutput:
        """See LearningHead. Logs ``group_loss``, the cross-entropy without its weight, and ``group_largest``, the share
        of the images whose group is the most frequent one; counts ``group``, the images by argmax p.
        """
        decision = self.decide(features)
        probabilities = decision.logits.softmax(1)
        embeddings = decision.instance + self._group_vector(features, probabilities)
        seen = probabilities.detach()
        batch = _over_ranks(torch.cat([seen.sum(0), seen.new_tensor([len(seen)])]))  # (K+1,)
        labels = self_distributed(seen, self._expectation(batch[:-1], batch[-1], step)).argmax(1)
        entropy = F.cross_entropy(decision.logits, labels, reduction="sum")
        chosen = F.one_hot(seen.argmax(1), self.groups).sum(0)  # (K,)
        told = _over_ranks(torch.cat([entropy.detach()[None], chosen.to(seen.dtype)]))
        value, counts = told[0] / batch[-1], told[1:]
        # The gradient is that of this rank's images, to be averaged over ranks; the value is that of all.
        own = entropy * (_world() / batch[-1])
        loss = self.weight * (own + (value - own).detach())
        logs = {"group_loss": value, "group_largest": counts.max() / batch[-1]}
        return HeadOutput(embeddings, loss, logs, {"group": counts.round().long()})

    def _group_vector(self, features: Tensor, probabilities: Tensor) -> Tensor:
        """(B,D) v_x^G."""
        vectors = self.vectors(features).unflatten(1, (self.groups, -1))  # (B,K,D)
        if self.ensemble == "hard":
            probabilities = F.one_hot(probabilities.argmax(1), self.groups)
        return torch.einsum("bk,bkd->bd", probabilities.to(vectors.dtype), vectors)

    @torch.no_grad()
    def _expectation(self, sums: Tensor, images: Tensor, step: int) -> Tensor:
        """(K,) E[p], with this batch, or this part of one, taken in.

        Args:
            sums: (K,) of the probabilities of the images of all ranks.
            images: () their number.
            step: the batch's.
        """
        row, same = step % self.window, self.window_step == step  # nothing here waits for a device
        self.window_sums[row] = self.window_sums[row] * same + sums
        self.window_images[row] = self.window_images[row] * same + images.round().long()
        self.window_step.fill_(step)
        return self.window_sums.sum(0) / self.window_images.sum()


def _world() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _over_ranks(parts: Tensor) -> Tensor:
    """The ranks' parts, added up; without a gradient."""
    if _world() > 1:
        dist.all_reduce(parts)
    return parts
