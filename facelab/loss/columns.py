"""The classes of a rank that take part in a step, and a margin's hooks over some of them or all at once."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from facelab.loss.collective import enter_shards

NORM_FLOOR = 1e-8  # a shorter vector has no direction worth a gradient


@dataclass(frozen=True)
class Columns:
    """The n classes of this rank that take part in a step; B is the global batch.

    Attributes:
        rows: (n,) int64, their rows among this rank's centres, ascending; None where all take part.
        own: (B,) int64, the column of each row's own class; 0 where that lies on another rank.
        here: (B,) bool, whether it lies on this rank.
        count: n.
    """

    rows: Tensor | None
    own: Tensor
    here: Tensor
    count: int

    def within(self, start: int, stop: int, first: int = 0) -> tuple[Tensor, Tensor]:
        """Where the own class is among the columns start … stop − 1, of the batch's rows from ``first`` on.

        Returns:
            (B−first,1) int64, its column counted from ``start``, 0 where it is not among them, and (B−first,1) bool,
            whether it is.
        """
        column = self.own[first:, None] - start
        inside = self.here[first:, None] & (column >= 0) & (column < stop - start)
        return torch.where(inside, column, 0), inside

    def is_own(self, start: int, stop: int) -> Tensor:
        """(B,stop−start) bool, true where the column is the row's own class."""
        column, inside = self.within(start, stop)
        return torch.zeros(len(column), stop - start, dtype=torch.bool, device=column.device).scatter_(
            1, column, inside
        )


@dataclass(frozen=True)
class Others:
    """What the other classes on this rank come to, all (B,).

    Attributes:
        total: their contributions, put together as the loss says.
        best: the largest of their similarities, without a gradient.
        own: that of the row's own class, computed in the same precision; −∞ where it lies on another rank.
    """

    total: Tensor
    best: Tensor
    own: Tensor


class Whole:
    """All classes at once, by autograd: the reference, and the faster way where C is small.

    Args:
        loss: the margin.
        columns: all of this rank's.
        product: the number format of the (B,D)×(D,C) product.
    """

    def __init__(self, loss: Any, columns: Columns, product: torch.dtype):
        self.loss, self.columns, self.product = loss, columns, product
        self.centres = directed(loss, loss.classifier.weight)

    def own_centres(self) -> Tensor:
        """(B,D) the centre of each row's own class, normalised if the loss is; any row where it is not here."""
        return self.centres[self.columns.own]

    def similarities(self, embeddings: Tensor) -> Tensor:
        """(B,D) → (B,C_rank)."""
        return similarities(embeddings, self.centres, self.product)

    def others(self, embeddings: Tensor, target: Tensor, scale: float | Tensor, context: Any) -> Others:
        """Go through the classes.

        Args:
            embeddings: (B,D) that have entered the shards, normalised if the loss is.
            target: (B,) mapped targets.
            scale: of the rows, a number or (B,).
            context: as for the hooks.
        """
        scale = enter_shards(scale) if isinstance(scale, Tensor) else scale
        cosines = self.similarities(embeddings)
        return part(self.loss, cosines, self.columns, 0, enter_shards(target), scale, context)


def part(
    loss: Any, cosines: Tensor, columns: Columns, start: int, target: Tensor, scale: float | Tensor, context: Any
) -> Others:
    """The margin's hooks over some columns.

    Args:
        loss: the margin.
        cosines: (B,c) similarities of the columns from ``start`` on.
        columns: all that take part.
        start: the first of these.
        target: (B,) mapped targets.
        scale: of the rows, a number or (B,).
        context: as for the hooks.
    """
    # Finite, since a part may consist of one class, the target; and far enough from the end for what hooks do with it.
    smallest = torch.finfo(cosines.dtype).min / 2**10
    stop = start + cosines.shape[1]
    hidden = columns.is_own(start, stop)
    with torch.no_grad():
        column, inside = columns.within(start, stop)
        own = torch.where(inside, cosines.gather(1, column), -torch.inf)[:, 0]
        best = cosines.masked_fill(hidden, smallest).amax(dim=1)
        if loss.options.interclass_filter is not None:
            hidden = hidden | (cosines > loss.options.interclass_filter)
    logits = loss.non_target(cosines, target, context)
    logits = (scale[:, None] if isinstance(scale, Tensor) else scale) * logits
    return Others(loss.others(logits.masked_fill(hidden, smallest), context), best, own)


def similarities(embeddings: Tensor, centres: Tensor, product: torch.dtype) -> Tensor:
    """(B,D), (c,D) → (B,c), multiplied in the number format ``product`` and given in that of the embeddings."""
    return F.linear(embeddings.to(product), centres.to(product)).to(embeddings.dtype)


def directed(loss: Any, centres: Tensor) -> Tensor:
    """(c,D) centres, at least in float32, of length 1 if the loss is normalised."""
    centres = widen(centres)
    return unit(centres, torch.linalg.vector_norm(centres, dim=1)) if loss.normalised else centres


def widen(values: Tensor) -> Tensor:
    """Half precision → float32; float32 and float64 stay."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def unit(vectors: Tensor, norms: Tensor) -> Tensor:
    """Rows of length 1. A row of length 0 stays 0 without a gradient: dividing by an infinite length gives both."""
    return vectors / norms.masked_fill(norms < NORM_FLOOR, torch.inf)[:, None]
