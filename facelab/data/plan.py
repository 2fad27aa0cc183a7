"""The one place that decides randomness: (seed, epoch, position) → which images, and their random draws.

Everything is counter-based: each number is a hash of its coordinates, so nothing depends on worker count, batch size or
on where a run was interrupted, and no array of the epoch's size exists (42 million images cost nothing).
"""

import math

import numpy as np

__all__ = ["Plan", "sample_seeds", "step_seed", "uniforms"]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: the increment of splitmix64
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_FACTORS = tuple(np.uint64(multiplier) for multiplier in _MULTIPLIERS)
_SHIFTS, _LAST_SHIFT = (np.uint64(30), np.uint64(27)), np.uint64(31)
_ROUNDS = 8  # four pass for random on large sets (Luby and Rackoff); sets of a few images need more
_ORDER, _DRAWS, _MODEL, _SEEDS = 1, 2, 3, 4  # streams: the same (seed, epoch) must not give related orders and draws


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


class Plan:
    """The order in which a training set is gone through.

    Every epoch is another permutation of the positions 0…length-1: a Feistel network over a grid of about
    sqrt(length) × sqrt(length) cells (Black and Rogaway 2002), keyed by (seed, epoch). The grid has a few cells more
    than there are positions; a value that lands outside is sent through the network again until it is inside
    (cycle-walking), which keeps it a permutation.

    Args:
        length: number of samples.
        batch_size: samples in a *global* batch, over all ranks.
        seed: any integer.
        shuffle: False gives the positions in order, in every epoch.

    Raises:
        ValueError: when `batch_size` is below 1 or above `length`.
    """

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
        self._rows = math.isqrt(length - 1) + 1
        self._columns = -(-length // self._rows)

    def epoch(self, step: int) -> int:
        """The epoch of an absolute step."""
        return step // self.steps_per_epoch

    def indices(self, step: int, count: int = 1) -> np.ndarray:
        """Positions (count·B,) int64 in [0, length) of the global batches at `count` absolute steps of one epoch.

        Asking for several at once costs little more than asking for one.

        Raises:
            ValueError: when `step` is negative.
        """
        if step < 0:
            raise ValueError(f"step is {step}: steps count from 0")
        assert self.epoch(step) == self.epoch(step + count - 1), "the steps are of one epoch"
        first = (step % self.steps_per_epoch) * self.batch_size
        positions = np.arange(first, first + count * self.batch_size, dtype=np.int64)
        return self._permute(positions, self.epoch(step)) if self.shuffle else positions

    def _permute(self, positions: np.ndarray, epoch: int) -> np.ndarray:
        key = _key(_ORDER, self.seed, epoch)
        keys = [_key(key, number) for number in range(_ROUNDS)]
        places = self._feistel(positions.astype(np.uint64), keys)
        outside = np.flatnonzero(places >= self.length)
        while outside.size:
            places[outside] = self._feistel(places[outside], keys)
            outside = outside[places[outside] >= self.length]
        return places.astype(np.int64)

    def _feistel(self, places: np.ndarray, keys: list[int]) -> np.ndarray:
        """A permutation of 0…rows*columns-1: row and column are shifted in turn by a keyed hash of the other."""
        rows, columns = np.uint64(self._rows), np.uint64(self._columns)
        row, column = np.divmod(places, columns)
        for number, key in enumerate(keys):
            if number % 2:
                column = (column + _mix_array(row ^ np.uint64(key)) % columns) % columns
            else:
                row = (row + _mix_array(column ^ np.uint64(key)) % rows) % rows
        return row * columns + column


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
