"""Brings a data set, the plan and the loader together, and says who is trained, held out and reported."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
from torch import Tensor

from facelab.benchmark.pair_files import FacePairs
from facelab.data.albumentation import Albumentations
from facelab.data.loading import Loading
from facelab.data.plan import Plan
from facelab.data.select import take
from facelab.data.split import hold_out
from facelab.data.torch_loader import EvalLoader, TrainLoader
from facelab.loss.collective import rank_and_world
from facelab.training import closed_set
from facelab.training.checkpoint import Progress
from facelab.training.options import TrainerOptions


class People(NamedTuple):
    """Who of a data set does what."""

    labels: np.ndarray  # (N,) identity of each image, -1 where it is left out
    trained: np.ndarray  # identities
    chooses: np.ndarray  # held out, to choose best.ckpt
    reports: np.ndarray  # held out, to report on


def divide(labels: np.ndarray, kept: np.ndarray, holdout: Mapping[str, Any], reports: bool) -> People:
    """Divides the identities of a data set.

    Args:
        labels: (N,) identity of each image.
        kept: (N,) bool, which images count.
        holdout: `fraction` of the identities that are never trained on, `seed` of their choice.
        reports: whether a run without a benchmark of its own reports on half of those, and chooses on the other.

    Raises:
        ValueError: where the images that are kept are of one identity, or too few identities can be held out.
    """
    if not kept.all():
        labels = np.where(kept, labels, -1)
    there = labels[kept]
    if len(there) == 0 or there.min() == there.max():
        raise ValueError(
            f"data: {len(there):,} of {len(kept):,} images are kept, and they are not of two identities: mend the "
            "images, or keep more of them (data.inspect)"
        )
    trained, held = hold_out(there, holdout["fraction"], holdout["seed"])
    return People(labels, trained, *((held[::2], held[1::2]) if reports else (held, held[:0])))


def faces(source: Any, labels: np.ndarray, identities: np.ndarray) -> FacePairs:
    """The images of some identities, from which pairs can be drawn."""
    positions = np.flatnonzero(np.isin(labels, identities))
    return FacePairs(labels[positions], lambda index, out=None: source.load(int(positions[index]), out))


class FaceData(pl.LightningDataModule):
    """The training identities in the plan's order, and the held-out ones as verification pairs.

    Of a closed-set benchmark, images are held out in their place (facelab.training.closed_set), and have to be named.

    Args:
        source: a data set of facelab.data: `labels`, `num_classes`, `size`, `load(index, out=None)`.
        holdout: `fraction` of the identities (closed set: of each one's images) that is never trained on, `seed` of
            their choice.
        choices: which of the others are trained on, `data.take`; None: all of them.
        loader: how batches come about.
        benchmark: opens the reported pair set.
        options: the trainer group; its batch_size is global.
        seed: the run's seed.
        draws: random numbers an image needs for its augmentation.
        progress: where the run stands; the loader starts there.
        transforms: what processes do to each image before it goes to the device; None: threads load it as it is.
        sampler: makes the plan of (labels, batch_size, seed).
        others: a data set whose people are reported on, where the benchmark has no pairs; None: those held out.

    Raises:
        ValueError: where the batch is larger than the data, the processes are more than the identities, too few
            identities can be held out, there are no such images to train on as were chosen, the sampler cannot make a
            batch of them, or both the benchmark and `others` are to be reported on.
        FileNotFoundError: where the benchmark's files are missing.
    """

    def __init__(
        self,
        source: Any,
        holdout: Mapping[str, Any],
        choices: Mapping[str, Any] | None,
        loader: Loading,
        benchmark: Any,
        options: TrainerOptions,
        seed: int,
        draws: int,
        progress: Progress,
        transforms: Albumentations | None,
        sampler: Callable[..., Plan],
        others: Any,
    ):
        super().__init__()
        if others is not None and (benchmark.path is not None or closed_set.is_closed(source, benchmark)):
            raise ValueError(
                "data.report names people to report on, and so does the benchmark: leave benchmark.path out, or set "
                "data.report=null"
            )
        self.others = None if others is None else faces(others, others.labels, np.unique(others.labels))
        self.transforms, self.sampler = transforms, sampler
        self.source, self.loader, self.options = source, loader, options
        self.seed, self.draws, self.progress = seed, draws, progress
        self.holdout, self.choices, self.benchmark = holdout, choices, benchmark
        if benchmark.path is not None:
            self.report: Any = benchmark.open(None)
        self.divide(np.ones(len(source.labels), dtype=bool))
        self.train_dataloader()  # what it refuses is refused before images are looked at

    def divide(self, kept: np.ndarray) -> None:
        """Who is trained, who is held out, and the plan: of the images that are kept, (N,) bool.

        Raises:
            ValueError: as the constructor; and where the kept images are of one identity.
        """
        source, benchmark, options = self.source, self.benchmark, self.options
        self.selection: Any = None
        self.closed = closed_set.is_closed(source, benchmark)
        if self.closed:
            shares = closed_set.share_out(source, kept, self.holdout, self.choices)
            self.taken = shares.taken
            self.selection = None if shares.chooses is None else benchmark.select(shares.chooses)
            self.report = benchmark.open(shares.reports)
        else:
            own = benchmark.path is None and self.others is None
            labels, trained, chooses, reports = divide(source.labels, kept, self.holdout, own)
            if len(chooses):
                self.selection = faces(source, labels, chooses).draw("val", *_draw(benchmark))
            if self.others is not None:
                self.report = benchmark.open(self.others)
            elif own:
                self.report = benchmark.open(faces(source, labels, reports) if len(reports) else None)
            self.taken = take(labels, trained, self.choices)
        self.subset, self.labels = self.taken.images, self.taken.labels
        self.num_classes = len(self.taken.identities)
        if options.batch_size > len(self.subset):
            raise ValueError(
                f"trainer.batch_size is {options.batch_size}, but only {len(self.subset)} images are there to train on"
                ": give a smaller batch or more data"
            )
        if options.world > self.num_classes:
            raise ValueError(
                f"trainer.devices × trainer.num_nodes is {options.world}, but only {self.num_classes} identities are "
                "there to train on, and each process holds the centres of some: give fewer processes or more data"
            )
        self.plan = self.sampler(labels=self.labels, batch_size=options.batch_size, seed=self.seed)
        self.steps_per_epoch = self.plan.steps_per_epoch
        self.steps = options.epochs * self.steps_per_epoch
        if options.max_steps is not None:
            self.steps = min(self.steps, options.max_steps)
        self.interval = max(1, round(options.validate_every * self.steps_per_epoch))

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
            ValueError: where a loader cannot be made, an image cannot be read or has another size, or albumentations
                give it one.
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
        if self.transforms is not None:
            self.transforms.check(self.source.load(first))

    def train_dataloader(self) -> TrainLoader:
        """The batches from where the run stands up to the next validation."""
        start = self.progress.step
        stop = min(self.steps, (start // self.interval + 1) * self.interval)
        return self.loader.training(self.transforms, pin=self.options.on_gpu, **self._order(start, stop))

    def next_images(self) -> Tensor:
        """(b,H,W,3) uint8: this rank's images of the next step as they are stored, and nothing decoded ahead of them.

        Threads decode them whatever the loader: neither DALI nor processes are worth starting for one batch.
        """
        step = self.progress.step
        loader = TrainLoader(threads=self.loader.threads, prefetch=1, pin=False, **self._order(step, step + 1))
        return next(iter(loader)).images

    def _order(self, start: int, stop: int) -> dict[str, Any]:
        """What this rank trains on in these steps, as a loader is told."""
        rank, world = rank_and_world()
        return {
            "source": self.source,
            "subset": self.subset,
            "labels": self.labels,
            "plan": self.plan,
            "seed": self.seed,
            "draws": self.draws,
            "start": start,
            "stop": stop,
            "rank": rank,
            "world": world,
        }

    def val_dataloader(self) -> EvalLoader | list[Any]:
        """The held-out training identities, which choose best.ckpt; nothing where none are held out."""
        return [] if self.selection is None else self._evaluation(self.selection)

    def test_dataloader(self) -> EvalLoader:
        """The reported benchmark."""
        return self._evaluation(self.report)

    def _evaluation(self, images: Any) -> EvalLoader:
        rank, world = rank_and_world()
        batch_size = max(1, self.options.batch_size // world)
        return self.loader.evaluation(images, batch_size, rank, world, pin=self.options.on_gpu)


def _draw(benchmark: Any) -> tuple[int, int, int, int]:
    """How held-out pairs are drawn: as the benchmark draws its own."""
    return benchmark.count, benchmark.folds, benchmark.seed, benchmark.size
