"""The classes whose centres are most similar to an embedding, over the shards of all ranks: what a network names."""

import torch
import torch.distributed as dist
from torch import Tensor

from facelab.loss.collective import rank_and_world
from facelab.loss.columns import similarities, unit, widen

_BLOCK = 2**22  # elements of the images × classes matrix that exist at a time: 16 MiB in float32


@torch.no_grad()
def name_classes(
    embeddings: Tensor, centres: Tensor, first: int, count: int, normalised: bool
) -> tuple[Tensor, Tensor]:
    """The most similar classes, the most similar first; of equal ones the lower class number is first.

    No margin has a say in it: the similarity is the cosine, or x·W for a loss whose similarities are not normalised.

    Args:
        embeddings: (M,D), not normalised, the same on every rank.
        centres: (C_rank,D) this rank's, not normalised; those of rank r follow upon those of rank r − 1.
        first: class of the first of them.
        count: how many classes are wanted; all where there are fewer.
        normalised: whether similarities are cosines.

    Returns:
        (M,k) int64 classes, and (M,k) float32 similarities, k = min(count, C), the same on every rank.
    """
    embeddings, centres = widen(embeddings), widen(centres.detach())
    if normalised:
        embeddings, centres = (unit(x, torch.linalg.vector_norm(x, dim=1)) for x in (embeddings, centres))
    found = [
        _first(similarities(block, centres, block.dtype), count)
        for block in embeddings.split(max(1, _BLOCK // len(centres)))
    ]
    values, columns = (torch.cat([pair[n] for pair in found]) for n in (0, 1))
    classes = columns + first
    _, world = rank_and_world()
    if world == 1:
        return classes, values
    total = torch.tensor(len(centres), device=centres.device)
    dist.all_reduce(total)
    missing = count - values.shape[1]
    values = torch.nn.functional.pad(values, (0, missing), value=-torch.inf)
    classes = torch.nn.functional.pad(classes, (0, missing), value=-1)
    # Side by side in the order of ranks, which is the order of classes: it decides about equals here as well.
    values, place = _first(_side_by_side(values), min(count, int(total)))
    return _side_by_side(classes).gather(1, place), values


def _first(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest values of each row, and their columns; of equal ones the first."""
    values, columns = values.sort(dim=1, descending=True, stable=True)
    return values[:, :count], columns[:, :count]


def _side_by_side(mine: Tensor) -> Tensor:
    """(M,k) of each rank → (M,W·k)."""
    parts = [torch.empty_like(mine) for _ in range(rank_and_world()[1])]
    dist.all_gather(parts, mine.contiguous())
    return torch.cat(parts, dim=1)
