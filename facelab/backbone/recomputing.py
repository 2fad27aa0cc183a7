"""Less memory in training: what is inside a unit is forgotten, and computed again when its gradient is due.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016. Of each unit of the inner stages (a residual unit, a
transformer's block) only the input is kept. It costs a second forward pass of these units, a third more work.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from facelab.backbone.attention import CBAM
from facelab.backbone.stages import stages


def recompute(network: nn.Module) -> None:
    """Lets a network keep less for its backward pass, in place; gradients, random draws and statistics stay the same.

    It is so in training alone, and where gradients are recorded. Names of parameters stay.

    Args:
        network: with a method `stages()`, not compiled.

    Raises:
        ValueError: the network does not say its stages.
    """
    for stage in stages(network)[1:-1]:
        for unit in stage.modules:
            vars(unit)["forward"] = _Recomputed(unit)


class _Recomputed:
    """Stands in for a unit's `forward`."""

    def __init__(self, unit: nn.Module):
        self.unit = unit  # a copy of the network copies this along with it

    def __call__(self, *inputs: Any) -> Any:
        forward = type(self.unit).forward
        if not (self.unit.training and torch.is_grad_enabled()):
            return forward(self.unit, *inputs)
        # Dropout and drop path draw the same numbers again: the state of the generators is kept.
        return checkpoint(forward, self.unit, *inputs, use_reentrant=False, context_fn=self._contexts)

    def _contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _again(self.unit)


@contextmanager
def _again(unit: nn.Module) -> Iterator[None]:
    """What has been noted of the first pass is not noted twice: statistics of batch norms, attention maps."""
    norms = [module for module in unit.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    attention = [module for module in unit.modules() if isinstance(module, CBAM)]
    counted = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    recorded = [(module, module.record) for module in attention]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    for module in attention:
        module.record = None
    try:
        yield
    finally:
        for norm, momentum, count in counted:
            norm.momentum, norm.num_batches_tracked = momentum, count
        for module, record in recorded:
            module.record = record
