"""The one place that decides randomness: (seed, epoch, position) → which images, and their random draws.

Everything is counter-based: each number is a hash of its coordinates, so nothing depends on worker count, batch size or
on where a run was interrupted, and no array of the epoch's size exists (42 million images cost nothing). What other
samplers than the shuffled one need to know of the whole set stands in sampling.py.
"""

import math
from typing import Any

import numpy as np

__all__ = ["Plan", "sample_seeds", "step_seed", "uniforms"]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: the increment of splitmix64
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_FACTORS = tuple(np.uint64(multiplier) for multiplier in _MULTIPLIERS)
_SHIFTS, _LAST_SHIFT = (np.uint64(30), np.uint64(27)), np.uint64(31)
_ROUNDS = 8  # four pass for random on large sets (Luby and Rackoff); sets of a few images need more
# Streams: the same (seed, epoch) must not give related orders and draws.
_ORDER, _DRAWS, _MODEL, _SEEDS, _PEOPLE, _PICTURES, _STRATA = 1, 2, 3, 4, 5, 6, 7


def _mix(word: int) -> int:
    """Finaliser of splitmix64 (Steele, Lea and Flood 2014): a bijection of 64-bit words."""
    word = ((word ^ (word >> 30)) * _MULTIPLIERS[0]) & _MASK
    word = ((word ^ (word >> 27)) * _MULTIPLIERS[1]) & _MASK
    return word ^ (word >> 31)


def _mix_array(words: np.ndarray) -> np.ndarray:
    """The same of uint64 words; in place where possible, since this is most of a batch's cost."""
    for shift, multiplier in zip(_SHIFTS, _FACTORS, strict=True):
        shifted = words >> shift
        shifted ^= words
        shifted *= multiplier
        words = shifted
    return words ^ (words >> _LAST_SHIFT)


def _key_each(keys: np.ndarray, number: int | np.ndarray) -> np.ndarray:
    """`_key(key, number)` of each key, uint64; numbers are at least 0."""
    golden = np.uint64(_GOLDEN)
    return _mix_array(_mix_array(keys + golden) + golden + np.asarray(number).astype(np.uint64))


def _key(*words: int) -> int:
    """One 64-bit key from several integers of any size and sign."""
    state = 0
    for word in map(int, words):  # NumPy's integers would overflow
        while True:
            state = _mix((state + _GOLDEN + (word & _MASK)) & _MASK)
            word >>= 64
            if word in (0, -1):
                break
    return state


def permute(places: np.ndarray, length: int, key: int) -> np.ndarray:
    """Where a permutation of 0…length-1, another one for each key, sends places (n,).

    A Feistel network over a grid of about sqrt(length) × sqrt(length) cells (Black and Rogaway 2002). The grid has a
    few cells more than there are places; a value that lands outside is sent through the network again until it is
    inside (cycle-walking), which keeps it a permutation.

    Args:
        places: (n,) integers in [0, length).
        length: how many places there are.
        key: any integer.

    Returns:
        (n,) int64 in [0, length).
    """
    rows = math.isqrt(length - 1) + 1
    grid = np.uint64(rows), np.uint64(-(-length // rows))
    keys = [np.uint64(_key(key, number)) for number in range(_ROUNDS)]
    moved = _feistel(places.astype(np.uint64), *grid, keys)
    outside = np.flatnonzero(moved >= length)
    while outside.size:
        moved[outside] = _feistel(moved[outside], *grid, keys)
        outside = outside[moved[outside] >= length]
    return moved.astype(np.int64)


def permute_each(places: np.ndarray, lengths: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The same where each place (n,) has a length (n,) and a key (n,) uint64 of its own."""
    lengths = lengths.astype(np.uint64)
    rows = np.floor(np.sqrt(lengths - np.uint64(1))).astype(np.uint64) + np.uint64(1)  # exact below 2^52
    columns = (lengths + rows - np.uint64(1)) // rows
    subkeys = [_key_each(keys, number) for number in range(_ROUNDS)]
    moved = _feistel(places.astype(np.uint64), rows, columns, subkeys)
    while (outside := moved >= lengths).any():
        moved = np.where(outside, _feistel(moved, rows, columns, subkeys), moved)
    return moved.astype(np.int64)


def _feistel(places: np.ndarray, rows: Any, columns: Any, keys: list[Any]) -> np.ndarray:
    """A permutation of 0…rows*columns-1: row and column are shifted in turn by a keyed hash of the other."""
    row, column = np.divmod(places, columns)
    for number, key in enumerate(keys):
        if number % 2:
            column = (column + _mix_array(row ^ key) % columns) % columns
        else:
            row = (row + _mix_array(column ^ key) % rows) % rows
    return row * columns + column


class Plan:
    """The order in which a training set is gone through; here, in every epoch, another permutation of it.

    Other samplers (`facelab.data.sampling`) inherit from it and choose otherwise, in `picks`.

    Args:
        length: number of samples.
        batch_size: samples in a *global* batch, over all ranks.
        seed: any integer.
        shuffle: False gives the positions in order, in every epoch.

    Attributes:
        adapts: whether an epoch depends on what training found in those before: then nobody asks for its steps before
            the epochs before it are done.
        pairs_people: whether people come into a batch with several images each.
        about: what a person should know of it; empty where there is nothing to tell.

    Raises:
        ValueError: when `batch_size` is below 1 or above `length`.
    """

    adapts = False
    pairs_people = False
    about = ""

    def __init__(self, length: int, batch_size: int, seed: int, shuffle: bool = True) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: at least 1 is needed")
        if batch_size > length:
            raise ValueError(
                f"batch_size is {batch_size}, but there are only {length} training images: lower batch_size"
            )
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.steps_per_epoch = length // batch_size  # the rest of an epoch is dropped: each time another rest

    def epoch(self, step: int) -> int:
        """The epoch of an absolute step."""
        return step // self.steps_per_epoch

    def indices(self, step: int, count: int = 1) -> np.ndarray:
        """Positions (count·B,) int64 in [0, length) of the global batches at `count` absolute steps of one epoch.

        Asking for several at once costs little more than asking for one.

        Raises:
            ValueError: when `step` is negative.
        """
        return self.picks(step, count)[0]

    def picks(self, step: int, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """The same positions, and of each a number (count·B,) int64 in [0, 2^31).

        Within an epoch no sample comes twice with the same number, so that with its index it names its random draws.
        """
        positions = self._places(step, count)
        if self.shuffle:
            positions = permute(positions, self.length, _key(_ORDER, self.seed, self.epoch(step)))
        return positions, np.zeros_like(positions)

    def _places(self, step: int, count: int) -> np.ndarray:
        """Places (count·B,) int64 in the epoch, from its first, of the batches at `count` steps."""
        if step < 0:
            raise ValueError(f"step is {step}: steps count from 0")
        assert self.epoch(step) == self.epoch(step + count - 1), "the steps are of one epoch"
        first = (step % self.steps_per_epoch) * self.batch_size
        return np.arange(first, first + count * self.batch_size, dtype=np.int64)


def people_key(seed: int, turn: int) -> int:
    """The key of the order in which people come in their turn 0, 1, …"""
    return _key(_PEOPLE, seed, turn)


def picture_keys(seed: int, people: np.ndarray, cycles: np.ndarray) -> np.ndarray:
    """Keys (n,) uint64 of the order of each person's images, in that person's cycle 0, 1, …"""
    return _key_each(_mix_array(people.astype(np.uint64) ^ np.uint64(_key(_PICTURES, seed))), cycles)


def strata_points(seed: int, epoch: int, strata: np.ndarray) -> np.ndarray:
    """A random point (n,) float64 in each stratum k = 0, 1, …, in [k, k + 1): exact, a multiple of 2^-24."""
    words = _mix_array(strata.astype(np.uint64) ^ np.uint64(_key(_STRATA, seed, epoch)))
    return strata + (words >> np.uint64(40)).astype(np.float64) * 2.0**-24


def uniforms(seed: int, epoch: int, indices: np.ndarray, count: int) -> np.ndarray:
    """Random draws of samples: a function of (seed, epoch, sample index, column) and of nothing else.

    Args:
        seed: any integer.
        epoch: the epoch, so that a sample is augmented differently each time.
        indices: (B,) sample indices, at least 0.
        count: number of columns.

    Returns:
        (B, count) float32 in [0, 1): multiples of 2^-24, all exact in float32.
    """
    key = np.uint64(_key(_DRAWS, seed, epoch))
    samples = _mix_array(indices.astype(np.uint64) ^ key)
    columns = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    words = _mix_array(samples[:, None] + columns)
    return (words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def sample_seeds(seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """Seeds (B,) uint64 of samples, for what needs a generator of its own; unrelated to their `uniforms`.

    Args:
        seed: any integer.
        epoch: the epoch.
        indices: (B,) sample indices, at least 0.
    """
    return _mix_array(indices.astype(np.uint64) ^ np.uint64(_key(_SEEDS, seed, epoch)))


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed (63 bit) for a model's own randomness at a step: dropout, sampled classes."""
    return _key(_MODEL, seed, step, rank) >> 1
