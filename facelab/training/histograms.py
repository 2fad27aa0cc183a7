"""Histograms of the target angle, the embeddings' length and what a head counts, over training; medians for the log.

They are counted on the device; who reads them waits for it. All ranks count the same global batch.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facelab.atomic import atomic
from facelab.report.spread import quantiles

FILE = "histograms.npz"
STRETCHES = 40  # equal parts of a run, each with histograms of its own: of a step where a run has fewer steps
# Bounds of the bins: whole degrees; 32nd parts of an octave (2.2 %) with a bin for what is shorter and what is longer.
EDGES = {
    "angle": np.arange(181.0),
    "norm": np.concatenate([[0.0], 2.0 ** (np.arange(-5 * 32, 12 * 32 + 1) / 32), [np.inf]]),
}


class Histograms:
    """What is counted of a run's rows: angle to the own class centre in degrees (before any margin), and length.

    Kinds that a head counts by itself (`tally`) have as many bins as it says.

    Args:
        steps: of the whole run.
        packed: what `pack` gave when the run stopped; empty for a fresh start.
        extended: [step, number of steps until then] of each time that the run was made longer. Its stretch ends there,
            and what then lies ahead is divided into as many of its own.
    """

    def __init__(self, steps: int, packed: Mapping[str, list[list[int]]], extended: Sequence[Sequence[int]] = ()):
        self.bounds = _bounds(steps, extended)  # steps done
        stretches = len(self.bounds) - 1
        self._edges = {kind: torch.from_numpy(edges) for kind, edges in EDGES.items()}
        # (stretches + 1, bins): the last row is that of the log's window.
        self._counts = {
            kind: torch.zeros(stretches + 1, len(edges) - 1, dtype=torch.int64) for kind, edges in EDGES.items()
        }
        for kind, rows in packed.items():
            if kind not in EDGES:
                self._counts[kind] = torch.zeros(stretches + 1, len(rows[0]), dtype=torch.int64)
            # Of a run that was shorter: what is behind the stretch it stands in is empty, and the window stays last.
            places = [*range(min(len(rows) - 1, stretches)), stretches]
            for place, row in zip(places, [*rows[: len(places) - 1], rows[-1]], strict=True):
                first, counts = (row[0], row[1:]) if kind in EDGES else (0, row)
                self._counts[kind][place, first : first + len(counts)] = torch.tensor(counts, dtype=torch.int64)

    @torch.no_grad()
    def add(self, rows: Mapping[str, Tensor], step: int) -> None:
        """Counts the rows of a batch, or of a part of it.

        Args:
            rows: of a `LossOutput`; `cosine` and `norm` (B,) are counted where they are there.
            step: number of the training step, counted from 0.
        """
        if "cosine" in rows:
            self._count("angle", torch.rad2deg(rows["cosine"].double().clamp(-1, 1).acos()), step)
        if "norm" in rows:
            self._count("norm", rows["norm"].double(), step)

    @torch.no_grad()
    def tally(self, found: Mapping[str, Tensor], step: int) -> None:
        """Adds what a head has counted of a batch, or of a part of it.

        Args:
            found: by kind (K,) int64, how many images fell where; the same K at every call.
            step: number of the training step, counted from 0.
        """
        for kind, numbers in found.items():
            if kind not in self._counts:
                self._counts[kind] = torch.zeros(len(self.bounds), len(numbers), dtype=torch.int64)
            counts = self._counts[kind] = self._counts[kind].to(numbers.device)
            counts[self._stretch(step)] += numbers

    def _count(self, kind: str, values: Tensor, step: int) -> None:
        edges, counts = (of[kind].to(values.device) for of in (self._edges, self._counts))
        self._edges[kind], self._counts[kind] = edges, counts
        bins = torch.bucketize(values, edges[1:-1], right=True)  # (B,); NaN falls into the last
        found = torch.zeros_like(counts[0]).index_add_(0, bins, torch.ones_like(bins))
        counts[self._stretch(step)] += found
        counts[-1] += found

    def _stretch(self, step: int) -> int:
        return bisect_right(self.bounds, step) - 1

    def take_medians(self) -> dict[str, float]:
        """Medians since the last call by kind, as exact as the bins, of what was counted at all."""
        medians = {}
        for kind in EDGES:
            counts = self._counts[kind]
            window = counts[-1:].cpu().numpy()
            if window.any():
                medians[kind] = float(quantiles(window, EDGES[kind], [0.5])[0, 0])
            counts[-1] = 0
        return medians

    def ends_at(self, step: int) -> bool:
        """Whether a stretch ends when `step` optimizer steps are done."""
        return step in self.bounds[1:]

    def pack(self) -> dict[str, list[list[int]]]:
        """All counts, for a checkpoint's JSON: of each row the first bin not empty, and the counts from there.

        Of what a head counts, all of them: their number is not known before it has counted again.
        """
        packed: dict[str, list[list[int]]] = {}
        for kind, counts in self._counts.items():
            if kind not in EDGES:
                packed[kind] = counts.tolist()
                continue
            rows = packed[kind] = []
            for row in counts.cpu().numpy():
                some = np.flatnonzero(row)
                first, stop = (int(some[0]), int(some[-1]) + 1) if len(some) else (0, 0)
                rows.append([first, *row[first:stop].tolist()])
        return packed

    def write(self, path: Path, step: int, batch_size: int) -> None:
        """Writes the file of the stretches that have ended, the same bytes for the same counts.

        Nothing is written of a kind that the loss does not tell.

        Args:
            path: of the file.
            step: optimizer steps done.
            batch_size: images of a step, over all ranks.
        """
        bounds = [bound for bound in self.bounds if bound <= step]
        counts = {kind: of_kind[: len(bounds) - 1].cpu().numpy() for kind, of_kind in self._counts.items()}
        counts = {kind: of_kind for kind, of_kind in counts.items() if of_kind.any()}
        if not counts:
            return
        arrays: dict[str, Any] = {"images": batch_size * np.array(bounds), **counts}
        arrays |= {
            f"{kind}_edges": EDGES.get(kind, np.arange(of_kind.shape[1] + 1.0)) for kind, of_kind in counts.items()
        }
        try:
            with atomic(path) as temporary:
                np.savez_compressed(temporary, **arrays)
        except OSError as error:
            raise OSError(
                f"{path} cannot be written ({error.strerror}): mend that (free some space), and start the same command "
                "again; it goes on from the last checkpoint"
            ) from error


def _bounds(steps: int, extended: Sequence[Sequence[int]]) -> list[int]:
    """Where the stretches begin and end, in steps done."""
    found, starts = [0], [0, *(step for step, _ in extended)]
    wholes = [*(before for _, before in extended), steps]
    for start, whole, stop in zip(starts, wholes, [*starts[1:], steps], strict=True):
        ahead = whole - start
        stretches = min(STRETCHES, ahead)
        own = [start + -(-k * ahead // stretches) for k in range(1, stretches + 1)]
        found += [bound for bound in own if bound < stop] + [stop] * (stop > start)
    return found
