"""SGD and AdamW that move, of a parameter with a sparse gradient, only the rows that the gradient has.

So a class that was not sampled does not move at all, neither by weight decay nor by momentum, and its momentum waits.
The gradient and all that is computed of it are as small as the sample. The momentum itself belongs to each class, and
so has the size of the centres. Parameters with an ordinary gradient are torch's affair.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class _ByRows(torch.optim.Optimizer):
    """Before torch's own optimizer in the order of bases: it never sees a sparse gradient."""

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Any:
        """One step; Lightning gives a closure, which is called before."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        with _aside(self) as sparse:
            self.prepare()
            super().step()
        for group, parameter, rows, values in sparse:
            self.move(group, parameter, rows, values)
        return result

    def prepare(self) -> None:
        """Called before torch's own step."""

    def move(self, group: dict[str, Any], parameter: nn.Parameter, rows: Tensor, values: Tensor) -> None:
        """Moves some rows (n,) of a parameter by their gradient (n,…)."""
        raise NotImplementedError


class RowSGD(_ByRows, torch.optim.SGD):
    """torch.optim.SGD, by rows where the gradient is sparse."""

    def prepare(self) -> None:
        """Torch's fused step wants all momenta or none: one that is lacking begins with zeros, which is the same."""
        for group in self.param_groups:
            if group["fused"] and group["momentum"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        _state(self, parameter, "momentum_buffer", parameter)

    def move(self, group: dict[str, Any], parameter: nn.Parameter, rows: Tensor, values: Tensor) -> None:
        """As torch does, with these rows' momentum alone."""
        values = values.add(parameter.index_select(0, rows), alpha=group["weight_decay"])
        if group["momentum"]:
            buffer = _state(self, parameter, "momentum_buffer", parameter)
            moved = buffer.index_select(0, rows).mul_(group["momentum"]).add_(values)
            buffer.index_copy_(0, rows, moved)
            values = values.add_(moved, alpha=group["momentum"]) if group["nesterov"] else moved
        parameter.index_add_(0, rows, values, alpha=-group["lr"])


class RowAdamW(_ByRows, torch.optim.AdamW):
    """torch.optim.AdamW, by rows where the gradient is sparse; each row counts the steps of its own."""

    def move(self, group: dict[str, Any], parameter: nn.Parameter, rows: Tensor, values: Tensor) -> None:
        """As torch does, with these rows' averages and numbers of steps."""
        steps = _state(self, parameter, "step", parameter[:, 0].float())
        steps.index_add_(0, rows, torch.ones_like(steps[rows]))
        count = steps[rows, None].double()
        averages = []
        for name, beta, new in (("exp_avg", 0, values), ("exp_avg_sq", 1, values.square())):
            average, beta = _state(self, parameter, name, parameter), group["betas"][beta]
            moved = average.index_select(0, rows).lerp_(new, 1 - beta)
            average.index_copy_(0, rows, moved)
            averages.append(moved / (1 - beta**count).to(moved))
        kept = parameter.index_select(0, rows).mul_(1 - group["lr"] * group["weight_decay"])
        change = averages[0].div_(averages[1].sqrt_().add_(group["eps"]))
        parameter.index_copy_(0, rows, kept.sub_(change, alpha=group["lr"]))


def _state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, name: str, like: Tensor) -> Tensor:
    """What the optimizer remembers under this name; zeros at first."""
    state = optimizer.state[parameter]
    if name not in state:
        state[name] = torch.zeros_like(like)
    return state[name]


@contextmanager
def _aside(optimizer: torch.optim.Optimizer) -> Iterator[list[tuple[dict[str, Any], nn.Parameter, Tensor, Tensor]]]:
    """Hides parameters with a sparse gradient from torch's step: → (group, parameter, rows, values of the gradient)."""
    found, gradients = [], []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and parameter.grad.is_sparse:
                gradient = parameter.grad.coalesce()
                found.append((group, parameter, gradient.indices()[0], gradient.values()))
                gradients.append(gradient)
                parameter.grad = None
    try:
        yield found
    finally:
        for (_, parameter, _, _), gradient in zip(found, gradients, strict=True):
            parameter.grad = gradient
