"""Brings a data set, the plan and the loader together, and says which identities are trained, held out and reported."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl

from facelab.benchmark.pair_files import FacePairs, PairSet
from facelab.data.plan import Plan
from facelab.data.split import hold_out
from facelab.data.torch_loader import EvalLoader, TrainLoader
from facelab.loss.collective import rank_and_world
from facelab.training.checkpoint import Progress
from facelab.training.options import TrainerOptions


class FaceData(pl.LightningDataModule):
    """The training identities in the plan's order, and the held-out ones as verification pairs.

    Args:
        source: a data set of facelab.data: `labels`, `num_classes`, `size`, `load(index, out=None)`.
        holdout: `fraction` of the identities that are never trained on, `seed` of their choice.
        loader: `threads` and `prefetch`.
        benchmark: opens the reported pair set.
        options: the trainer group; its batch_size is global.
        seed: the run's seed.
        draws: random numbers an image needs for its augmentation.
        progress: where the run stands; the loader starts there.

    Raises:
        ValueError: where the batch is larger than the data, or too few identities can be held out.
        FileNotFoundError: where the benchmark's files are missing.
    """

    def __init__(
        self,
        source: Any,
        holdout: Mapping[str, Any],
        loader: Mapping[str, Any],
        benchmark: Any,
        options: TrainerOptions,
        seed: int,
        draws: int,
        progress: Progress,
    ):
        super().__init__()
        self.source, self.loader, self.options = source, loader, options
        self.seed, self.draws, self.progress = seed, draws, progress
        trained, held = hold_out(source.labels, holdout["fraction"], holdout["seed"])
        # Without a benchmark of its own a run reports on half of the held-out identities, and chooses on the other.
        chooses, reports = (held[::2], held[1::2]) if benchmark.path is None else (held, held[:0])
        self.selection = self._faces(chooses).draw("val", *_draw(benchmark)) if len(chooses) else None
        self.report = benchmark.open(self._faces(reports) if len(reports) else None)

        self.subset = np.flatnonzero(np.isin(source.labels, trained))
        self.labels = np.searchsorted(trained, source.labels[self.subset])
        self.num_classes = len(trained)
        if options.batch_size > len(self.subset):
            raise ValueError(
                f"trainer.batch_size is {options.batch_size}, but only {len(self.subset)} images are there to train on"
                ": give a smaller batch or more data"
            )
        self.plan = Plan(len(self.subset), options.batch_size, seed)
        self.steps_per_epoch = self.plan.steps_per_epoch
        self.steps = options.epochs * self.steps_per_epoch
        if options.max_steps is not None:
            self.steps = min(self.steps, options.max_steps)
        self.interval = max(1, round(options.validate_every * self.steps_per_epoch))

    def _faces(self, identities: np.ndarray) -> FacePairs:
        positions = np.flatnonzero(np.isin(self.source.labels, identities))
        return FacePairs(
            self.source.labels[positions], lambda index, out=None: self.source.load(int(positions[index]), out)
        )

    def validates_at(self, step: int) -> bool:
        """Whether the run validates when `step` optimizer steps are done."""
        return step % self.interval == 0 or step == self.steps

    @property
    def segments_left(self) -> int:
        """How many stretches of training, each ended by a validation, lie ahead."""
        done = self.progress.step
        return 0 if done >= self.steps else -(-self.steps // self.interval) - done // self.interval

    def look(self) -> None:
        """Loads an image of each set, so that what fits nowhere is refused before anything is trained.

        Raises:
            ValueError: where a loader cannot be made, or an image cannot be read or has another size.
        """
        self.train_dataloader()
        wanted = (self.source.size, self.source.size, 3)
        first = int(self.subset[0])
        looks = [("data", self.source, first), ("benchmark", self.report, 0)]
        for group, images, number in [*looks, *([("benchmark", self.selection, 0)] if self.selection else [])]:
            shape = images.load(number).shape
            if shape != wanted:
                raise ValueError(
                    f"{group}: its image {number} has shape {shape}, but the network is trained on {wanted}: make "
                    f"{group}.size and the images agree with data.size"
                )

    def train_dataloader(self) -> TrainLoader:
        """The batches from where the run stands up to the next validation."""
        start = self.progress.step
        stop = min(self.steps, (start // self.interval + 1) * self.interval)
        rank, world = rank_and_world()
        return TrainLoader(
            self.source,
            self.subset,
            self.labels,
            self.plan,
            seed=self.seed,
            draws=self.draws,
            start=start,
            stop=stop,
            rank=rank,
            world=world,
            pin=self.options.on_gpu,
            threads=self.loader["threads"],
            prefetch=self.loader["prefetch"],
        )

    def val_dataloader(self) -> EvalLoader | list[Any]:
        """The held-out training identities, which choose best.ckpt; nothing where none are held out."""
        return [] if self.selection is None else self._evaluation(self.selection)

    def test_dataloader(self) -> EvalLoader:
        """The reported benchmark."""
        return self._evaluation(self.report)

    def _evaluation(self, images: PairSet) -> EvalLoader:
        rank, world = rank_and_world()
        return EvalLoader(
            images,
            batch_size=max(1, self.options.batch_size // world),
            rank=rank,
            world=world,
            pin=self.options.on_gpu,
            threads=self.loader["threads"],
            prefetch=self.loader["prefetch"],
        )


def _draw(benchmark: Any) -> tuple[int, int, int, int]:
    """How held-out pairs are drawn: as the benchmark draws its own."""
    return benchmark.count, benchmark.folds, benchmark.seed, benchmark.size
