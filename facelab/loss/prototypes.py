"""Hard prototype mining: a step sees the classes of its batch, and those that are hard to tell from them."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from facelab.loss.base import require_between
from facelab.loss.chunked import Chunks
from facelab.loss.collective import max_over_shards
from facelab.loss.columns import Columns, directed, similarities
from facelab.loss.neighbours import SEARCHES, largest, nearest, searches_exactly, side_by_side


@dataclass(frozen=True)
class Prototypes:
    """How hard prototypes are mined; what it means stands with ``Queues``.

    Args:
        queue: k, the classes that a class's queue holds at most, 1 or more.
        refresh: the number of steps from one search of the queues to the next, 1 or more.
        threshold: h, a cosine: a class that is no nearer to its images leaves a queue, and does not enter it.
        search: ``"exact"``, all centres with all; ``"faiss"``, approximate; ``"auto"``, exact up to a million classes.

    Raises:
        ValueError: an option is out of range.
    """

    queue: int
    refresh: int
    threshold: float
    search: str

    def __post_init__(self) -> None:
        for name in ("queue", "refresh"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"prototypes.{name}={value}: choose a whole number of 1 or more")
        require_between("prototypes.threshold", self.threshold, -1.0, 1.0)
        if self.search not in SEARCHES:
            raise ValueError(f"prototypes.search={self.search}: choose one of {', '.join(SEARCHES)}")


class Queues(nn.Module):
    """For each class of this rank a queue of k other classes, of any rank; in training, a step sees no more than that.

    A batch is scored against its own classes and all that its classes' queues name, whoever's they are. Every
    ``refresh`` steps each queue becomes the k classes whose centres have the largest cosines to the class's own centre.
    In between, images that are nearer to another class than to their own, y, change y's queue: the classes nearer than
    y enter it at its head, the nearest first; those with a cosine up to h, to all of such images, leave it; and beyond
    k it loses its tail.

    Source: hard prototype mining of AdaptiveFace (Liu et al., CVPR 2019). Ours: the order within a queue, and which
    similarity is held against h, the image's to the class. Who may enter was scored in this step, so it is a class of
    the batch or of its queues, and the nearest k of them for each image. A class that ``interclass_filter`` hides from
    an image does not enter by it.

    The price beside the step's own: one more product, of the images that were wrong with the classes that took part.

    Args:
        options: k, steps, h and search.
        num_classes: C, over all ranks.
        here: C_rank.
        device: of the queues.

    Attributes:
        classes: (C_rank,k) int32, −1 where a queue is not full; saved in checkpoints, and sharded as the centres are.

    Raises:
        ValueError: the search needs faiss, which is not installed.
    """

    classes: Tensor

    def __init__(self, options: Prototypes, num_classes: int, here: int, device: torch.device):
        super().__init__()
        self.options, self.num_classes = options, num_classes
        self._exact = searches_exactly(options.search, num_classes)
        empty = torch.full((here, options.queue), -1, dtype=torch.int32, device=device)
        self.register_buffer("classes", empty)
        self._searched = -1  # the step of the latest search
        self._filled = False  # whether there was one, be it in a run that this one goes on from

    def choose(self, centres: Any, everything: Columns, step: int) -> Columns:
        """The classes of this rank that take part in a step.

        Args:
            centres: the ``ClassCentres``.
            everything: all of this rank's.
            step: searches the queues anew, once, where their time has come.
        """
        if self._due(step):
            self._write(slice(None), nearest(centres.weight, self.options.queue, self._exact))
            self._searched, self._filled = step, True
        own, here = everything.own, everything.here
        taken = torch.zeros(everything.count, dtype=torch.bool, device=own.device)
        taken[own[here]] = True
        named = self._of(own, here).flatten()
        taken[named[(named >= centres.start) & (named < centres.stop)] - centres.start] = True
        rows = taken.nonzero()[:, 0]
        return Columns(rows, torch.where(here, torch.searchsorted(rows, own), 0), here, len(rows))

    @torch.no_grad()
    def update(self, classes: Chunks, embeddings: Tensor, labels: Tensor, wrong: Tensor) -> None:
        """Let images that were wrong change the queues of their classes.

        Args:
            classes: those that took part.
            embeddings: (B,D) of all ranks, normalised.
            labels: (B,) of all ranks.
            wrong: (B,) bool, alike on all ranks.
        """
        images = wrong.nonzero()[:, 0]
        if not len(images):
            return
        assert classes.columns.rows is not None
        columns = replace(classes.columns, own=classes.columns.own[images], here=classes.columns.here[images])
        queues = self._of(classes.columns.rows[columns.own] if columns.count else columns.own, columns.here)
        cosines, others, own, members = self._score(classes, columns, embeddings[images], queues)
        enter = (cosines > own[:, None]) & (cosines > self.options.threshold)
        names, group = labels[images].unique(return_inverse=True)
        old = queues.new_empty(len(names), self.options.queue)
        old[group] = queues
        nearest_image = members.new_full(old.shape, -torch.inf)
        nearest_image.scatter_reduce_(0, group[:, None].expand_as(members), members, "amax")
        stay = (nearest_image > self.options.threshold) & (old >= 0)
        new = renewed(old, stay, group, torch.where(enter, cosines, -torch.inf), others, self.num_classes)
        start = classes.loss.classifier.start
        mine = (names >= start) & (names < start + len(self.classes))
        self._write(names[mine] - start, new[mine])

    def _due(self, step: int) -> bool:
        if not self._filled:
            self._filled = bool(max_over_shards((self.classes >= 0).any().int()))
        return not self._filled or (step % self.options.refresh == 0 and step != self._searched)

    def _write(self, rows: Tensor | slice, classes: Tensor) -> None:
        # Not through autograd's eyes: a backward pass to come has saved all buffers for the hooks, which never read
        # this one.
        self.classes.data[rows] = classes.to(self.classes.dtype)

    def _of(self, rows: Tensor, here: Tensor) -> Tensor:
        """(n,) rows of this rank's classes, and whether they are here → (n,k) int64 their queues, on every rank."""
        queues = torch.where(here[:, None], self.classes[torch.where(here, rows, 0)], -1)
        return max_over_shards(queues).long()

    def _score(
        self, classes: Chunks, columns: Columns, embeddings: Tensor, queues: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Chunk by chunk.

        Returns:
            (n,k) the largest cosines to other classes of all ranks, (n,k) int64 these classes, (n,) the cosine to the
            own class, and (n,k) the cosines to the members of its queue.
        """
        loss, weight = classes.loss, classes.weight
        assert columns.rows is not None
        first, limit, size = loss.classifier.start, loss.options.interclass_filter, queues.shape[1]
        row = queues - first
        here = (row >= 0) & (row < len(weight))
        member = torch.searchsorted(columns.rows, torch.where(here, row, 0))
        members = embeddings.new_full(queues.shape, -torch.inf)
        own = members.new_full((len(queues), 1), -torch.inf)
        cosines, others = members, torch.full_like(queues, -1)
        for start, stop in classes:
            part = directed(loss, classes.centres(weight, start, stop))
            scores = similarities(embeddings, part, classes.product)
            inside = here & (member >= start) & (member < stop)
            members = torch.where(inside, scores.gather(1, torch.where(inside, member - start, 0)), members)
            column, inside = columns.within(start, stop)
            mine = scores.gather(1, column)
            own = torch.where(inside, mine, own)
            scores.scatter_(1, column, torch.where(inside, -torch.inf, mine))
            if limit is not None:
                scores.masked_fill_(scores > limit, -torch.inf)
            best = scores.topk(min(size, stop - start), dim=1)
            places = columns.rows[start + best.indices] + first
            cosines, others = largest(torch.cat([cosines, best.values], 1), torch.cat([others, places], 1), size)
        cosines, others = largest(side_by_side(cosines), side_by_side(others), size)
        return cosines, others, max_over_shards(own)[:, 0], max_over_shards(members)


def renewed(old: Tensor, stay: Tensor, group: Tensor, cosines: Tensor, others: Tensor, num_classes: int) -> Tensor:
    """Queues after some classes entered and some left.

    Args:
        old: (Y,k) int64, the queues of Y classes.
        stay: (Y,k) bool, who does not leave.
        group: (n,) int64, which of the Y queues each image is about.
        cosines: (n,k) of the classes that enter by it; −∞ for one that does not.
        others: (n,k) int64, these classes.
        num_classes: C.

    Returns:
        (Y,k) int64: who enters by the largest cosine, then who stays, in the old order; each once, −1 at the end.
    """
    count, size = old.shape
    enter = cosines > -torch.inf
    queue = torch.arange(count, device=old.device)[:, None].expand_as(old)
    owner = torch.cat([group[:, None].expand_as(others)[enter], queue[stay]])
    other = torch.cat([others[enter], old[stay]])
    place = torch.arange(size, device=old.device).expand_as(old)[stay]
    order = torch.cat([cosines[enter].double(), -2.0 - place]).sort(descending=True, stable=True).indices
    owner, other = owner[order], other[order]
    key, order = (owner * num_classes + other).sort(stable=True)
    once = torch.zeros_like(key, dtype=torch.bool)
    once[order] = torch.cat([key.new_ones(1, dtype=torch.bool), key[1:] != key[:-1]])[: len(key)]
    owner, order = owner[once].sort(stable=True)
    other = other[once][order]
    place = torch.arange(len(owner), device=old.device) - torch.searchsorted(owner, owner)
    fits = place < size
    new = torch.full_like(old, -1)
    new[owner[fits], place[fits]] = other[fits]
    return new
