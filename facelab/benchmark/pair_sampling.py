"""Draws genuine and impostor pairs from labelled images, in folds that share no person where that can be."""

from __future__ import annotations

import numpy as np


def sample_pairs(labels: np.ndarray, count: int, folds: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Balanced pairs in equal folds: in each fold first the genuine, then as many impostor pairs; none occurs twice.

    The identities are dealt to the folds, so no person is in two of them, provided that every fold gets a genuine pair
    and two people; with too few people for that, all folds draw from all of them. Within a fold the genuine
    pairs are spread evenly over the people (one with 500 photographs does not outvote the rest), and an impostor pair
    is two random people, then an image of each. The result depends on the arguments alone.

    Args:
        labels: (M,) identity of each image.
        count: N wanted. Fewer come back where a fold has no more genuine pairs, or impostor pairs run short.
        folds: K.
        seed: of the draw.

    Returns:
        pairs (N, 2) int64 image numbers, same (N,) bool, fold (N,) int64.

    Raises:
        ValueError: not even one genuine and one impostor pair a fold can be made, or count asks for less.
    """
    labels = np.asarray(labels)
    if folds < 2 or count < 2 * folds:
        raise ValueError(f"count={count}, folds={folds}: two folds at least and two pairs for each; raise count")
    rng = np.random.default_rng(seed)
    people = _people(labels)
    deals = _deal(people, folds, rng)
    quota = min(count // (2 * folds), *(_most(deal) for deal in deals))
    if quota < 1:
        quota = min(count // 2, _most(people)) // folds
        if quota < 1:
            raise ValueError(
                f"{len(labels)} images of {len(people)} identities give too few pairs for {folds} folds; "
                "hold out more identities or lower folds"
            )
        genuine, impostor = _genuine(people, quota * folds, rng), _impostor(people, quota * folds, rng)
        genuine = genuine[rng.permutation(len(genuine))]
        blocks = np.concatenate([genuine.reshape(folds, quota, 2), impostor.reshape(folds, quota, 2)], axis=1)
    else:
        blocks = np.stack([np.concatenate([_genuine(deal, quota, rng), _impostor(deal, quota, rng)]) for deal in deals])
    same = np.tile(np.repeat([True, False], quota), folds)
    return blocks.reshape(-1, 2).astype(np.int64), same, np.repeat(np.arange(folds), 2 * quota)


def _people(labels: np.ndarray) -> list[np.ndarray]:
    """The image numbers of each identity."""
    if not len(labels):
        return []
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _deal(people: list[np.ndarray], folds: int, rng: np.random.Generator) -> list[list[np.ndarray]]:
    """Deals people to folds, those with most images first and back and forth, so that the folds come out alike."""
    shuffled = [people[i] for i in rng.permutation(len(people))]
    ranked = sorted(shuffled, key=len, reverse=True)
    deals: list[list[np.ndarray]] = [[] for _ in range(folds)]
    for place, person in enumerate(ranked):
        turn, seat = divmod(place, folds)
        deals[seat if turn % 2 == 0 else folds - 1 - seat].append(person)
    return deals


def _most(people: list[np.ndarray]) -> int:
    """How many genuine and as many impostor pairs can be drawn: all genuine, half of the impostor pairs.

    Half, because impostor pairs are found by drawing until enough are new.
    """
    sizes = np.array([len(images) for images in people], dtype=np.int64)
    genuine = int((sizes * (sizes - 1) // 2).sum())
    impostor = int(sizes.sum() ** 2 - (sizes**2).sum()) // 2
    return min(genuine, (impostor + 1) // 2)


def _genuine(people: list[np.ndarray], count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` distinct genuine pairs, spread evenly over the people, (count, 2)."""
    people = [people[i] for i in rng.permutation(len(people)) if len(people[i]) > 1]
    capacity = np.array([len(images) * (len(images) - 1) // 2 for images in people], dtype=np.int64)
    share = np.zeros_like(capacity)
    while (left := count - int(share.sum())) > 0:
        able = np.flatnonzero(share < capacity)[:left]
        share[able] += np.minimum(capacity[able] - share[able], left // len(able))
    found = []
    for images, size, number in zip(people, capacity, share, strict=True):
        code = rng.choice(size, number, replace=False)
        later = ((1 + np.sqrt(1 + 8 * code.astype(np.float64))) // 2).astype(
            np.int64
        )  # pair code = later(later−1)/2 + earlier
        found.append(np.stack([images[code - later * (later - 1) // 2], images[later]], axis=1))
    return np.concatenate(found)


def _impostor(people: list[np.ndarray], count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` distinct impostor pairs of random people and random images of theirs, (count, 2)."""
    sizes = np.array([len(images) for images in people], dtype=np.int64)
    starts, images = np.cumsum(sizes) - sizes, np.concatenate(people)
    pairs = np.empty((0, 2), dtype=np.int64)
    while len(pairs) < count:
        one = rng.integers(len(people), size=2 * count)
        other = (one + rng.integers(1, len(people), size=2 * count)) % len(people)
        chosen = [starts[who] + (rng.random(2 * count) * sizes[who]).astype(np.int64) for who in (one, other)]
        drawn = np.sort(np.stack([images[place] for place in chosen], axis=1), axis=1)
        pairs = np.concatenate([pairs, drawn])
        _, first = np.unique(pairs, axis=0, return_index=True)
        pairs = pairs[np.sort(first)]
    return pairs[:count]
