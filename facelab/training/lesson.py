"""Lessons: at every step a teacher looks at the student's faces, and what both have seen goes into the loss."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from facelab.backbone.attention import attention_maps
from facelab.backbone.stages import feature_maps
from facelab.data.augment import normalise
from facelab.distill.base import Distiller, Ranks, Seen
from facelab.loss.base import Loss, LossOutput
from facelab.loss.collective import enter_shards, gather_rows, logsumexp_over_shards, rank_and_world, sum_over_shards
from facelab.resampling import antialiased, resample, whole
from facelab.training.objective import margin_of


class Together(Ranks):
    """The ranks of torch.distributed, and the gradients that the losses' own collectives give."""

    def gather(self, rows: Tensor) -> Tensor:
        """See Ranks; all ranks have as many rows, as the loader's batches are."""
        return gather_rows(rows, [len(rows)] * rank_and_world()[1])

    def own(self, rows: Tensor, count: int) -> Tensor:
        """See Ranks."""
        first = rank_and_world()[0] * count
        return rows[first : first + count]

    def enter(self, replicated: Tensor) -> Tensor:
        """See Ranks."""
        return enter_shards(replicated)

    def sum(self, parts: Tensor) -> Tensor:
        """See Ranks."""
        return sum_over_shards(parts)

    def logsumexp(self, parts: Tensor) -> Tensor:
        """See Ranks."""
        return logsumexp_over_shards(parts)


class Teacher:
    """A network that is asked and never changes: without gradients, in evaluation mode, in a precision of its own.

    It is no module of the run's: no checkpoint holds it, and no rank has to be told its weights.

    Args:
        backbone: (B,3,size,size) in [−1,1] → (B,D).
        head: (B,D) → (B,D).
        size: pixels, H = W, of what it takes; images of another size are resized (bicubic, antialiased).
        bf16: whether its convolutions and products are in bf16.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, size: int, bf16: bool):
        self.network = nn.Sequential(backbone, head).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.size, self.bf16 = size, bf16
        self._weights: Tensor | None = None

    @torch.no_grad()
    def see(self, images: Tensor, features: bool, attention: bool) -> Seen:
        """What it makes of images.

        Args:
            images: (B,H,H,3) uint8, RGB.
            features: whether feature maps are kept.
            attention: whether attention maps are.

        Returns:
            Without class centres.
        """
        device = images.device
        if next(self.network.parameters()).device != device:
            self.network.to(device)
        with torch.autocast(device.type, enabled=False):
            inputs = normalise(self._resized(images))
        half = torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)
        with caught(self.network[0], features, attention) as maps, half:
            embeddings = self.network(inputs)
        return maps.seen(embeddings)

    def _resized(self, images: Tensor) -> Tensor:
        side = images.shape[1]
        if side == self.size:
            return images
        if self._weights is None:
            self._weights = torch.from_numpy(whole(antialiased("bicubic", side, self.size))).to(images.device)
        weights = self._weights.expand(len(images), -1, -1)
        return resample(images.float(), weights).to(torch.uint8)


@dataclass
class Caught:
    """Maps of a forward pass, in the order of the network."""

    features: list[Tensor] = field(default_factory=list)
    attention: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def seen(self, embeddings: Tensor) -> Seen:
        """All of it in float32, without class centres."""
        attention = tuple((channel.float(), spatial.float()) for channel, spatial in self.attention)
        return Seen(embeddings.float(), tuple(map(torch.Tensor.float, self.features)), attention)


@contextmanager
def caught(backbone: nn.Module, features: bool, attention: bool) -> Iterator[Caught]:
    """Keeps the maps of what a network computes inside the `with`, those that are asked for."""
    of_features: Any = feature_maps(backbone) if features else nullcontext([])
    of_attention: Any = attention_maps(backbone) if attention else nullcontext([])
    with of_features as some, of_attention as others:
        yield Caught(some, others)


class Lesson:
    """What a student learns at each step beside its own loss, or in its place.

    Args:
        teacher: who is asked.
        weight: of the student's own loss in the sum; what the distiller says has its weight already.
    """

    def __init__(self, teacher: Teacher, weight: float):
        self.teacher, self.weight = teacher, weight
        self.centres: Tensor | None = None  # (C_rank,D) the teacher's, of this rank's classes

    def begin(self, distiller: Distiller, loss: Loss, centres: Tensor | None) -> None:
        """Called once, when the student has been built.

        Args:
            distiller: what compares the two.
            loss: the student's own.
            centres: (C_rank,D) the teacher's class centres, those of the classes that lie in `loss` on this rank.
        """
        self.distiller, self.loss, self.centres = distiller, loss, centres
        margin = margin_of(loss) if distiller.wants_centres or distiller.gives_margins else None
        self.classifier = None if margin is None else margin.classifier
        for part in distiller.modules():
            if isinstance(part, Distiller):
                part.ranks = Together()

    def watch(self, backbone: nn.Module) -> Any:
        """A context in which the student's maps are kept, as far as they are compared."""
        return caught(backbone, self.distiller.wants_features, self.distiller.wants_attention)

    def __call__(self, embeddings: Tensor, maps: Caught, images: Tensor, labels: Tensor, step: int) -> LossOutput:
        """The student's loss with the teacher's word in it.

        Args:
            embeddings: (B,D) the student's.
            maps: what `watch` has kept of the same forward pass.
            images: (B,H,H,3) uint8, the same faces with the same augmentation, not degraded: what the teacher sees.
            labels: (B,) int64.
            step: number of the training step.

        Returns:
            `loss` is the weighted sum; among the logs are `distill`, the distiller's term, and `loss/own`, the loss
            without it.
        """
        distiller = self.distiller
        teacher = self.teacher.see(images, distiller.wants_features, distiller.wants_attention)
        with torch.autocast(embeddings.device.type, enabled=False):
            student = maps.seen(embeddings)
            if self.classifier is not None:
                weight, first = self.classifier.weight, self.classifier.start
                student = replace(student, centres=weight, first=first)
                teacher = replace(teacher, centres=self._centres(weight.device), first=first)
            margins = distiller.margins(teacher, labels)
            term = distiller(student, teacher, labels)
        more = () if margins is None else (margins,)
        output = self.loss(embeddings, labels, step, *more)
        found = _mean_of_ranks(term)
        logs = {**output.logs, "distill": found, "loss/own": output.loss.detach()}
        # The value of the global batch, and the gradient of this rank's images, which is about to be averaged.
        return output._replace(loss=self.weight * output.loss + (term - term.detach() + found), logs=logs)

    def _centres(self, device: torch.device) -> Tensor | None:
        if self.centres is not None:
            self.centres = self.centres.to(device)
        return self.centres


@torch.no_grad()
def _mean_of_ranks(term: Tensor) -> Tensor:
    """For the log: a term is a mean over this rank's images, or the same on all ranks."""
    term = term.detach().clone()
    _, world = rank_and_world()
    if world > 1:
        dist.all_reduce(term)
        term /= world
    return term
