"""Writing checkpoints: what one rank has to write, in which order, and what the ranks agree on.

The shards come first, then, on rank 0, a second name for the checkpoint of before, the main file by a rename, and last
what nobody needs any more is taken away. A kill between two of these leaves last.ckpt or previous.ckpt complete.
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch import distributed as dist

from facelab.atomic import UNFINISHED, atomic
from facelab.loss.collective import rank_and_world
from facelab.training.stored import File, described, read_meta


class Part(NamedTuple):
    """One file."""

    path: Path
    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    def write(self) -> None:
        """Writes it."""
        write_file(*self)


class Saving(NamedTuple):
    """What one rank writes of one checkpoint. No method calls a collective."""

    shard: Part | None
    main: Part | None  # of rank 0
    previous: Path | None
    promotes: bool

    def write_shard(self) -> None:
        """Writes this rank's rows, where there are any.

        Raises:
            OSError: they cannot be written; says what to do.
        """
        if self.shard is not None:
            self.shard.write()

    def commit(self, until: Callable[[], float] = lambda: math.inf) -> None:
        """On rank 0, writes the main file as soon as all shards are there, and takes away what nobody needs now.

        Args:
            until: time.monotonic() up to which it waits for the others; asked again and again.

        Raises:
            OSError: it cannot be written, or the shards of the others have not come.
        """
        if self.main is None:
            return
        path, _, meta = self.main
        for name in meta["shards"]:
            while not _is_of(path.with_name(name), meta["saving"]):
                if time.monotonic() > until():
                    raise OSError(f"checkpoint {path} is not complete: {name} was not written")
                time.sleep(0.01)
        if self.previous is not None and self.promotes:
            keep(path, self.previous, meta["step"])
        self.main.write()
        kept = {*meta["shards"], *_shards_of(self.previous)}
        for old in path.parent.glob(f"{path.name}.shard-*"):
            if old.name not in kept:
                old.unlink()


def write(savings: Sequence[Saving]) -> None:
    """Writes checkpoints one after another, here and now. Called on every rank.

    Raises:
        OSError: on every rank, where one of them could not write.
    """
    for half in (Saving.write_shard, Saving.commit):
        error = None
        try:
            for saving in savings:
                half(saving)
        except OSError as caught:
            error = caught
        agree(error)


def agree(error: BaseException | None) -> None:
    """Raises on every rank what one of them has to say; called on every rank.

    Raises:
        OSError: another rank failed.
        BaseException: this one did.
    """
    _, world = rank_and_world()
    failed = error is not None
    if world > 1:
        votes = torch.tensor(float(failed), device=_meeting_place())
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        failed = bool(votes)
    if error is not None:
        raise error
    if failed:
        raise OSError(
            "another process could not write its part of the checkpoint, and says why: mend that, and start the same "
            "command again; it goes on from the checkpoint before"
        )


def number() -> int:
    """By which the files of one saving know each other; rank 0's on all ranks."""
    number = torch.randint(1 << 40, (), generator=_chance(), device="cpu").to(_meeting_place())
    dist.broadcast(number, 0)
    return int(number)


def _chance() -> torch.Generator:
    """Of its own: the run's random numbers are functions of the step."""
    return torch.Generator().manual_seed(int.from_bytes(os.urandom(7), "little"))


def _meeting_place() -> str:
    """The device of what the ranks tell each other."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def _is_of(shard: Path, number: int) -> bool:
    """Whether a shard is complete, and of this saving rather than an earlier one of the same step."""
    try:
        return shard.is_file() and File(shard).meta.get("saving") == number
    except ValueError:
        return False


def keep(path: Path, previous: Path, step: int) -> None:
    """Gives the checkpoint at `path` a second name, unless it is of the same step: then it is no predecessor."""
    try:
        if not path.is_file() or read_meta(path)["step"] == step:
            return
    except ValueError:  # damaged: the one before it stays
        return
    if previous.is_file() and previous.samefile(path):
        return
    hidden = previous.with_name(f"{UNFINISHED}{previous.name}")
    hidden.unlink(missing_ok=True)
    try:
        os.link(path, hidden)
    except OSError:  # a file system without second names: until the new one is there, only `previous` is
        os.replace(path, previous)
    else:
        os.replace(hidden, previous)


def _shards_of(path: Path | None) -> list[str]:
    try:
        return [] if path is None or not path.is_file() else list(read_meta(path)["shards"])
    except ValueError:
        return []


def write_file(path: Path, tensors: dict[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes one file, aside and then renamed, with its checksums; its tensors lie on the CPU, contiguous.

    Raises:
        OSError: it cannot be written; says what to do.
    """
    metadata = described(tensors, meta)
    try:
        with atomic(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
    except (OSError, SafetensorError) as error:  # a full disk, mostly
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"checkpoint {path} cannot be written ({reason}): mend that (free some space), and start the same command "
            "again; it goes on from the checkpoint before"
        ) from error
