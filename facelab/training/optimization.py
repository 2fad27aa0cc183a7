"""Which optimizer, at which learning rate: recipes (SGD, AdamW) and schedules (poly, cosine, multi-step).

The rate is a pure function of the step, so a resumed run needs no scheduler state to be exact.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from facelab.backbone.stages import stages
from facelab.training.rows import RowAdamW, RowSGD


class Schedule(ABC):
    """The share of the full learning rate at each step: a warm-up, then a decay that each subclass defines.

    Args:
        warmup_epochs: epochs over which the rate rises linearly; may be a fraction.

    Raises:
        ValueError: where `warmup_epochs` is negative.
    """

    def __init__(self, warmup_epochs: float):
        if not 0 <= warmup_epochs < math.inf:
            raise ValueError(f"optimizer.schedule.warmup_epochs is {warmup_epochs}: give 0 (none) or more")
        self.warmup_epochs = warmup_epochs

    def factor(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """The share of the full rate for step 0…steps−1, in [0, 1].

        The first of n warm-up steps trains at 1/n of the full rate, the n-th at all of it.
        """
        warm = min(round(self.warmup_epochs * steps_per_epoch), steps)
        if step < warm:
            return (step + 1) / warm
        return self.decay((step - warm) / max(steps - warm, 1), step / steps_per_epoch)

    @abstractmethod
    def decay(self, done: float, epoch: float) -> float:
        """The share after warm-up: `done` in [0, 1) of the remaining steps are gone by, and `epoch` epochs in all."""


class Poly(Schedule):
    """(1 − done)^power; power 1 falls in a straight line to 0, as the recipes of InsightFace do."""

    def __init__(self, warmup_epochs: float, power: float):
        super().__init__(warmup_epochs)
        if not 0 < power < math.inf:
            raise ValueError(f"optimizer.schedule.power is {power}: give a number above 0 (1 is linear)")
        self.power = power

    def decay(self, done: float, epoch: float) -> float:
        """See Schedule."""
        return (1 - done) ** self.power


class Cosine(Schedule):
    """floor + (1 − floor)·½(1 + cos(π·done)) (Loshchilov and Hutter, "SGDR", 2017, eq. 5, without restarts)."""

    def __init__(self, warmup_epochs: float, floor: float):
        super().__init__(warmup_epochs)
        if not 0 <= floor < 1:
            raise ValueError(f"optimizer.schedule.floor is {floor}: give a share of the full rate, from 0 to below 1")
        self.floor = floor

    def decay(self, done: float, epoch: float) -> float:
        """See Schedule."""
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


class MultiStep(Schedule):
    """gamma^(number of milestones gone by), the staircase of the early papers."""

    def __init__(self, warmup_epochs: float, milestones: Sequence[float], gamma: float):
        super().__init__(warmup_epochs)
        if list(milestones) != sorted(milestones) or any(m <= 0 for m in milestones):
            raise ValueError(f"optimizer.schedule.milestones are {list(milestones)}: give rising epochs above 0")
        if not 0 < gamma <= 1:
            raise ValueError(f"optimizer.schedule.gamma is {gamma}: give a factor above 0 and at most 1 (0.1 is usual)")
        self.milestones, self.gamma = list(milestones), gamma

    def decay(self, done: float, epoch: float) -> float:
        """See Schedule."""
        return self.gamma ** sum(epoch >= milestone for milestone in self.milestones)


class Recipe(ABC):
    """An optimizer with its schedule and its clipping.

    Args:
        lr: full learning rate, for the global batch as configured.
        weight_decay: for weights of two dimensions and more; batch norms, biases, PReLU slopes and other vectors and
            scalars are exempt.
        clip_norm: largest global L2 norm of the gradients, over all parameters and ranks; None does not clip.
        schedule: the rate over time.
        stage_decay: the rate of a stage of the backbone as a share of that of the stage behind it, in (0,1]; the last
            one, the output layers, has all of the backbone's (Howard and Ruder, "ULMFiT", 2018: 1/2.6 a layer).
        backbone_factor: the backbone's rate as a multiple of the full one, which head and loss have.

    Raises:
        ValueError: where a number is out of its range.
    """

    def __init__(
        self,
        lr: float,
        weight_decay: float,
        clip_norm: float | None,
        schedule: Schedule,
        stage_decay: float,
        backbone_factor: float,
    ):
        if not 0 < lr < math.inf:
            raise ValueError(f"optimizer.lr is {lr}: give a number above 0")
        if not 0 <= weight_decay < math.inf:
            raise ValueError(f"optimizer.weight_decay is {weight_decay}: give 0 or more")
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"optimizer.clip_norm is {clip_norm}: give a number above 0, or null not to clip")
        if not 0 < stage_decay <= 1:
            raise ValueError(
                f"optimizer.stage_decay is {stage_decay}: give a factor above 0 and at most 1 (1: all stages alike)"
            )
        if not 0 < backbone_factor < math.inf:
            raise ValueError(
                f"optimizer.backbone_factor is {backbone_factor}: give a number above 0 (1: as all others); "
                "backbone.freeze keeps stages as they are"
            )
        self.lr, self.weight_decay, self.clip_norm, self.schedule = lr, weight_decay, clip_norm, schedule
        self.stage_decay, self.backbone_factor = stage_decay, backbone_factor

    @abstractmethod
    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer over the trainable parameters of `model`."""

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """For each rate up to three parameter groups: with weight decay, without, a loss's own parameters without it.

        The last are those listed by a loss under `without_decay` (learnable margins), whatever their shape. `factor` is
        what the rate of a group is multiplied by.
        """
        listed = {id(p) for m in model.modules() for p in getattr(m, "without_decay", ())}
        factors = self._factors(model)
        groups = []
        for factor in sorted({1.0, *factors.values()}, reverse=True):
            alike = [p for p in model.parameters() if p.requires_grad and factors.get(p, 1.0) == factor]
            decayed = [p for p in alike if p.dim() > 1 and id(p) not in listed]
            free = [p for p in alike if p.dim() <= 1 and id(p) not in listed]
            own = [p for p in alike if id(p) in listed]
            groups += [
                {"params": decayed, "weight_decay": self.weight_decay, "factor": factor},
                {"params": free, "weight_decay": 0.0, "factor": factor},
                {"params": own, "weight_decay": 0.0, "factor": factor},
            ]
        return [group for group in groups if group["params"]]

    def _factors(self, model: nn.Module) -> dict[nn.Parameter, float]:
        """Of each of the backbone's parameters; empty where all have the full rate."""
        backbone = getattr(model, "backbone", None)
        if backbone is None or (self.stage_decay == 1 and self.backbone_factor == 1):
            return {}
        if self.stage_decay == 1:
            return dict.fromkeys(backbone.parameters(), self.backbone_factor)
        return {
            parameter: self.backbone_factor * self.stage_decay**place
            for place, stage in enumerate(reversed(stages(backbone)))
            for parameter in stage.parameters()
        }

    def rate(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """The learning rate of step 0…steps−1."""
        return self.lr * self.schedule.factor(step, steps, steps_per_epoch)


class SGD(Recipe):
    """Stochastic gradient descent with momentum, the field's usual choice.

    Args:
        momentum: in [0, 1).
        nesterov: look-ahead momentum.
        lr, weight_decay, clip_norm, schedule, stage_decay, backbone_factor: see Recipe.
    """

    def __init__(
        self,
        lr: float,
        momentum: float,
        nesterov: bool,
        weight_decay: float,
        clip_norm: float | None,
        schedule: Schedule,
        stage_decay: float,
        backbone_factor: float,
    ):
        super().__init__(lr, weight_decay, clip_norm, schedule, stage_decay, backbone_factor)
        if not 0 <= momentum < 1:
            raise ValueError(f"optimizer.momentum is {momentum}: give a number from 0 to below 1 (0.9 is usual)")
        if nesterov and momentum == 0:
            raise ValueError(
                "optimizer.nesterov needs momentum: set optimizer.momentum=0.9 or optimizer.nesterov=false"
            )
        self.momentum, self.nesterov = momentum, nesterov

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """See Recipe. On a GPU a step is a single pass, without a copy of the gradients: centres have large ones."""
        fused = True if all(parameter.is_cuda for parameter in model.parameters()) else None
        return RowSGD(self.groups(model), lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, fused=fused)


class AdamW(Recipe):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019), for transformers.

    Args:
        betas: decay of the two moving averages, each in [0, 1).
        eps: added to the denominator.
        lr, weight_decay, clip_norm, schedule, stage_decay, backbone_factor: see Recipe.
    """

    def __init__(
        self,
        lr: float,
        betas: Sequence[float],
        eps: float,
        weight_decay: float,
        clip_norm: float | None,
        schedule: Schedule,
        stage_decay: float,
        backbone_factor: float,
    ):
        super().__init__(lr, weight_decay, clip_norm, schedule, stage_decay, backbone_factor)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"optimizer.betas are {list(betas)}: give two numbers from 0 to below 1 ([0.9, 0.999])")
        self.betas, self.eps = (betas[0], betas[1]), eps

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """See Recipe."""
        return RowAdamW(self.groups(model), lr=self.lr, betas=self.betas, eps=self.eps)
