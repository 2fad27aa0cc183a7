"""The class centres most similar to each class centre, over the shards of all ranks."""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from facelab.loss.collective import gather_rows, rank_and_world, row_counts
from facelab.loss.columns import unit, widen

SEARCHES = ("auto", "exact", "faiss")
# Classes up to which `auto` searches exactly: 2·C²·D = 1.1·10¹⁵ operations at D = 512, shared by the ranks.
EXACT = 2**20
_QUERIES, _COLUMNS = 1024, 2**14  # of the block of cosines that exists at a time: 64 MiB in float32
_PROBES = 32  # lists of faiss's index that a query looks into; there are √C of them

Found = tuple[Tensor, Tensor]  # (q,k) cosines, and (q,k) int64 classes; −∞ and −1 where there are no more


def searches_exactly(search: str, num_classes: int) -> bool:
    """Whether this search of as many classes is exact; else it is faiss's, which then has to be installed.

    Raises:
        ValueError: an unknown search, or faiss is wanted and absent.
    """
    if search not in SEARCHES:
        raise ValueError(f"search={search} is unknown: choose one of {', '.join(SEARCHES)}")
    if search == "exact" or (search == "auto" and num_classes <= EXACT):
        return True
    if importlib.util.find_spec("faiss") is None:
        raise ValueError(
            f"search={search} is faiss's{f' above {EXACT} classes' if search == 'auto' else ''}, and faiss is not "
            "installed: pip install 'facelab[mining]', or set search=exact"
        )
    return False


@torch.no_grad()
def nearest(centres: Tensor, count: int, exact: bool) -> Tensor:
    """The ``count`` other classes whose centres have the largest cosines to each centre of this rank.

    Every rank searches its own centres, and holds no others but a block of queries at a time: rank after rank
    broadcasts its centres, block by block, and puts together what all found for them. So the exact answer is the same
    on any number of ranks, but for cosines that are equal up to rounding. faiss's answer is approximate, and another on
    another number of ranks: an inverted file over each shard (IndexIVFFlat), and no graph, since the order in which
    threads build a graph tells in it.

    Args:
        centres: (C_rank,D), not normalised; those of rank r follow upon those of rank r − 1.
        count: k.
        exact: whether by products of all with all; else by faiss.

    Returns:
        (C_rank,k) int64, the most similar class first; −1 where there are no more.
    """
    rank, world = rank_and_world()
    counts = row_counts(centres)
    first = sum(counts[:rank])
    units = widen(centres)
    units = unit(units, torch.linalg.vector_norm(units, dim=1))
    find = _exact(units) if exact else _faiss(units)
    blocks = []
    for owner, size in enumerate(counts):
        for start in range(0, size, _QUERIES):
            stop = min(start + _QUERIES, size)
            queries = units[start:stop].clone() if owner == rank else units.new_empty(stop - start, units.shape[1])
            if world > 1:
                dist.broadcast(queries, owner)
            cosines, places = find(queries, count + 1)  # a class finds itself, too
            cosines, classes = side_by_side(cosines), side_by_side(torch.where(places < 0, -1, places + first))
            if owner == rank:
                itself = torch.arange(first + start, first + stop, device=units.device)[:, None]
                blocks.append(largest(cosines.masked_fill_(classes == itself, -torch.inf), classes, count)[1])
    return torch.cat(blocks)


def largest(cosines: Tensor, classes: Tensor, count: int) -> Found:
    """(q,n) → the ``count`` largest of each row, in order; of equal ones the first."""
    cosines, order = cosines.sort(dim=1, descending=True, stable=True)
    cosines, classes = cosines[:, :count], classes.gather(1, order[:, :count])
    classes = classes.masked_fill(cosines == -torch.inf, -1)
    missing = (0, count - cosines.shape[1])
    return (
        torch.nn.functional.pad(cosines, missing, value=-torch.inf),
        torch.nn.functional.pad(classes, missing, value=-1),
    )


def side_by_side(local: Tensor) -> Tensor:
    """(n,k) of each rank → (n,W·k) on every rank, in the order of ranks."""
    _, world = rank_and_world()
    gathered = gather_rows(local.contiguous(), [len(local)] * world)
    return gathered.view(world, *local.shape).movedim(0, 1).flatten(1)


def _exact(units: Tensor) -> Callable[[Tensor, int], Found]:
    def find(queries: Tensor, count: int) -> Found:
        cosines, places = [], []
        for start in range(0, len(units), _COLUMNS):
            columns = units[start : start + _COLUMNS]
            best = (queries @ columns.T).topk(min(count, len(columns)), dim=1)
            cosines.append(best.values)
            places.append(best.indices + start)
        return largest(torch.cat(cosines, 1), torch.cat(places, 1), count)

    return find


def _faiss(units: Tensor) -> Callable[[Tensor, int], Found]:
    import faiss

    size = units.shape[1]
    rows = units.float().cpu().numpy()
    lists = max(round(len(rows) ** 0.5), 1)
    index: Any = faiss.IndexIVFFlat(faiss.IndexFlatIP(size), size, lists, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    index.nprobe = min(_PROBES, lists)

    def find(queries: Tensor, count: int) -> Found:
        cosines, places = index.search(queries.float().cpu().numpy(), count)
        found = torch.from_numpy(places).to(units.device)
        return torch.from_numpy(cosines).to(units).masked_fill(found < 0, -torch.inf), found

    return find
