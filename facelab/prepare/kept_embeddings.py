"""Embeddings of a set in the making, kept block by block: who is interrupted does not embed the same faces again."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from facelab.atomic import UNFINISHED, atomic

__all__ = ["Blocks"]

BLOCK = 16_384  # images, some 32 MB of 512 numbers each: a minute or two of a network on a CPU


class Blocks:
    """A hidden folder beside a set that is being made.

    A block's name says all that its rows depend on: the model and how it is run, and the hashes of its images.

    Args:
        out: the set that is being made.
        model: the model's digest, and how it is run.
        size: images of a block; a multiple of the batch size, so that batches are the same wherever one goes on.
    """

    def __init__(self, out: Path, model: str, size: int):
        self.folder = out.with_name(f"{UNFINISHED}{out.name}.embeddings")
        self._model, self._size = model, size

    def embeddings(self, hashes: np.ndarray, embed: Callable[[int], Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
        """Rows (n,D) of all images in their order, in pieces: first those that are kept.

        Args:
            hashes: (N,) uint64, of the images' content.
            embed: gives the batches of the images from a number on.
        """
        done = 0
        while done < len(hashes) and (rows := self._load(hashes[done : done + self._size])) is not None:
            yield rows
            done += len(rows)
        if done:
            print(f"{done:,} of {len(hashes):,} images were embedded before", flush=True)
        if done == len(hashes):
            return
        held: list[np.ndarray] = []
        for batch in embed(done):
            held.append(batch)
            while done < len(hashes) and sum(map(len, held)) >= min(self._size, len(hashes) - done):
                block = hashes[done : done + self._size]
                rows = np.concatenate(held)
                self._save(block, rows[: len(block)])
                held, done = [rows[len(block) :]], done + len(block)
            yield batch

    def forget(self) -> None:
        """Takes the folder away: the set is there."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, hashes: np.ndarray) -> Path:
        found = hashlib.sha256(self._model.encode() + np.ascontiguousarray(hashes).tobytes()).hexdigest()
        return self.folder / f"{found[:32]}.npy"

    def _load(self, hashes: np.ndarray) -> np.ndarray | None:
        try:
            rows = np.load(self._file(hashes), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None  # it is not there, or is damaged, and is made anew
        whole = (
            isinstance(rows, np.ndarray) and rows.ndim == 2 and len(rows) == len(hashes) and rows.dtype == np.float32
        )
        return rows if whole and bool(np.isfinite(rows).all()) else None

    def _save(self, hashes: np.ndarray, rows: np.ndarray) -> None:
        with atomic(self._file(hashes)) as temporary:
            np.save(temporary, rows)
