"""The one classifier under all margin losses: class centres, sharded over ranks, and a softmax over their cosines.

A margin loss is four small choices over the cosines (B,C) of embeddings and class centres, each a method to override:

    row_scale    s, or a value per row                        (SphereFace: ‖x‖, with its gradient)
    target       cosθ_y → f(cosθ_y, context)                  the margin
    non_target   cosθ_j → g(cosθ_j, f, context)               (CurricularFace's hard negatives)
    reduction    logits → scalar                              softmax cross-entropy; (SphereFace2: one against all)

and perhaps a ``regulariser``. ``MarginLoss`` itself makes the plainest choice of each: the normalised softmax.
A margin is called with the *global* batch on every rank (so its moving averages see all of it), and may own parameters
and buffers as any module does; ``facelab.loss.collective`` tells the one rule that this asks for.

Precision: embeddings, norms, the target cosine, margins and softmax are computed in float32 (float64 stays), whatever
autocast says; only the (B,D)×(D,C) product follows autocast. The target cosine is computed apart from it, since margins
on the angle magnify its rounding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facelab.loss.base import Loss, LossOutput, require_between
from facelab.loss.collective import (
    enter_shards,
    gather_rows,
    logsumexp_over_shards,
    max_over_shards,
    rank_and_world,
    sum_over_shards,
)

_INIT_STD = 0.01  # as arcface_torch; with normalised centres it sets their effective learning rate, not the logits
_INIT_BLOCK = 4096  # rows drawn from one generator state; another value is another initial matrix
_SEED_STRIDE = 0x9E3779B1  # keeps the blocks of neighbouring seeds apart: CPU generators use 32 bits of their seed
_NORM_FLOOR = 1e-8  # a shorter vector has no direction worth a gradient


@dataclass(frozen=True)
class Context:
    """What a margin may look at besides the cosines; B is the global batch.

    Attributes:
        norms: (B,) lengths of the embeddings, with their gradient (detach them if the margin does not want it).
        labels: (B,) int64.
        step: number of the training step, counted from 0.
        training: whether moving averages are to be updated.
    """

    norms: Tensor
    labels: Tensor
    step: int
    training: bool


class ClassCentres(nn.Module):
    """This rank's rows of the (C,D) matrix of class centres.

    The full matrix is a function of torch's seed (``torch.initial_seed()``) alone: the same on 1 or W ranks. Torch's
    global generator is not advanced.

    Args:
        num_classes: C, over all ranks; the first C mod W ranks hold one row more.
        embedding_size: D.

    Attributes:
        weight: (C_rank,D) float32, the classes ``start`` … ``stop`` − 1, not normalised.

    Raises:
        ValueError: fewer classes than ranks, or an embedding size below 1.
    """

    def __init__(self, num_classes: int, embedding_size: int):
        super().__init__()
        rank, self.world = rank_and_world()
        if num_classes < self.world:
            raise ValueError(f"num_classes={num_classes} cannot be shared by {self.world} ranks: each needs a class")
        if embedding_size < 1:
            raise ValueError(f"embedding_size={embedding_size} must be at least 1")
        share, larger = divmod(num_classes, self.world)
        self.num_classes = num_classes
        self.start = rank * share + min(rank, larger)
        self.stop = self.start + share + (rank < larger)
        self.weight = nn.Parameter(torch.empty(self.stop - self.start, embedding_size, dtype=torch.float32))
        self.reset_parameters(torch.initial_seed())

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draw this rank's rows of the matrix that belongs to ``seed``: normal, standard deviation 0.01."""
        generator = torch.Generator()
        for block in range(self.start // _INIT_BLOCK, (self.stop - 1) // _INIT_BLOCK + 1):
            generator.manual_seed((seed * _SEED_STRIDE + block) % 2**32)
            first = block * _INIT_BLOCK
            rows = torch.empty(_INIT_BLOCK, self.weight.shape[1], device="cpu", dtype=torch.float32)
            rows.normal_(std=_INIT_STD, generator=generator)
            low, high = max(first, self.start), min(first + _INIT_BLOCK, self.stop)
            self.weight[low - self.start : high - self.start] = rows[low - first : high - first].to(self.weight)

    def is_target(self, labels: Tensor) -> Tensor:
        """(B,) labels → (B,C_rank) bool, true where the column is the row's own class."""
        return labels[:, None] == torch.arange(self.start, self.stop, device=labels.device)

    def extra_repr(self) -> str:
        """Say which classes lie here."""
        return f"classes {self.start}…{self.stop - 1} of {self.num_classes}, embedding_size={self.weight.shape[1]}"


class MarginLoss(Loss):
    """Normalised softmax, L = −log( exp(s·cosθ_y) / Σ_j exp(s·cosθ_j) ), and the base of all margins over it.

    Source: NormFace, arXiv:1704.06369, with a fixed s; equation 2 of ArcFace, arXiv:1801.07698.

    Build it after ``torch.distributed`` is initialised (Lightning: in ``configure_model``), so that it holds one shard.

    Args:
        embedding_size: D.
        num_classes: C, over all ranks.
        scale: s, the inverse temperature of the softmax.

    Raises:
        ValueError: an option is out of range; in the call: embeddings or labels have the wrong shape or type, a label
            is not in 0…C−1 (on a GPU tested in the first call only, later such a label makes the loss NaN), or the
            number of ranks changed since the loss was built.
    """

    normalised = True  # False: the similarities are x·W, not cosines

    def __init__(self, embedding_size: int, num_classes: int, scale: float):
        super().__init__()
        require_between("scale", scale, 1e-3, 1e4)
        self.scale = scale
        self.classifier = ClassCentres(num_classes, embedding_size)
        self._seen_labels = False

    def row_scale(self, context: Context) -> float | Tensor:
        """What multiplies a row of cosines: a number, or (B,)."""
        return self.scale

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        """The target map: (B,) cosθ_y → (B,)."""
        return cosine

    def non_target(self, cosines: Tensor, target: Tensor, context: Context) -> Tensor:
        """The non-target map: (B,C_rank) cosθ_j → (B,C_rank), given the (B,) mapped target, whose column is unused."""
        return cosines

    def regulariser(self, context: Context) -> Tensor | None:
        """A scalar that is added to the loss."""
        return None

    def reduction(self, others: Tensor, target: Tensor, context: Context) -> Tensor:
        """(B,C_rank) logits of the other classes (target column ignored) and (B,) target logits → scalar.

        Here softmax cross-entropy, as −log σ(target − logsumexp(others)): exact also where it is nearly zero.
        """
        hidden = torch.finfo(others.dtype).min  # finite: a shard may consist of one class, the target
        others = others.masked_fill(self.classifier.is_target(context.labels), hidden)
        return -F.logsigmoid(target - logsumexp_over_shards(torch.logsumexp(others, dim=1))).mean()

    def forward(self, embeddings: Tensor, labels: Tensor, step: int) -> LossOutput:
        """(B,D) embeddings, (B,) int64 labels of this rank → the global batch's mean loss and top-1 accuracy."""
        cosines, target_cosine, context = self._cosines(embeddings, labels, step)
        with torch.autocast(embeddings.device.type, enabled=False):
            loss = self.reduction(*self._logits(cosines, target_cosine, context), context)
            logs = {"accuracy": self._accuracy(cosines, context.labels)}
            penalty = self.regulariser(context)
            if penalty is not None:
                loss = loss + penalty
                logs["regulariser"] = penalty.detach()
        return LossOutput(loss, logs)

    def logits(self, embeddings: Tensor, labels: Tensor, step: int) -> Tensor:
        """The (B,C_rank) scaled logits after the margin, the target column included; B is the global batch."""
        cosines, target_cosine, context = self._cosines(embeddings, labels, step)
        with torch.autocast(embeddings.device.type, enabled=False):
            others, target = self._logits(cosines, target_cosine, context)
            return torch.where(self.classifier.is_target(context.labels), target[:, None], others)

    def sharded_parameters(self) -> list[str]:
        """The class centres."""
        return ["classifier.weight"]

    def _cosines(self, embeddings: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor, Context]:
        """→ (B,C_rank) cosines, (B,) target cosine, context, of the global batch."""
        self._check(embeddings, labels)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings, labels = gather_rows(_widen(embeddings)), gather_rows(labels)
            centres = _widen(self.classifier.weight)
            norms = torch.linalg.vector_norm(embeddings, dim=1)
            if self.normalised:
                embeddings, centres = _unit(embeddings, norms), _unit(centres, torch.linalg.vector_norm(centres, dim=1))
            embeddings = enter_shards(embeddings)
            column, owned = self._columns(labels)
            target = (embeddings * centres[column]).sum(dim=1)
            target = sum_over_shards(torch.where(owned, target, 0))
            target = target.masked_fill((labels < 0) | (labels >= self.classifier.num_classes), torch.nan)
        cosines = F.linear(embeddings, centres).to(embeddings.dtype)
        return cosines, target, Context(norms, labels, step, self.training)

    def _logits(self, cosines: Tensor, target_cosine: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """→ (B,C_rank) logits of the other classes and (B,) target logits."""
        target = self.target(target_cosine, context)
        others = self.non_target(cosines, enter_shards(target), context)
        scale = self.row_scale(context)
        column_scale = enter_shards(scale)[:, None] if isinstance(scale, Tensor) else scale
        return column_scale * others, scale * target

    @torch.no_grad()
    def _accuracy(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """The share of rows whose nearest class centre, before any margin, is their own."""
        column, owned = self._columns(labels)
        best, nearest = cosines.detach().max(dim=1)
        right = owned & (nearest == column) & (best >= max_over_shards(best))
        return sum_over_shards(right.to(cosines.dtype)).mean()

    def _columns(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) labels → (B,) column on this rank, 0 for a class that lies elsewhere, and (B,) bool, true if here."""
        owned = (labels >= self.classifier.start) & (labels < self.classifier.stop)
        return torch.where(owned, labels - self.classifier.start, 0), owned

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        classes, size = self.classifier.num_classes, self.classifier.weight.shape[1]
        if embeddings.ndim != 2 or embeddings.shape[1] != size:
            raise ValueError(f"embeddings of shape {tuple(embeddings.shape)}: the class centres need (B, {size})")
        if labels.shape != embeddings.shape[:1]:
            raise ValueError(f"labels of shape {tuple(labels.shape)}: {len(embeddings)} embeddings need as many labels")
        if labels.dtype != torch.int64:
            raise ValueError(f"labels of type {labels.dtype}: class numbers must be torch.int64, convert with .long()")
        if rank_and_world()[1] != self.classifier.world:
            raise ValueError(
                f"the loss was built for {self.classifier.world} rank(s) and runs on {rank_and_world()[1]}: "
                "build it after torch.distributed is initialised"
            )
        if (labels.is_cpu or not self._seen_labels) and len(labels):  # reading from a GPU would stall it at every step
            low, high = labels.min().item(), labels.max().item()
            if low < 0 or high >= classes:
                raise ValueError(
                    f"label {low if low < 0 else high} is not one of the {classes} classes 0…{classes - 1}"
                )
            self._seen_labels = True


def _widen(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _unit(vectors: Tensor, norms: Tensor) -> Tensor:
    """Rows of length 1. A row of length 0 stays 0 without a gradient: dividing by an infinite length gives both."""
    return vectors / norms.masked_fill(norms < _NORM_FLOOR, torch.inf)[:, None]
