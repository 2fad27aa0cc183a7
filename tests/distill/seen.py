"""What the tests of every distiller share: two small networks, what they have seen, and ranks that meet over gloo."""

import torch

from facelab.distill.base import Ranks, Seen, Shapes
from facelab.loss.collective import (
    enter_shards,
    gather_rows,
    logsumexp_over_shards,
    rank_and_world,
    row_counts,
    sum_over_shards,
)

B, D, C = 6, 5, 7
MAPS = ((4, 6, 6), (8, 3, 3))
STUDENT = Shapes("student Small", D, features=MAPS, attention=MAPS, scale=16.0)
TEACHER = Shapes("teacher Large", D, features=MAPS, attention=MAPS, scale=24.0)


def seen(seed, shapes=STUDENT, batch=B, dtype=torch.float64):
    """Random values of a network of these shapes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    return Seen(
        2 * draw(batch, shapes.embedding_size),
        tuple(draw(batch, *size) for size in shapes.features),
        tuple((draw(batch, c, 1, 1), draw(batch, 1, h, w)) for c, h, w in shapes.attention),
        draw(C, shapes.embedding_size),
    )


def labels(batch=B):
    return (3 * torch.arange(batch)) % C


def tensors(of):
    """All that a network has seen, as a flat list."""
    return [of.embeddings, *of.features, *(part for pair in of.attention for part in pair), of.centres]


def together(flat, like):
    """The inverse of `tensors`."""
    embeddings, *rest, centres = flat
    features, maps = rest[: len(like.features)], rest[len(like.features) :]
    return Seen(embeddings, tuple(features), tuple(zip(maps[::2], maps[1::2], strict=True)), centres, like.first)


def changed(of, change):
    """What was seen, with `change` done to every tensor."""
    return together([change(tensor) for tensor in tensors(of)], of)


def with_gradients(of):
    return changed(of, lambda tensor: tensor.detach().clone().requires_grad_())


def gradients(of):
    """Of every tensor; zeros where it took no part."""
    return [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in tensors(of)]


class GlooRanks(Ranks):
    """As a trainer has them."""

    def gather(self, rows):
        return gather_rows(rows)

    def own(self, rows, count):
        return rows.split(row_counts(rows.new_empty(count)))[rank_and_world()[0]]

    def enter(self, replicated):
        return enter_shards(replicated)

    def sum(self, parts):
        return sum_over_shards(parts)

    def logsumexp(self, parts):
        return logsumexp_over_shards(parts)
