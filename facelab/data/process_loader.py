"""Processes decode and augment where that is Python's work, as albumentations' is; batches are those of TrainLoader.

The loader's threads stay, one for each process: a thread hands its process a slice of the batch and takes the pixels
into the batch's memory. So order, prefetching, page-locked memory and errors are TrainLoader's own, and pixels go
through a pipe, not through /dev/shm, which is small in containers.
"""

import multiprocessing
import pickle
import queue
import signal
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import cv2
import numpy as np

from facelab.data.albumentation import Albumentations
from facelab.data.plan import Plan
from facelab.data.torch_loader import Batch, TrainLoader, _decode, _name

__all__ = ["ProcessLoader"]

_WORDLESS = "a process that augments images failed with {}: where memory is short, lower data.loader.processes"
_PATIENCE = 5.0  # seconds that a process is given to end by itself


class ProcessLoader(TrainLoader):
    """TrainLoader's batches, each image augmented by albumentations, in processes.

    What happens to an image is a function of (seed, epoch, image): not of `processes` or `prefetch`, nor of the step at
    which the loader was started. The processes live as long as an iterator of this loader.

    They start from multiprocessing's fork server where there is one (else by spawning), because to fork a process that
    has threads may leave locks held forever in the child. A script that uses this loader needs the usual
    `if __name__ == "__main__":`, and a source that can be pickled.

    Args:
        transforms: what is done to each image (size,size,3), uint8, RGB.
        processes: how many work.
        source, subset, labels, plan, seed, draws, start, stop, rank, world, prefetch, pin: as TrainLoader's.

    Raises:
        ValueError: as TrainLoader; and while iterating, when a transform fails on an image (naming it) or a process
            ends unasked.
    """

    def __init__(
        self,
        transforms: Albumentations,
        processes: int,
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
        prefetch: int,
        pin: bool,
    ) -> None:
        if type(processes) is not int or processes < 1:
            raise ValueError(f"processes is {processes!r}: at least 1 is needed for albumentations")
        super().__init__(source, subset, labels, plan, seed, draws, start, stop, rank, world, processes, prefetch, pin)
        self.transforms = transforms

    def __iter__(self) -> Iterator[Batch]:
        if self.start == self.stop:
            return
        workers = _Workers(self.threads, self.source, self.transforms)
        try:
            yield from self._batches(workers.fill)
        finally:
            workers.close()


class _Workers:
    """Processes, each with a pipe to it.

    Args:
        count: how many.
        images: the source; each process gets a copy.
        transforms: what is done to its images.
    """

    def __init__(self, count: int, images: Any, transforms: Albumentations) -> None:
        kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context: Any = multiprocessing.get_context(kind)
        if kind == "forkserver":
            context.set_forkserver_preload([__name__, "albumentations"])  # imported once, not by each process
        self._free: queue.SimpleQueue[tuple[BaseProcess, Connection]] = queue.SimpleQueue()
        self._all: list[tuple[BaseProcess, Connection]] = []
        # Also when the interpreter ends: multiprocessing would wait for processes that wait for work.
        self.close = util.Finalize(self, _end, (self._all,), exitpriority=10)
        try:
            for _ in range(count):
                self._start(context, images, transforms)
        except BaseException:
            self.close()
            raise

    def _start(self, context: Any, images: Any, transforms: Albumentations) -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, images, transforms), daemon=True)
        try:
            process.start()
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            ours.close()
            name = type(images).__name__
            raise ValueError(f"{name} cannot be sent to another process, as albumentations needs: {error}") from error
        finally:
            theirs.close()
        self._all.append((process, ours))
        self._free.put((process, ours))

    def fill(self, indices: np.ndarray, seeds: np.ndarray, target: np.ndarray) -> None:
        """Has a free process put images (n,) into (n,H,W,3); called from several threads."""
        process, pipe = self._free.get()
        try:
            pipe.send((indices, seeds, target.shape[1:]))
            error = pipe.recv()
            if error is None:
                pipe.recv_bytes_into(target.reshape(-1))
        except (EOFError, OSError):
            process.join(_PATIENCE)
            error = (
                f"a process that augments images ended unasked (exit code {process.exitcode}): where memory is short, "
                "lower data.loader.processes or data.loader.prefetch"
            )
        finally:
            self._free.put((process, pipe))
        if error is not None:
            raise ValueError(error)


def _end(workers: list[tuple[BaseProcess, Connection]]) -> None:
    for _, pipe in workers:
        pipe.close()
    for process, _ in workers:
        process.join(_PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()
    workers.clear()


def _work(pipe: Connection, images: Any, transforms: Albumentations) -> None:
    """A process's life: until the pipe is closed, which the end of the process at its other end does too."""
    # Ctrl-C and a cluster's signal go to all processes; the training process decides, after the step it is in.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)
    with suppress(EOFError, OSError):
        while True:
            indices, seeds, shape = pipe.recv()
            try:
                pixels = np.empty((len(indices), *shape), np.uint8)
                _augment(images, transforms, indices, seeds.tolist(), pixels)
            except Exception as error:
                pipe.send(str(error) or _WORDLESS.format(type(error).__name__))
            else:
                pipe.send(None)
                pipe.send_bytes(pixels.data.cast("B"))


def _augment(
    images: Any, transforms: Albumentations, indices: np.ndarray, seeds: list[int], pixels: np.ndarray
) -> None:
    _decode(images, indices, pixels)
    for place, index, seed in zip(pixels, indices.tolist(), seeds, strict=True):
        try:
            place[...] = transforms(place, seed)
        except ValueError as error:
            raise ValueError(f"{_name(images, index)}: {error}") from error
