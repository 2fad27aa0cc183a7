"""The LightningModule: one optimizer step on a global batch, and embeddings for verification.

Optimization is manual in Lightning's sense, because a run promises what the automatic one does not give: the rate as a
pure function of the step, an average over accumulated parts of any size, and one gradient norm over all ranks.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from facelab.backbone.recomputing import recompute
from facelab.data.augment import normalise
from facelab.data.plan import step_seed, uniforms
from facelab.data.torch_loader import Batch
from facelab.head.base import LearningHead
from facelab.loss.base import Loss, LossOutput, NotFinite
from facelab.loss.classifier import ClassCentres
from facelab.loss.collective import rank_and_world
from facelab.training.averaging import Average
from facelab.training.checkpoint import Progress
from facelab.training.closed_set import answers, speaker_of
from facelab.training.feedback import Feedback
from facelab.training.finite import Watch, refuse_weights
from facelab.training.histograms import Histograms
from facelab.training.lesson import Lesson
from facelab.training.optimization import Recipe
from facelab.training.strategy import clip_gradients, deal_in, exclude_from_ddp, no_sync, share_buffers


def embed(network: Callable[[Tensor], Tensor], images: Tensor, mirror: bool) -> Tensor:
    """What a benchmark is given of each image.

    Args:
        network: (B,3,H,W) in [−1,1] → (B,D).
        images: (B,H,W,3) uint8, RGB.
        mirror: whether the mirrored image's embedding is added.

    Returns:
        (B,D) float32, not normalised.
    """
    inputs = normalise(images)
    embeddings = network(inputs).float()
    return embeddings + network(inputs.flip(3)).float() if mirror else embeddings


class FaceModule(pl.LightningModule):
    """Backbone, head and loss, trained together.

    Args:
        build: makes (backbone, head, loss, distiller); called once, when the ranks have found each other.
        augment: (uint8 images (B,H,W,3), draws (B,k)) → uint8 images, on the device.
        degrade: the same, of what the augmentation gives; its draws are the columns behind those of the augmentation.
        recipe: optimizer and schedule.
        benchmark: turns embeddings and a pair set into metrics.
        data: the datamodule: numbers of steps, pair sets.
        progress: where the run stands; this module moves it.
        seed: the run's seed.
        calibrates: whether the batch norms of the untrained network need statistics: not where it was trained before.
        lesson: what a teacher has to say at each step; None without one, and then there is no distiller either.
    """

    def __init__(
        self,
        build: Callable[[], tuple[nn.Module, nn.Module, Loss, nn.Module | None]],
        augment: nn.Module,
        degrade: Any,
        recipe: Recipe,
        benchmark: Any,
        data: Any,
        progress: Progress,
        seed: int,
        calibrates: bool = True,
        lesson: Lesson | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.build, self.augment, self.degrade, self.recipe = build, augment, degrade, recipe
        self.benchmark, self.data, self.progress, self.seed = benchmark, data, progress, seed
        self.calibrates, self.lesson = calibrates, lesson
        self.accumulate: int = data.options.accumulate
        self.feedback = Feedback(data.plan, self.accumulate) if data.plan.adapts else None
        self.average: Average | None = None
        self.result: Any = None
        self.histograms = Histograms(data.steps, progress.histograms, progress.extended)
        self._embedded: list[Tensor] = []
        self._last: Tensor | None = None
        self.watch = Watch(data.source)
        self.unpack_window()

    def configure_model(self) -> None:
        """Builds the networks, with the same initial values on every rank and for every number of ranks."""
        if hasattr(self, "backbone"):
            return
        torch.manual_seed(step_seed(self.seed, 0, 0))
        backbone, self.head, self.loss, self.distiller = self.build()
        for part in self.loss.modules():
            if isinstance(part, Loss):
                part.even = True  # the loader's batches are, and a rank's parts of them
        self.backbone = backbone.to(memory_format=torch.channels_last)
        self.sharded = [f"loss.{name}" for name in self.loss.sharded_parameters()]
        exclude_from_ddp(self, self.sharded)
        if self.data.options.sync_batchnorm and rank_and_world()[1] > 1:
            from facelab.backbone.synchronised import synchronise  # timm comes with it: a second or two

            synchronise(self.backbone, self.head)
        if self.data.options.checkpointing:
            recompute(self.backbone)
        if self.data.options.ema is not None:
            self.average = Average(self.backbone, self.head, self.data.options.ema)
        if self.data.options.compile:
            self.backbone.compile()
            if self.average is not None:
                self.average.backbone.compile()

    @property
    def shard_start(self) -> int:
        """First class of this rank's shard; 0 for a loss without one."""
        return self._classes[0]

    @property
    def shard_stop(self) -> int:
        """One past the last class of this rank's shard; 0 for a loss without one."""
        return self._classes[1]

    @property
    def _classes(self) -> tuple[int, int]:
        """This rank's; all classifiers of a loss share them alike."""
        shards = (part for part in self.loss.modules() if isinstance(part, ClassCentres))
        return next(((part.start, part.stop) for part in shards), (0, 0))

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) in [−1,1] → (B,D) embeddings, not normalised."""
        return self.head(self.backbone(images))

    def embed(self, images: Tensor) -> Tensor:
        """The same by the network that is validated and reported: the averaged one where there is an average."""
        return self(images) if self.average is None else self.average(images)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimizer; its rate is set at every step."""
        return self.recipe.build(self)

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return self.recipe.rate(step, self.data.steps, self.data.steps_per_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One optimizer step on this rank's share of the global batch."""
        step = self.progress.step
        rank, world = rank_and_world()
        # Dropout and its like are functions of (seed, step, rank): a resumed step draws what it would have drawn.
        torch.manual_seed(step_seed(self.seed, step, rank))
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        for group in optimizer.param_groups:
            group["lr"] = self.rate(step) * group["factor"]
        optimizer.zero_grad()
        first = self.augment.draws
        clean = self.augment(batch.images, batch.draws[:, :first])
        images = self.degrade(clean, batch.draws[:, first:])
        total = torch.zeros((), device=self.device)
        parts = [tensor.tensor_split(self.accumulate) for tensor in (images, clean, batch.labels, batch.indices)]
        for number, (part, undegraded, labels, indices) in enumerate(zip(*parts, strict=True), start=1):
            share = len(labels) / len(batch.labels)
            with nullcontext() if number == self.accumulate else no_sync(self.trainer.strategy):
                output = self._loss(part, undegraded, labels, indices, step)
                self.manual_backward(output.loss * share)
            if self.feedback is not None:
                self.feedback.hear(step, number - 1, output.rows)
            self._last = output.loss.detach()
            total = total + self._last * share
            self.histograms.add(output.rows, step)
            self._add("loss", self._last * share)
            for key, value in output.logs.items():
                self._add(key, value * share)
        norm = self._clip()
        self._add("grad_norm", norm)
        self.watch.step(step, total, norm)
        if self.stops_at_once:
            self.watch.refuse(self.rate)
        optimizer.step()
        if self.average is not None:
            self.average.update(self.backbone, self.head, step)
        self.progress.step += 1
        self.progress.images += len(batch.labels) * world
        self.progress.window["count"] = self.progress.window.get("count", 0) + 1

    @property
    def stops_at_once(self) -> bool:
        """Whether each step is looked at before the weights move: where nothing has to be waited for."""
        return self.device.type == "cpu"

    def _loss(self, images: Tensor, clean: Tensor, labels: Tensor, indices: Tensor, step: int) -> LossOutput:
        maps, own = nullcontext() if self.lesson is None else self.lesson.watch(self.backbone), None
        with maps as seen:
            if isinstance(self.head, LearningHead):
                own = self.head.training_forward(self.backbone(normalise(images)), step)
                embeddings = own.embeddings
            else:
                embeddings = self(normalise(images))
        self.watch.rows(embeddings, indices)
        try:
            if seen is None or self.lesson is None:
                output = self.loss(embeddings, labels, step)
            else:
                output = self.lesson(embeddings, seen, clean, labels, step)
        except NotFinite:
            self.watch.refuse_now(step, self.rate)
            raise
        if own is None:
            return output
        self.histograms.tally(own.counts, step)
        return output._replace(loss=output.loss + own.loss, logs={**output.logs, **own.logs})

    def refuse_bad_numbers(self, tensors: bool) -> None:
        """Ends the run where a step was not finite; waits for the device. Called on all ranks.

        Args:
            tensors: whether to look at the weights themselves as well, which a finite step may have made overflow.

        Raises:
            Diverged: saying which step, and how it was.
        """
        self.watch.refuse(self.rate)
        if tensors:
            step = self.progress.step
            refuse_weights(self, step, self.rate(max(step - 1, 0)))

    def _clip(self) -> Tensor:
        named = [(name, p) for name, p in self.named_parameters() if p.grad is not None]
        _, world = rank_and_world()
        shards = [p for name, p in named if world > 1 and name in self.sharded]
        others = [p for name, p in named if world == 1 or name not in self.sharded]
        return clip_gradients(others, shards, self.recipe.clip_norm)

    def _add(self, key: str, value: Tensor) -> None:
        self._sums[key] = self._sums[key].to(value.device) + value.double() if key in self._sums else value.double()

    def last_loss(self) -> float | None:
        """The loss of the latest step; reading it waits for the device."""
        return None if self._last is None else float(self._last)

    def pack_window(self) -> None:
        """Puts the sums since the last log row into `progress`, for a checkpoint."""
        self.progress.window.update({key: float(value) for key, value in self._sums.items()})

    def unpack_window(self) -> None:
        """Takes them back from there."""
        window = {"loss": 0.0, "accuracy": 0.0, "grad_norm": 0.0, **self.progress.window}
        self._sums = {key: torch.tensor(window[key], dtype=torch.float64) for key in window if key != "count"}

    def take_window(self) -> dict[str, float]:
        """The means since the last log row, and a fresh start.

        Raises:
            Diverged: where a step since then was not finite.
        """
        self.refuse_bad_numbers(tensors=False)
        count = max(self.progress.window.get("count", 0), 1)
        means = {key: float(value) / count for key, value in self._sums.items()}
        self.progress.window.clear()
        self.unpack_window()
        return means

    def on_validation_start(self) -> None:
        """All ranks embed with the batch norms of rank 0, which a checkpoint holds: it keeps what is measured."""
        if self.progress.step == 0 and self.calibrates:
            self._calibrate()
        share_buffers(self.backbone, self.head)
        if self.average is not None:
            share_buffers(self.average)

    def _calibrate(self) -> None:
        """Gives the untrained network's batch norms the statistics of the first batch.

        Training never reads them, and forgets where they began. But with the mean 0 and variance 1 that they are made
        with, the activations of an untrained r100 grow until they are no numbers any more.
        """
        norms = [module for module in self.backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        images = self.data.next_images()
        torch.manual_seed(step_seed(self.seed, 0, 0))
        self.backbone.train()
        for norm in norms:
            norm.momentum = 1.0
        with torch.compiler.set_stance("force_eager"):  # not worth compiling for one batch
            self.backbone(normalise(images.to(self.device)))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        self.backbone.eval()
        if self.average is not None:
            self.average.restart(self.backbone, self.head)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Embeds a batch of the held-out training identities, degraded where that was asked for."""
        images = batch.images
        if self.degrade.validation:
            # Of no epoch and no run's seed: each image is always degraded alike, and runs choose on the same.
            draws = uniforms(0, 0, batch.indices.cpu().numpy(), self.degrade.draws)
            images = self.degrade(images, torch.from_numpy(draws).to(images.device))
        self._embedded.append(embed(self.embed, images, self.benchmark.mirror))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Embeds a batch of the reported benchmark, whose images are what its protocol says."""
        self._embedded.append(embed(self.embed, batch.images, self.benchmark.mirror))

    def on_validation_epoch_end(self) -> None:
        """Scores the held-out training identities."""
        self.result = self._score(self.data.selection)

    def on_test_epoch_end(self) -> None:
        """Scores the reported benchmark."""
        self.result = self._score(self.data.report)

    def _score(self, pairs: Any) -> Any:
        none = torch.empty(0, self.backbone.embedding_size, device=self.device)  # type: ignore[call-overload]
        rows = torch.cat([none, *self._embedded])
        self._embedded = []
        return self.benchmark.evaluate(answers(self.benchmark, deal_in(rows, len(pairs)), speaker_of(self.loss)), pairs)
