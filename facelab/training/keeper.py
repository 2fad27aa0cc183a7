"""Callbacks that keep what a run found: rows of its history, checkpoints, and its word when it is asked to stop."""

import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl
import torch
from torch import distributed as dist

from facelab.loss.collective import rank_and_world
from facelab.training import checkpoint
from facelab.training.averaging import shipped
from facelab.training.background import Writer
from facelab.training.histograms import FILE
from facelab.training.logging import Copy
from facelab.training.preemption import Interrupted, StopRequest
from facelab.training.record import History, RunDirectory
from facelab.training.stored import Start

VOTE_EVERY = 8  # steps: a vote of several ranks waits for their devices, and a signal can wait for a few steps


class Recorder(pl.Callback):
    """Writes metrics.csv, the same rows to W&B, and histograms.npz.

    Args:
        history: the file; None on ranks that do not write.
        copy: where the rows go besides.
        every: steps between two rows of training.
    """

    def __init__(self, history: History | None, copy: Copy, every: int):
        self.history, self.copy, self.every = history, copy, every
        self._since = (time.perf_counter(), 0)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        """The clock of images/s starts anew, so that a validation's time is not counted as training's."""
        self._since = (time.perf_counter(), module.progress.images)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A row every so many steps, and at the end of a segment."""
        progress, data = module.progress, module.data
        ends = data.validates_at(progress.step)
        if self.history is not None and module.histograms.ends_at(progress.step):
            module.histograms.write(self.history.path.with_name(FILE), progress.step, data.options.batch_size)
        if progress.step % self.every and not ends:
            return
        means = module.take_window()
        medians = module.histograms.take_medians()
        then, images = self._since
        elapsed = time.perf_counter() - then
        progress.seconds += elapsed
        self._since = (time.perf_counter(), progress.images)
        row = {
            "lr": module.rate(progress.step - 1),
            **{f"train/{key}": mean for key, mean in means.items()},
            **{f"train/{kind}_median": median for kind, median in medians.items()},
            "images_per_s": (progress.images - images) / elapsed,
        }
        self._write(module, row)

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        """One row."""
        self._write(module, module.result.metrics)

    def _write(self, module: Any, values: dict[str, float]) -> None:
        if self.history is None:
            return
        progress = module.progress
        where = {
            "step": progress.step,
            "images": progress.images,
            "epoch": progress.step / module.data.steps_per_epoch,
            "seconds": round(progress.seconds, 3),
        }
        self.history.write({**where, **values})
        self.copy.log({**where, **values}, progress.step)


class Keeper(pl.Callback):
    """Saves and restores last.ckpt and best.ckpt, and answers a request to stop.

    Args:
        run: where they go.
        stop: what signals have asked for.
        meta: what a checkpoint says of itself beside its progress: configuration, classes, input convention.
        every_steps: steps between two savings; None: at validations only.
        every_minutes: the same in minutes.
        start: the checkpoint that the run goes on from; None where it begins.
        background: whether training goes on while they are written.
    """

    def __init__(
        self,
        run: RunDirectory,
        stop: StopRequest,
        meta: dict[str, Any],
        every_steps: int | None,
        every_minutes: float | None,
        start: Start | None,
        background: bool,
    ):
        self.run, self.stop, self.meta = run, stop, meta
        self.every_steps, self.every_minutes = every_steps, every_minutes
        self.writer = Writer(background)
        self.source = None if start is None else start.path  # the newest checkpoint that is whole
        self.resumed = start is not None
        self._first = -1 if start is None else start.meta["step"]
        self.reported: dict[str, Any] = {}  # what the checkpoint says that is reported
        self._saved = time.monotonic()

    def setup(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
        """The first thing that the ranks do together: see that all go on from the same checkpoint.

        Raises:
            ValueError: on every rank, where they do not.
        """
        if rank_and_world()[1] > 1:
            first = torch.tensor([float(self._first), -float(self._first)], device=trainer.strategy.root_device)
            dist.all_reduce(first, op=dist.ReduceOp.MAX)
            if first[0] != -first[1]:
                raise ValueError(
                    f"the processes find different checkpoints in {self.run.last.parent} (of step {int(first[0]):,} "
                    f"and of step {-int(first[1]):,}; -1: none): see that all machines read the same files, and start "
                    "the same command again"
                )

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Everything is put back as it was when the run stopped."""
        self.stop.take_back()
        if self.resumed:
            assert self.source is not None
            checkpoint.load(self.source, module, trainer.optimizers[0])
            module.unpack_window()
            if module.feedback is not None:
                module.feedback.restore(checkpoint.load_sampler(self.source))
            self.resumed = False

    def on_validation_start(self, trainer: pl.Trainer, module: Any) -> None:
        """A validation that was given up is made good before training goes on, with the weights of then."""
        self.stop.take_back()
        if self.resumed:
            assert self.source is not None
            checkpoint.load(self.source, module)
            module.unpack_window()

    def on_test_start(self, trainer: pl.Trainer, module: Any) -> None:
        """The report is on the best checkpoint, or on the last where nobody was held out to choose by.

        Raises:
            FileNotFoundError: somebody has taken the best one away.
        """
        self.stop.take_back()
        self.writer.finish()
        chosen = module.progress.best_step
        if self.run.best.is_file():
            self.reported = checkpoint.load(self.run.best, shipped(module))
        elif chosen < 0:
            assert self.source is not None
            self.reported = checkpoint.load(self.source, module)
        else:
            raise FileNotFoundError(
                f"checkpoint {self.run.best}, chosen at step {chosen:,}, is missing, and its weights are nowhere else: "
                f"put it back; or delete {self.run.best.parent}, and the run begins anew"
            )

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Between validations; where one is due, what it finds is saved with the step."""
        step = module.progress.step
        if rank_and_world()[1] > 1 and step % VOTE_EVERY and not self._is_due(step):
            return
        late = self.every_minutes is not None and time.monotonic() - self._saved > 60 * self.every_minutes
        wishes = (self.stop.received is not None, self.stop.warned, late, self.writer.failed)
        asked, warned, late, failed = self._agree(module, *wishes)
        if failed:
            self.writer.finish()  # which says why
        self.stop.hear(asked, warned)
        if asked or ((self._is_due(step) or late) and not module.data.validates_at(step)):
            self.save(trainer, module)
        if asked:
            self._leave(module)

    def on_validation_batch_end(self, trainer: pl.Trainer, module: Any, *rest: Any) -> None:
        """A validation is given up; the run goes on with it when it is started again.

        Several ranks end it first: they may have unequal numbers of batches, so they cannot vote after each.
        """
        if self.stop.received is not None and rank_and_world()[1] == 1:
            self.save(trainer, module)
            self._leave(module)

    def on_test_batch_end(self, trainer: pl.Trainer, module: Any, *rest: Any) -> None:
        """All training is done and saved: the report is simply made at the next start."""
        if self.stop.received is not None and rank_and_world()[1] == 1:
            self._leave(module)

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Chooses the best by what the benchmark's result says of itself; then saves."""
        module.refuse_bad_numbers(tensors=True)
        progress = module.progress
        metrics = module.result.metrics
        score = module.result.choosing
        progress.validated = progress.step
        if score > progress.best_score:
            progress.best_score, progress.best_step, progress.best = score, progress.step, metrics
        self.save(trainer, module)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        """A segment's end without identities to validate on."""
        if module.data.selection is None:
            self.save(trainer, module)

    def save(self, trainer: pl.Trainer, module: Any) -> None:
        """Writes last.ckpt, and before it best.ckpt where this is the best step; never what is no number.

        Raises:
            Diverged: there is such a number.
            OSError: this checkpoint, or the one before it, cannot be written.
        """
        module.refuse_bad_numbers(tensors=True)
        self.writer.finish()
        progress, about = module.progress, self._describe(module)
        savings = []
        if progress.best_step == progress.step == progress.validated:
            savings.append(self.writer.take(self.run.best, shipped(module), None, about))
        if self.resumed and not trainer.optimizers:
            # A validation made good before training goes on: the tensors that are there, momentum included, still hold.
            self.writer.start(savings)
            self.writer.finish()
            checkpoint.amend(self.run.last, about, self.source)
        else:
            # Before the first step there is no optimizer, and nothing of it to keep.
            optimizer = trainer.optimizers[0] if trainer.optimizers else None
            sampler = {} if module.feedback is None else module.feedback.state()
            whole = self.source == self.run.last  # else it is damaged, and the one before it has to stay
            previous = self.run.previous
            savings.append(self.writer.take(self.run.last, module, optimizer, about, sampler, previous, whole))
            self.writer.start(savings)
        self.source = self.run.last
        self._saved = time.monotonic()

    def _describe(self, module: Any) -> dict[str, Any]:
        module.pack_window()
        module.progress.histograms = module.histograms.pack()
        return {"step": module.progress.step, "progress": asdict(module.progress), **self.meta}

    def _is_due(self, step: int) -> bool:
        return self.every_steps is not None and step % self.every_steps == 0

    def _agree(self, module: Any, *flags: bool) -> tuple[bool, ...]:
        """What any rank wants, all do: a saving needs every rank at the same step."""
        if rank_and_world()[1] == 1:
            return flags
        votes = torch.tensor([float(flag) for flag in flags], device=module.device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return tuple(bool(vote) for vote in votes)

    def _leave(self, module: Any) -> None:
        self.writer.finish()
        step, steps = module.progress.step, module.data.steps
        raise Interrupted(
            f"stopped by {self.stop.received} after step {step:,} of {steps:,}; "
            f"saved {self.run.last}. The same command, started again, goes on from there."
        )


def kept_so_far(directory: RunDirectory) -> str:
    """What is left of a run whose processes have died; what is damaged of it, the next start says."""
    for file in (directory.last, directory.previous):
        with suppress(ValueError, FileNotFoundError):
            return f"The same command goes on from {file}, of step {checkpoint.read_meta(file)['step']:,}"
    return "Nothing that is whole was saved before: the same command says what is damaged, or begins anew"
