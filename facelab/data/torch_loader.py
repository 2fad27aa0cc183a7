"""Threads decode, several batches ahead; everything else happens on the device, a batch at a time.

OpenCV lets go of the interpreter lock while it decodes, so threads are enough: no process copies a batch, and an epoch
starts at once.
"""

import math
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from facelab.data.plan import Plan, sample_seeds, uniforms

STEPS_AT_ONCE = 16

__all__ = ["Batch", "EvalLoader", "TrainLoader"]


class Batch(NamedTuple):
    """One rank's part of a global batch (b images)."""

    images: Tensor  # (b,H,W,3) uint8, RGB
    labels: Tensor  # (b,) int64; -1 where there are none
    draws: Tensor  # (b,k) float32 in [0, 1): the random numbers of each image's augmentation
    indices: Tensor  # (b,) int64: which images of the source these are


class Images(Protocol):
    """Anything with numbered images: a training source, or a benchmark's set of pairs."""

    def __len__(self) -> int:
        """Number of images."""

    def load(self, index: int, out: np.ndarray | None = None) -> np.ndarray:
        """Image (H,W,3), uint8, RGB; called from several threads. It may lie in `out`, which has the batch's shape."""


class _Started(NamedTuple):
    batch: Batch
    slices: list[Future]

    def result(self) -> Batch:
        for part in self.slices:
            part.result()
        return self.batch


class TrainLoader:
    """Batches of the absolute steps start…stop-1 of a plan.

    What a batch holds depends on the plan, the seed and the step alone: not on `threads` or `prefetch`, nor on the step
    at which the loader was started. The slices of all ranks, one after another, are the batch of a single rank.

    Args:
        source: the images; `source.size` is their height and width.
        subset: (n,) which images of the source are trained on; a plan's positions count these.
        labels: (n,) their training labels.
        plan: the order, of length n; its batch_size is global.
        seed: seed of the draws.
        draws: random numbers for each image.
        start: first step.
        stop: one more than the last step.
        rank: which slice of the global batch this process takes.
        world: number of ranks.
        threads: decoding threads.
        prefetch: batches decoded ahead of the one being consumed.
        pin: decode into page-locked memory, for asynchronous copies to a CUDA device.

    Raises:
        ValueError: when `world` does not divide the batch, or a number is out of range. While iterating: when an image
            cannot be loaded or has another shape than (size, size, 3), naming it.
    """

    def __init__(
        self,
        source: Any,
        subset: np.ndarray,
        labels: np.ndarray,
        plan: Plan,
        seed: int,
        draws: int,
        start: int,
        stop: int,
        rank: int,
        world: int,
        threads: int,
        prefetch: int,
        pin: bool,
    ) -> None:
        _check(rank, world, threads, prefetch)
        if plan.batch_size % world:
            raise ValueError(
                f"batch_size is {plan.batch_size}, which {world} ranks cannot share equally: change one of them"
            )
        if not len(subset) == len(labels) == plan.length:
            raise ValueError(f"plan covers {plan.length} images, but {len(subset)} images have {len(labels)} labels")
        if not 0 <= start <= stop:
            raise ValueError(f"start is {start} and stop {stop}: 0 <= start <= stop is needed")
        self.source, self.plan, self.seed, self.draws = source, plan, seed, draws
        self.subset = np.asarray(subset, dtype=np.int64)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.start, self.stop, self.rank, self.world = start, stop, rank, world
        self.threads, self.prefetch, self.pin = threads, prefetch, pin

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[Batch]:
        return self._batches(_decoding(self.source))

    def _batches(self, fill: "Fill") -> Iterator[Batch]:
        shape = (self.source.size, self.source.size, 3)
        for start, stop in self._stretches():
            yield from _decode_ahead(fill, shape, self._choose(start, stop), self.threads, self.prefetch, self.pin)

    def _stretches(self) -> Iterator[tuple[int, int]]:
        """Steps that may be decoded ahead of each other; of a plan that adapts, those of one epoch."""
        step = self.start
        while step < self.stop:
            end = (self.plan.epoch(step) + 1) * self.plan.steps_per_epoch if self.plan.adapts else self.stop
            yield step, min(end, self.stop)
            step = end

    def _choose(self, step: int, stop: int) -> Iterator["Chosen"]:
        """The images of each step; asked of the plan for many steps at once, while the threads decode."""
        share = self.plan.batch_size // self.world
        while step < stop:
            epoch = self.plan.epoch(step)
            count = min(STEPS_AT_ONCE, stop - step, (epoch + 1) * self.plan.steps_per_epoch - step)
            own = slice(self.rank * share, (self.rank + 1) * share)
            positions, turns = (of.reshape(count, -1)[:, own] for of in self.plan.picks(step, count))
            indices, labels = self.subset[positions], self.labels[positions]
            # An image that comes again in its epoch is augmented otherwise.
            names = (indices | turns << 32).ravel()
            draws = uniforms(self.seed, epoch, names, self.draws).reshape(count, share, self.draws)
            seeds = sample_seeds(self.seed, epoch, names).reshape(count, share)
            yield from map(Chosen, indices, labels, draws, seeds)
            step += count


class EvalLoader:
    """Every image once: rank r takes the images r, r + world, r + 2·world, …

    The last batch may be smaller; a rank without any image yields nothing. Labels are -1 and there are no draws.

    Args:
        images: a source or a set of pairs; all images have the shape of the first that this rank takes.
        batch_size: images in a batch of this rank.
        rank: which images this process takes.
        world: number of ranks.
        threads: decoding threads.
        prefetch: batches decoded ahead of the one being consumed.
        pin: decode into page-locked memory, for asynchronous copies to a CUDA device.

    Raises:
        ValueError: when a number is out of range. While iterating: when an image cannot be loaded or has another shape.
    """

    def __init__(
        self, images: Images, batch_size: int, rank: int, world: int, threads: int, prefetch: int, pin: bool
    ) -> None:
        _check(rank, world, threads, prefetch)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: at least 1 is needed")
        self.images, self.batch_size, self.rank, self.world = images, batch_size, rank, world
        self.threads, self.prefetch, self.pin = threads, prefetch, pin

    def __len__(self) -> int:
        own = len(range(self.rank, len(self.images), self.world))
        return -(-own // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        own = np.arange(self.rank, len(self.images), self.world, dtype=np.int64)
        if not len(own):
            return iter(())
        shape = _load(self.images, int(own[0])).shape
        parts = (own[first : first + self.batch_size] for first in range(0, len(own), self.batch_size))
        chosen = (Chosen(part, np.full(len(part), -1), np.empty((len(part), 0), np.float32), part) for part in parts)
        return _decode_ahead(_decoding(self.images), shape, chosen, self.threads, self.prefetch, self.pin)


def _check(rank: int, world: int, threads: int, prefetch: int) -> None:
    if not 0 <= rank < world:
        raise ValueError(f"rank is {rank} of {world} ranks: ranks count from 0")
    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads is {threads!r}: at least 1 is needed to decode images")
    if not isinstance(prefetch, int) or prefetch < 1:
        raise ValueError(f"prefetch is {prefetch!r}: at least 1 batch must be decoded ahead")


class Chosen(NamedTuple):
    """What a batch of this rank (b images) is to hold."""

    indices: np.ndarray  # (b,) int64: images of the source
    labels: np.ndarray  # (b,) int64
    draws: np.ndarray  # (b,k) float32 in [0, 1)
    seeds: np.ndarray  # (b,): of each image's own generator, where it is augmented before it reaches the device


# (indices (n,), seeds (n,), memory (n,H,W,3)): puts these images into the memory.
Fill = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


def _decoding(images: Images) -> Fill:
    return lambda indices, seeds, target: _decode(images, indices, target)


def _decode_ahead(
    fill: Fill,
    shape: tuple[int, ...],
    chosen: Iterable[Chosen],
    threads: int,
    prefetch: int,
    pin: bool,
) -> Iterator[Batch]:
    """Decodes what is chosen into batches, `prefetch` of them ahead of the consumer.

    The threads live as long as the iterator: they end with it, whether it is exhausted, closed or stopped by an error.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="facelab-decode")
    started: deque[_Started] = deque()
    memory = _pinned if pin else _Recycled()
    try:
        for indices, labels, draws, seeds in chosen:
            pixels = memory((len(indices), *shape))
            batch = Batch(pixels, torch.from_numpy(labels), torch.from_numpy(draws), torch.from_numpy(indices))
            target, count = pixels.numpy(), len(indices)
            bounds = [count * part // threads for part in range(threads + 1)]
            slices = [
                pool.submit(fill, indices[first:end], seeds[first:end], target[first:end])
                for first, end in pairwise(bounds)
                if first < end
            ]
            started.append(_Started(batch, slices))
            if len(started) > prefetch:
                yield started.popleft().result()
        while started:
            yield started.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pinned(shape: tuple[int, ...]) -> Tensor:
    """Page-locked memory, which torch itself recycles."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True)


class _Recycled:
    """Memory for batches, used again as soon as nothing refers to the batch that was in it.

    A fresh allocation of megabytes costs a page fault every 4 KiB, about a twentieth of the time of decoding into it.
    """

    def __init__(self) -> None:
        self._free: deque[np.ndarray] = deque()

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        size = math.prod(shape)
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = np.empty(size, dtype=np.uint8)
        if len(buffer) < size:
            buffer = np.empty(size, dtype=np.uint8)
        # The tensor's storage keeps this one array object alive, and with it every view of the tensor does.
        lent = buffer[:size]
        weakref.finalize(lent, self._free.append, buffer).atexit = False
        return torch.from_numpy(lent).view(shape)


def _decode(images: Images, indices: np.ndarray, target: np.ndarray) -> None:
    load: Callable[[int, np.ndarray], np.ndarray] = images.load
    shape = target.shape[1:]
    together = getattr(images, "load_plain", None)
    left = range(len(indices)) if together is None else together(indices, target)
    for number in left:
        place, index = target[number], int(indices[number])
        try:
            image = load(index, place)
        except Exception as error:
            raise _unreadable(images, index, error) from error
        if image.shape != shape:
            raise ValueError(
                f"{_name(images, index)} has shape {image.shape}, not {shape}: all images of a set need one size"
            )
        if image is not place:
            place[...] = image


def _load(images: Images, index: int) -> np.ndarray:
    try:
        return images.load(index)
    except Exception as error:
        raise _unreadable(images, index, error) from error


def _unreadable(images: Images, index: int, error: Exception) -> ValueError:
    why = str(error) or type(error).__name__  # some say nothing
    if isinstance(error, MemoryError):
        why = "memory ran out; lower data.loader.threads, data.loader.processes or data.loader.prefetch"
    return ValueError(f"{_name(images, index)} cannot be loaded: {why}")


def _name(images: Any, index: int) -> str:
    """A sample's name for a message; a set of pairs has neither labels nor identity names."""
    labels = getattr(images, "labels", None)
    if labels is None:
        return f"image {index}"
    names = getattr(images, "identity_names", None)
    identity = int(labels[index])
    return f"image {index} (identity {identity if names is None else names[identity]!r})"
