"""The one classifier under all margin losses: class centres, sharded over ranks, and a softmax over their cosines.

A margin loss is a few small choices over the cosines (B,C) of embeddings and class centres, each a method to override:

    row_scale    s, or a value per row                        (SphereFace: ‖x‖, with its gradient)
    target       cosθ_y → f(cosθ_y, context)                  the margin
    non_target   cosθ_j → g(cosθ_j, f, context)               (CurricularFace's hard negatives)
    others       logits of other classes → (B,)               logsumexp; (SphereFace2: a sum of binary terms)
    reduction    others, target → scalar                      softmax cross-entropy; (SphereFace2: one against all)

and perhaps a ``regulariser``. ``MarginLoss`` itself makes the plainest choice of each: the normalised softmax.
``row_scale``, ``target``, ``reduction`` and ``regulariser`` are called once a step with the *global* batch on every
rank (so moving averages see all of it). ``non_target`` and ``others`` are called for any part of this rank's classes,
and again in the backward pass: they must treat each column by itself, change nothing, and depend on their arguments, on
buffers and on parameters alone. A margin may own parameters and buffers as any module does; ``facelab.loss.collective``
tells the one rule that this asks for.

How the classes are gone through, ``ClassifierOptions`` tells: at once (``facelab.loss.columns``), in chunks
(``facelab.loss.chunked``), or some of them (``facelab.loss.sampled``, ``facelab.loss.prototypes``).

Precision: embeddings, norms, the target cosine, margins and softmax are computed in float32 (float64 stays), whatever
autocast says; only the (B,D)×(D,C) product follows autocast. The target cosine is computed apart from it, since margins
on the angle magnify its rounding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facelab.loss.base import Loss, LossOutput, require_between, require_finite
from facelab.loss.chunked import Chunks
from facelab.loss.collective import (
    enter_shards,
    gather_rows,
    logsumexp_over_shards,
    max_over_shards,
    rank_and_world,
    row_counts,
    sum_over_shards,
)
from facelab.loss.columns import Columns, Whole, unit, widen
from facelab.loss.prototypes import Prototypes, Queues
from facelab.loss.sampled import draw

_INIT_STD = 0.01  # as arcface_torch; with normalised centres it sets their effective learning rate, not the logits
_INIT_BLOCK = 4096  # rows drawn from one generator state; another value is another initial matrix
_SEED_STRIDE = 0x9E3779B1  # keeps the blocks of neighbouring seeds apart: CPU generators use 32 bits of their seed


@dataclass(frozen=True)
class ClassifierOptions:
    """How a loss goes through its classes; the values that change nothing are ``("auto", 1.0, None)``.

    Args:
        chunk: how many columns of the (B,C) matrix exist at a time; ``"auto"`` for what suits batch and device, the
            whole matrix where it is small; ``None`` for the whole matrix always.
        sample_rate: share of the classes that a training step sees, above 0 and up to 1. The classes of the batch are
            always among them. A class that is not has no gradient, and the centres' gradient is a sparse tensor.
            Source: PartialFC, arXiv:2203.15565.
        interclass_filter: a cosine above which another class is ignored for this row, as if it were not there:
            perhaps it is the same person under two names. ``None`` for no filter. arcface_torch, whose recipes for
            noisy data use 0.4, sets such a cosine to 0 instead.
        prototypes: let a training step see the classes of the batch and those in their queues, and no others, with
            gradients as of sampled classes; ``None`` for all. See ``facelab.loss.prototypes.Queues``.

    Raises:
        ValueError: an option is out of range, or two of them exclude each other.
    """

    chunk: int | str | None
    sample_rate: float
    interclass_filter: float | None
    prototypes: Prototypes | None = None

    def __post_init__(self) -> None:
        whole = self.chunk is None or self.chunk == "auto"
        if not whole and (type(self.chunk) is not int or self.chunk < 1):
            raise ValueError(f"chunk={self.chunk}: choose auto, null for the whole matrix, or a number of columns")
        if not 0 < self.sample_rate <= 1:
            raise ValueError(f"sample_rate={self.sample_rate} is out of range: choose it above 0 and up to 1 (all)")
        if self.sample_rate < 1 and self.chunk is None:
            raise ValueError("sample_rate below 1 needs chunks: set chunk=auto")
        if self.interclass_filter is not None:
            require_between("interclass_filter", self.interclass_filter, -1.0, 1.0)
        if self.prototypes is not None and self.sample_rate < 1:
            raise ValueError(
                f"sample_rate={self.sample_rate} and prototypes both choose the classes of a step: set sample_rate=1.0 "
                "or prototypes.queue=null"
            )
        if self.prototypes is not None and self.chunk is None:
            raise ValueError("prototypes need chunks: set chunk=auto")

    @property
    def some(self) -> bool:
        """Whether a training step sees some of the classes only."""
        return self.sample_rate < 1 or self.prototypes is not None


@dataclass(frozen=True)
class Context:
    """What a margin may look at besides the cosines; B is the global batch.

    Attributes:
        norms: (B,) lengths of the embeddings, with their gradient (detach them if the margin does not want it).
        labels: (B,) int64.
        step: number of the training step, counted from 0.
        training: whether moving averages are to be updated.
        margins: (B,) a margin for each image, in place of the loss's own; None where there are none.
    """

    norms: Tensor
    labels: Tensor
    step: int
    training: bool
    margins: Tensor | None = None


class ClassCentres(nn.Module):
    """This rank's rows of the (C,D) matrix of class centres.

    The full matrix is a function of torch's seed (``torch.initial_seed()``) alone: the same on 1 or W ranks. Torch's
    global generator is not advanced.

    Args:
        num_classes: C, over all ranks; the first C mod W ranks hold one row more.
        embedding_size: D.

    Attributes:
        weight: (C_rank,D) float32, the classes ``start`` … ``stop`` − 1, not normalised.
        seed: what the matrix was drawn with, and sampled classes are.

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
        self.seed = torch.initial_seed()
        self.weight = nn.Parameter(torch.empty(self.stop - self.start, embedding_size, dtype=torch.float32))
        self.reset_parameters(self.seed)

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

    def extra_repr(self) -> str:
        """Say which classes lie here."""
        return f"classes {self.start}…{self.stop - 1} of {self.num_classes}, embedding_size={self.weight.shape[1]}"


# Elements of the (B,C) matrix up to which it is held whole: about where chunks begin to be faster, by the written-out
# passes and by a margin's own hooks (benchmarks/classifier.py: whole, facelab, hooks; B=128 and 512, D=512, on a CPU).
WHOLE, WHOLE_BY_HOOKS = 2**18, 2**22
# Elements of its part in a chunk; a quarter for a margin's own hooks, of whose steps autograd keeps some. Enough to
# fill a GPU; on a CPU within the last cache, and not so few that threads wait for each other more than they compute.
_CHUNK = {"cpu": 2**22, "cuda": 2**26}
_ALIGNED = 64  # columns of a chunk are a multiple: a GPU reads and multiplies rows that begin anywhere more slowly


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
            is not in 0…C−1 (on a GPU tested in the first call only, later such a label makes the loss NaN), the
            number of ranks changed since the loss was built, or (NotFinite, on a CPU; on a GPU the loss is NaN) an
            embedding is NaN or infinite.
    """

    normalised = True  # False: the similarities are x·W, not cosines
    combine = "logsumexp"  # or "sum": how the contributions of `others` go together, of chunks and of ranks
    options = ClassifierOptions(chunk="auto", sample_rate=1.0, interclass_filter=None)  # exact

    def __init__(self, embedding_size: int, num_classes: int, scale: float):
        super().__init__()
        require_between("scale", scale, 1e-3, 1e4)
        self.scale = scale
        self.classifier = ClassCentres(num_classes, embedding_size)
        self.queues: Queues | None = None  # where prototypes are mined
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

    def others(self, logits: Tensor, context: Context) -> Tensor:
        """(B,c) logits of some other classes → (B,) their contribution; an own class stands there as about −1e35."""
        return torch.logsumexp(logits, dim=1)

    def reduction(self, others: Tensor, target: Tensor, context: Context) -> Tensor:
        """(B,) contribution of all other classes and (B,) target logits → scalar.

        Here softmax cross-entropy, as −log σ(target − others): exact also where it is nearly zero.
        """
        return -F.logsigmoid(target - others).mean()

    def configure(self, options: ClassifierOptions) -> None:
        """Choose how the classes are gone through.

        Raises:
            ValueError: this loss has no cosines to filter or to mine by; or mining needs faiss, which is not installed.
        """
        if options.interclass_filter is not None and not self.normalised:
            raise ValueError(
                f"interclass_filter={options.interclass_filter} is a cosine, and {type(self).__name__} has none: "
                "set it to null"
            )
        if options.prototypes is not None and not self.normalised:
            raise ValueError(
                f"prototypes are mined by cosines, and {type(self).__name__} has none: set prototypes.queue=null, or "
                "take the normalised softmax"
            )
        self.options, self.queues = options, None
        if options.prototypes is not None:
            weight = self.classifier.weight
            self.queues = Queues(options.prototypes, self.classifier.num_classes, len(weight), weight.device)

    @property
    def others_are_plain(self) -> bool:
        """Whether the other classes' logits are scaled similarities under a logsumexp, whatever the target is."""
        return (
            type(self).non_target is MarginLoss.non_target
            and type(self).others is MarginLoss.others
            and self.combine == "logsumexp"
        )

    def forward(self, embeddings: Tensor, labels: Tensor, step: int, margins: Tensor | None = None) -> LossOutput:
        """(B,D) embeddings, (B,) int64 labels of this rank → the global batch's mean loss and top-1 accuracy.

        With `takes_margins`, (B,) margins of this rank's images may take the place of the loss's own. The accuracy is
        the share of rows to which no other class centre is as near, before any margin, as their own; with sampled
        classes or mined ones, no other of these.
        """
        self._check(embeddings, labels)
        product = _product_format(embeddings)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings, context = self._global_batch(embeddings, labels, step, margins)
            columns = self._columns(context)
            size = self._chunk_size(embeddings)
            classes = Chunks(self, columns, product, size) if size else Whole(self, columns, product)
            cosine = self._target_cosine(embeddings, classes, columns, context)
            target = self.target(cosine, context)
            scale = self.row_scale(context)
            found = classes.others(embeddings, target, scale, context)
            over_shards = sum_over_shards if self.combine == "sum" else logsumexp_over_shards
            loss = self.reduction(over_shards(found.total), scale * target, context)
            right = sum_over_shards((found.own > max_over_shards(found.best)).to(found.best.dtype))
            if self.queues is not None and isinstance(classes, Chunks) and self.training:
                self.queues.update(classes, embeddings, context.labels, right == 0)
            logs = {"accuracy": right.mean()}
            penalty = self.regulariser(context)
            if penalty is not None:
                loss = loss + penalty
                logs["regulariser"] = penalty.detach()
        rows = {"norm": context.norms.detach(), "right": right > 0}
        return LossOutput(loss, logs, rows | {"cosine": cosine.detach()} if self.normalised else rows)

    def logits(self, embeddings: Tensor, labels: Tensor, step: int) -> Tensor:
        """The (B,C_rank) scaled logits after the margin, the target column included; B is the global batch.

        For pictures and tests: it holds the whole matrix, of all classes and unfiltered.
        """
        self._check(embeddings, labels)
        product = _product_format(embeddings)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings, context = self._global_batch(embeddings, labels, step)
            columns = self._all_columns(context.labels)
            classes = Whole(self, columns, product)
            target = self.target(self._target_cosine(embeddings, classes, columns, context), context)
            others = self.non_target(classes.similarities(embeddings), enter_shards(target), context)
            scale = self.row_scale(context)
            column_scale = enter_shards(scale)[:, None] if isinstance(scale, Tensor) else scale
            own = columns.is_own(0, columns.count)
            return torch.where(own, (scale * target)[:, None], column_scale * others)

    def sharded_parameters(self) -> list[str]:
        """The class centres, and their queues where prototypes are mined."""
        return ["classifier.weight", *(["queues.classes"] if self.queues is not None else [])]

    def _global_batch(
        self, embeddings: Tensor, labels: Tensor, step: int, margins: Tensor | None = None
    ) -> tuple[Tensor, Context]:
        """→ (B,D) embeddings that have entered the shards, normalised if the loss is, and the context."""
        assert margins is None or self.takes_margins, f"{type(self).__name__} has no margin to replace"
        counts = row_counts(labels, self.even)
        margins = None if margins is None else gather_rows(margins, counts)
        embeddings, labels = gather_rows(widen(embeddings), counts), gather_rows(labels, counts)
        norms = torch.linalg.vector_norm(embeddings, dim=1)
        require_finite(embeddings, norms)
        if self.normalised:
            embeddings = unit(embeddings, norms)
        return enter_shards(embeddings), Context(norms, labels, step, self.training, margins)

    def _columns(self, context: Context) -> Columns:
        """The classes of this rank that take part in this step."""
        everything, rate = self._all_columns(context.labels), self.options.sample_rate
        if not self.options.some or not self.training:
            return everything
        if self.queues is not None:
            return self.queues.choose(self.classifier, everything, context.step)
        own, here, part = everything.own, everything.here, self.classifier
        taken = draw(part.start, part.stop, rate, part.seed, context.step, own.device)
        taken[own[here]] = True
        rows = taken.nonzero()[:, 0]
        return Columns(rows, torch.where(here, torch.searchsorted(rows, own), 0), here, len(rows))

    def _all_columns(self, labels: Tensor) -> Columns:
        start, stop = self.classifier.start, self.classifier.stop
        here = (labels >= start) & (labels < stop)
        return Columns(None, torch.where(here, labels - start, 0), here, stop - start)

    def _chunk_size(self, embeddings: Tensor) -> int:
        """Columns in a chunk, 0 for all at once: the same on every rank, since the ways differ in their collectives."""
        chunk, batch = self.options.chunk, len(embeddings)
        largest_shard = -(-self.classifier.num_classes // self.classifier.world)
        sampled = self.options.some and self.training
        limit = WHOLE if self.others_are_plain else WHOLE_BY_HOOKS
        if chunk is None or (chunk == "auto" and not sampled and batch * largest_shard <= limit):
            return 0
        if isinstance(chunk, int):
            return chunk
        elements = _CHUNK.get(embeddings.device.type, _CHUNK["cpu"]) // (1 if self.others_are_plain else 4)
        columns = max(elements // max(*embeddings.shape, 1), 1)
        return columns - columns % _ALIGNED if columns > _ALIGNED else columns

    def _target_cosine(self, embeddings: Tensor, classes: Whole | Chunks, columns: Columns, context: Context) -> Tensor:
        """(B,) cosθ_y, on every rank; NaN for a label that is no class."""
        labels = context.labels
        cosine = (embeddings * classes.own_centres()).sum(dim=1)
        cosine = sum_over_shards(torch.where(columns.here, cosine, 0))
        return cosine.masked_fill((labels < 0) | (labels >= self.classifier.num_classes), torch.nan)

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


def _product_format(embeddings: Tensor) -> torch.dtype:
    """What autocast, or else the embeddings, say; float64 stays."""
    device = embeddings.device.type
    if torch.is_autocast_enabled(device) and embeddings.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return widen(embeddings).dtype
