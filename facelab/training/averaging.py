"""The average of a network's weights over its training, which often does better than the last ones."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Average(nn.Module):
    """An exponential moving average of a backbone and its head, in float32.

    After step t = 0, 1, … every parameter of the average becomes d·average + (1−d)·parameter, with
    d = min(decay, (1+t)/(10+t)): early on the average forgets fast, so that the random values it began with do not stay
    in it (the rule of TensorFlow's `ExponentialMovingAverage` with `num_updates`). d depends on the step alone, so a
    resumed run needs nothing but the tensors. Averages of weights: Polyak and Juditsky, 1992; Tarvainen and Valpola,
    "Mean teachers", 2017.

    Buffers are averaged in the same way where they are floating point: the running mean and variance of a batch norm
    then belong to the same stretch of training as the weights that they serve. Counters are copied.

    Every rank has the same parameters after a step, and so makes the same average without a word between them. Running
    statistics are each rank's own, as they are in the network itself: those of rank 0 count (`strategy.share_buffers`).

    Args:
        backbone: the network in training; copied, with its hooks.
        head: what follows it; copied.
        decay: in (0, 1); 0.999 to 0.9999, the nearer to 1 the longer the training.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, decay: float):
        super().__init__()
        self.decay = decay
        self.backbone, self.head = copy.deepcopy(backbone), copy.deepcopy(head)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Average":
        """It is never trained: its batch norms use their running statistics, and nothing is dropped."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) in [−1,1] → (B,D) embeddings, not normalised."""
        return self.head(self.backbone(images))

    @torch.no_grad()
    def update(self, backbone: nn.Module, head: nn.Module, step: int) -> None:
        """Takes in the weights after optimizer step `step` = 0, 1, …"""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        own, new, counters = self._pairs(backbone, head)
        torch._foreach_lerp_(own, new, weight)
        for mine, theirs in counters:
            mine.copy_(theirs)

    @torch.no_grad()
    def restart(self, backbone: nn.Module, head: nn.Module) -> None:
        """Begins with these weights: for a network that was changed before its first step."""
        own, new, counters = self._pairs(backbone, head)
        for mine, theirs in [*zip(own, new, strict=True), *counters]:
            mine.copy_(theirs)

    def _pairs(
        self, backbone: nn.Module, head: nn.Module
    ) -> tuple[list[Tensor], list[Tensor], list[tuple[Tensor, Tensor]]]:
        """Averaged tensors, those of the network in the same order, and the pairs that are only copied."""
        pairs = [
            pair
            for mine, theirs in ((self.backbone, backbone), (self.head, head))
            for pair in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True)
        ]
        averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        return [a for a, _ in averaged], [b for _, b in averaged], [p for p in pairs if not p[0].is_floating_point()]


def shipped(module: Any) -> Any:
    """What best.ckpt holds of a FaceModule: with an average, its networks under the names of those in training."""
    return module if module.average is None else _Shipped(module, module.average)


class _Shipped(nn.Module):
    def __init__(self, module: Any, average: Average):
        super().__init__()
        self.backbone, self.head, self.loss = average.backbone, average.head, module.loss
        self.sharded, self.shard_start, self.shard_stop = module.sharded, module.shard_start, module.shard_stop
