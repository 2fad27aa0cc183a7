"""One thread, and the proof that it is one. Nothing heavy is imported here: the limits must stand before numpy does."""

import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

__all__ = ["ALLOWED", "BUSY", "Used", "Watch", "limit", "pin"]

_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
BUSY = 0.02  # share of the time from which on a thread counts
ALLOWED = 1.05  # CPU seconds for each second and thread: clocks, and what the system charges


def limit(threads: int) -> None:
    """Tells every library that asks its environment how many threads it may have; before they are imported.

    Raises:
        ValueError: that is no number above 0.
    """
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads is {threads!r}: give a whole number above 0")
    for name in _VARIABLES:
        os.environ[name] = str(threads)


def pin(threads: int) -> None:
    """Keeps this process, and the threads that it will start, on its first cores.

    Raises:
        ValueError: the system cannot do that, or has fewer cores for it.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError("pin=true: this system cannot keep a process on a core; leave it out")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < threads:
        raise ValueError(f"pin=true: {threads} threads on {len(cores)} cores; give as many cores as threads")
    os.sched_setaffinity(0, cores[:threads])


class Used(NamedTuple):
    """What a stretch of work took.

    Attributes:
        wall: seconds.
        cpu: seconds of all threads together.
        busy: threads that worked for `BUSY` of the time and more; 0 where the system does not tell.
    """

    wall: float
    cpu: float
    busy: int

    def within(self, threads: int) -> bool:
        """Whether no more threads than these can have worked."""
        return self.busy <= threads and self.cpu <= self.wall * threads * ALLOWED


class Watch:
    """Counts CPU time, of the process and of each of its threads, while its block runs.

    The clock of a thread is asked for by its number (Linux, clock_gettime); a thread that ends within the block is
    missing from `busy`, but its time is in `cpu`.
    """

    used: Used

    def __enter__(self) -> "Watch":
        self._threads = _clocks()
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        after = _clocks()
        worked = [seconds - self._threads.get(number, 0.0) for number, seconds in after.items()]
        self.used = Used(wall, cpu, sum(seconds > BUSY * wall for seconds in worked))


def _clocks() -> dict[int, float]:
    """CPU seconds of each thread of this process; empty where the system does not tell."""
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        return {}
    found = {}
    for task in tasks.iterdir():
        number = int(task.name)
        try:
            # CPUCLOCK_SCHED of one thread, as the kernel's headers number it.
            found[number] = time.clock_gettime((~number << 3) | 6)
        except OSError:  # it has just ended
            continue
    return found if threading.get_native_id() in found else {}
