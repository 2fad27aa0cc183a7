"""Batch norms of the global batch: the ranks' statistics put together, so that W processes train as one does.

Without it each rank normalises by its own images, which is the field's practice with some dozens of images a card. Then
the number of processes is a part of the experiment, as the batch of each is.

torch.nn.SyncBatchNorm does the same on GPUs and refuses a CPU; its computation is used where images lie on a GPU.
"""

from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules._functions import SyncBatchNorm as OnGpu

# torch names it so since 1.0; it is the base of all batch norms, timm's included.
BatchNorm = nn.modules.batchnorm._BatchNorm


class SynchronisedBatchNorm1d(nn.BatchNorm1d):
    """nn.BatchNorm1d of the images of all ranks; the same parameters and buffers under the same names."""

    def forward(self, input: Tensor) -> Tensor:
        """(b,C) or (b,C,L) of this rank → the same shape."""
        return _normalised(self, input)


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d of the images of all ranks."""

    def forward(self, input: Tensor) -> Tensor:
        """(b,C,H,W) of this rank → the same shape."""
        return _normalised(self, input)


class SynchronisedBatchNormAct2d(BatchNormAct2d):
    """timm's batch norm with its activation, of the images of all ranks."""

    def forward(self, x: Tensor) -> Tensor:
        """(b,C,H,W) of this rank → the same shape."""
        return self.act(self.drop(_normalised(self, x)))


SYNCHRONISED: dict[type[nn.Module], type[BatchNorm]] = {
    nn.BatchNorm1d: SynchronisedBatchNorm1d,
    nn.BatchNorm2d: SynchronisedBatchNorm2d,
    BatchNormAct2d: SynchronisedBatchNormAct2d,
}


def synchronise(*networks: nn.Module) -> None:
    """Makes the batch norms of networks those of all ranks, in place; with one process nothing changes.

    The modules stay the same objects, so whoever holds, froze or recomputes them need not know of it. Evaluation is as
    before, by the running statistics; a batch norm that is kept in evaluation mode (a frozen stage) asks nobody.

    Raises:
        ValueError: a batch norm of an unknown kind, which does something of its own.
    """
    for network in networks:
        for name, module in network.named_modules():
            if not isinstance(module, BatchNorm) or type(module) in SYNCHRONISED.values():
                continue
            if type(module) not in SYNCHRONISED:
                raise ValueError(
                    f"trainer.sync_batchnorm=true: {name} of {type(network).__name__} is a {type(module).__name__}, "
                    "which cannot be synchronised: set it to false, or choose another backbone"
                )
            module.__class__ = SYNCHRONISED[type(module)]


@torch.compiler.disable
def _normalised(norm: Any, x: Tensor) -> Tensor:
    """The batch norm itself; while a unit is recomputed its counter is None and its momentum 0."""
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world == 1 or not norm.training:
        return BatchNorm.forward(norm, x)
    norm._check_input_dim(x)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    arguments = (x, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps, momentum)
    if x.is_cuda:
        return OnGpu.apply(*arguments, dist.group.WORLD, world)
    return _OverRanks.apply(*arguments)


class _OverRanks(torch.autograd.Function):
    """Batch norm in training over all ranks, which may have unequal numbers of images, or none.

    Sums are put together in float64 and in the order of ranks, so all ranks hold the same statistics to the last bit.
    Variances come from each rank's deviations from its own mean (Chan et al., 1983): nothing large is subtracted.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        eps: float,
        momentum: float,
    ) -> Tensor:
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        own = values.numel() // values.shape[1]
        mean = values.sum(_others(x)) / max(own, 1)
        squares = (values - _along(mean, x)).square().sum(_others(x))
        mean, squares, count = _put_together(mean, squares, own)
        if count < 2:
            raise ValueError(
                f"a batch norm needs 2 values or more of each channel, and got {count:g}: enlarge the batch"
            )
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((squares / (count - 1)).to(running_var.dtype), momentum)
        variance = squares / count
        ctx.count = count
        ctx.save_for_backward(x, weight, mean.to(values.dtype), (variance + eps).rsqrt().to(values.dtype))
        return F.batch_norm(x, mean.to(values.dtype), variance.to(values.dtype), weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        grad = grads[0].to(mean.dtype)
        normal = (x.to(mean.dtype) - _along(mean, x)) * _along(inverse, x)
        # Those of weight and bias are this rank's, to be averaged with the others' as all gradients are.
        own = torch.stack([grad.sum(_others(x)), (grad * normal).sum(_others(x))])
        both = own.clone()
        dist.all_reduce(both)
        both /= ctx.count
        scale = inverse if weight is None else inverse * weight
        result = (grad - _along(both[0], x) - normal * _along(both[1], x)) * _along(scale, x)
        learns = weight is not None
        return (result.to(x.dtype), own[1] if learns else None, own[0] if learns else None, None, None, None, None)


def _others(x: Tensor) -> list[int]:
    """All dimensions but that of the channels."""
    return [0, *range(2, x.dim())]


def _along(channels: Tensor, x: Tensor) -> Tensor:
    """(C,) as it is combined with x."""
    return channels.reshape(1, -1, *[1] * (x.dim() - 2))


def _put_together(mean: Tensor, squares: Tensor, own: int) -> tuple[Tensor, Tensor, float]:
    """Mean (C,), sum of squared deviations from it (C,) and number of the values of all ranks, of those of each."""
    mine = torch.cat([mean, squares, mean.new_tensor([own])]).double()
    told = mine.new_empty(dist.get_world_size() * len(mine))
    dist.all_gather_into_tensor(told, mine)
    means, squared, counts = told.view(-1, len(mine)).split([len(mean), len(mean), 1], dim=1)
    count = counts.sum()
    mean = (means * counts).sum(0) / count
    return mean, squared.sum(0) + (counts * (means - mean).square()).sum(0), float(count)
