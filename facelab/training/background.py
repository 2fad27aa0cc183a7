"""Writing checkpoints while training goes on.

A saving copies the state in memory, for which training stands still, and a thread writes, flushes and renames the copy.
The memory for one copy of what this process writes (its share of the class centres with their momenta; on rank 0 the
network and its momenta as well; pinned where it lies on a GPU) is kept for the next saving: on a full machine
`trainer.save_in_background=false` saves it. One writing is on its way at most; the next saving waits for it.

No thread calls a collective, since the ranks' other ones would come between. What the ranks have to agree on they
settle when training asks: whether one has failed is among the votes of the steps (`Keeper`), and `finish` first waits
for this rank's shards, then votes, and only then waits for rank 0's main file, which itself waits for all shards.
"""

import math
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from facelab.training import checkpoint
from facelab.training.saving import Saving, agree, write

PATIENCE = 30.0  # seconds that a run which ends on an error still waits for the shards of the other ranks

_Kind = tuple[torch.Size, torch.dtype, bool]


class Copies:
    """Copies of tensors in memory that is used again and again."""

    def __init__(self) -> None:
        self._free: dict[_Kind, list[Tensor]] = {}
        self._taken: dict[Any, tuple[Tensor, Tensor]] = {}
        self._arrived: Any = None

    def copy(self, value: Tensor) -> Tensor:
        """Its values now, on the CPU and contiguous; once `arrive` has returned. The same tensor is copied once."""
        value = value.detach()
        key = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if key not in self._taken:
            kind = (value.shape, value.dtype, value.is_cuda)
            unused = self._free.get(kind)
            with torch.inference_mode(False), torch.no_grad():  # a validation's would mark the memory for ever
                room = unused.pop() if unused else torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
                # Kept with its source: where that is freed at once, another one could come to lie at its address.
                self._taken[key] = (value, room.copy_(value, non_blocking=True))
        return self._taken[key][1]

    def close(self) -> None:
        """No more are copied for now; on a GPU they may still be on their way."""
        if any(value.is_cuda for value, _ in self._taken.values()):
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def arrive(self) -> None:
        """Waits until they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()

    def give_back(self) -> None:
        """Nobody reads them any more."""
        for value, room in self._taken.values():
            self._free.setdefault((room.shape, room.dtype, value.is_cuda), []).append(room)
        self._taken.clear()
        self._arrived = None


class Writer:
    """Writes checkpoints, in the background or at once. Methods are called on every rank, but for `close`.

    Args:
        background: whether training goes on meanwhile.
    """

    def __init__(self, background: bool):
        self.background = background
        self._copies = Copies()
        self._thread: threading.Thread | None = None
        self._shards = threading.Event()  # this rank's are written, or have failed
        self._error: BaseException | None = None
        self._until = math.inf

    @property
    def failed(self) -> bool:
        """Whether this rank's thread has given up; no other rank knows yet."""
        return self._error is not None

    @property
    def busy(self) -> bool:
        """Whether this rank's thread is still at work."""
        return self._thread is not None and self._thread.is_alive()

    def take(
        self,
        path: Path,
        model: Any,
        optimizer: torch.optim.Optimizer | None,
        meta: Mapping[str, Any],
        sampler: Mapping[str, Tensor] = MappingProxyType({}),
        previous: Path | None = None,
        promotes: bool = True,
    ) -> Saving:
        """See `checkpoint.take`; the one before has been finished."""
        assert self._thread is None
        more = {"copy": self._copies.copy} if self.background else {}
        return checkpoint.take(path, model, optimizer, meta, sampler, previous, promotes, **more)

    def start(self, savings: Sequence[Saving]) -> None:
        """Begins to write what `take` gave, in this order.

        Raises:
            OSError: where it is written at once, on every rank if one fails.
        """
        if not self.background:
            write(savings)
            return
        self._copies.close()
        self._shards.clear()
        self._thread = threading.Thread(target=self._work, args=(savings,), name="checkpoint", daemon=True)
        self._thread.start()

    def _work(self, savings: Sequence[Saving]) -> None:
        try:
            self._copies.arrive()
            for saving in savings:
                saving.write_shard()
            self._shards.set()
            for saving in savings:
                saving.commit(lambda: self._until)
        except BaseException as error:  # raised where training can be stopped
            self._error = error
        finally:
            self._shards.set()

    def finish(self) -> None:
        """Waits until all is written.

        Raises:
            OSError: on every rank, where one of them could not write.
        """
        if self._thread is None:
            return
        try:
            self._shards.wait()
            agree(self._error)
            self._thread.join()
            agree(self._error)
        except OSError:
            self._until = -math.inf  # some shards will never come
            raise
        self._thread = None
        self._copies.give_back()

    def close(self) -> None:
        """Waits for this rank's alone, however the run has ended."""
        if self._thread is not None:
            self._until = min(self._until, time.monotonic() + PATIENCE)
            self._thread.join()
            self._thread = None
