"""Numbers that are none: found at once on a CPU, and on a GPU without waiting for it, before they can be saved.

A GPU is asked at the rows of the log and before each checkpoint, where it is waited for in any case. Until then it
keeps by itself what the *first* bad step was like. What the steps after that make of the weights does not matter: no
checkpoint is written any more.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from facelab.loss.collective import rank_and_world

_NONE = -1.0


class Diverged(ValueError):
    """The training has left the numbers; `str()` says at which step, and how it was."""


class Agreed(ValueError):
    """An error that all ranks raise alike; one of them says it (facelab.door)."""


class Watch:
    """What the first step was like whose loss or gradient is NaN or infinite.

    Loss and norm are those of all ranks, so all ranks find the same step.

    Args:
        source: the data set; its `name(index)`, where it has one, names an image.
    """

    def __init__(self, source: Any):
        self.source = source
        # step, loss, gradient norm, that of the step before; then this rank's first image, how many, of how many
        self._found: Tensor | None = None
        self._before: Tensor | None = None
        self._rows: list[Tensor] = []

    @torch.no_grad()
    def rows(self, embeddings: Tensor, indices: Tensor) -> None:
        """Looks at a part of this rank's batch: (b,D) embeddings of the images (b,)."""
        wrong = (~embeddings.isfinite()).any(dim=1)
        # Not indices[…]: with a number that lies on the device this would wait for it.
        first = torch.where(wrong.any(), indices.index_select(0, wrong.int().argmax()[None])[0], -1)
        self._rows.append(torch.stack([first, wrong.sum(), torch.full_like(first, len(wrong))]).double())

    @torch.no_grad()
    def step(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Looks at a step's loss and gradient norm, when all parts of the batch have been looked at."""
        loss, norm = loss.double(), norm.to(loss.device).double()
        before = torch.full_like(loss, torch.nan) if self._before is None else self._before
        numbers = torch.stack([torch.full_like(loss, step), loss, norm, before])
        now = torch.cat([numbers, self._parts().to(loss.device)])
        wrong = ~(loss.isfinite() & norm.isfinite())
        if self._found is None:
            self._found = torch.full_like(now, _NONE)
        self._found = torch.where((self._found[0] == _NONE) & wrong, now, self._found)
        self._before = norm

    def refuse(self, rate: Any) -> None:
        """Raises where a step was bad; waits for the device. Called on all ranks.

        Args:
            rate: step → learning rate.

        Raises:
            Diverged: naming step, rate, gradient norm and images.
        """
        if self._found is not None and float(self._found[0]) != _NONE:
            step, loss, norm, before, *_ = self._found.tolist()
            raise Diverged(_told(loss, int(step), rate, f"gradient norm {norm:.3g}", before, self._images(self._found)))

    def refuse_now(self, step: int, rate: Any) -> None:
        """Raises because the loss refuses the embeddings of this step. Called on all ranks.

        Raises:
            Diverged: always.
        """
        before = torch.nan if self._before is None else float(self._before)
        found = torch.cat([torch.zeros(4, dtype=torch.float64), self._parts().cpu()])
        raise Diverged(_told(torch.nan, step, rate, "gradient not computed", before, self._images(found)))

    def _parts(self) -> Tensor:
        """(3,) the first bad image of the parts, or -1, and the sums of the rest; the parts are done with."""
        if not self._rows:
            return torch.tensor([_NONE, 0, 0], dtype=torch.float64)
        rows, self._rows = torch.stack(self._rows), []
        first = rows[:, 0].index_select(0, (rows[:, 0] >= 0).int().argmax()[None])
        return torch.cat([first, rows[:, 1:].sum(dim=0)])

    def _images(self, found: Tensor) -> str:
        """The images to blame, of all ranks; the slices of the ranks, one after another, are the batch."""
        mine = found[4:].contiguous()
        ranks = [torch.empty_like(mine) for _ in range(rank_and_world()[1])]
        if len(ranks) > 1:
            dist.all_gather(ranks, mine)
        else:
            ranks = [mine]
        parts = torch.stack(ranks).tolist()
        first = next((int(image) for image, _, _ in parts if image >= 0), None)
        if first is None:
            return "all embeddings are finite"
        wrong, rows = (int(sum(column)) for column in list(zip(*parts, strict=True))[1:])
        name = f" ({self.source.name(first)})" if hasattr(self.source, "name") else ""
        return f"embeddings of {wrong} of {rows} images are not, the first is image {first} of the data{name}"


def _told(loss: float, step: int, rate: Any, norm: str, before: float, images: str) -> str:
    then = "" if before != before else f", {before:.3g} the step before"
    return f"the loss is {loss} in step {step + 1:,} (learning rate {rate(step):.2e}, {norm}{then}); {images}"


@torch.no_grad()
def refuse_weights(model: nn.Module, step: int, rate: float) -> None:
    """Raises where a weight that is to be saved is NaN or infinite on any rank, or a buffer NaN. Called on all ranks.

    A buffer may be infinite by design, as the mask of an attention is.

    Raises:
        Diverged: naming one of them.
    """
    weights = dict(model.named_parameters())
    floating = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    wrong = torch.stack([~t.isfinite().all() if n in weights else t.isnan().any() for n, t in floating.items()])
    if rank_and_world()[1] > 1:
        votes = wrong.byte()
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        wrong = votes.bool()
    if wrong.any():
        names = [name for name, bad in zip(floating, wrong.tolist(), strict=True) if bad]
        raise Diverged(
            f"{len(names)} of {len(floating)} tensors are not finite after step {step:,} (learning rate {rate:.2e}), "
            f"{names[0]} first; loss and gradient were"
        )
