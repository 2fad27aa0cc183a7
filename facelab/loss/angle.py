"""The angle behind a cosine, its sine, and the choice between two gradients, for margins that need them."""

from collections.abc import Callable

import torch
from torch import Tensor


def sine(cosine: Tensor) -> Tensor:
    """Sine of the angle in [0, π]; at cosθ = ±1 and, by rounding, beyond it is 0, with derivative 0 instead of ∞."""
    squared = (1 - cosine) * (1 + cosine)
    inside = squared > 0
    return torch.where(inside, torch.where(inside, squared, 1).sqrt(), 0)


def straight_through(cosine: Tensor, mapped: Tensor) -> Tensor:
    """The value of ``mapped`` with the gradient of ``cosine``."""
    return cosine + (mapped - cosine).detach()


def angle(cosine: Tensor) -> Tensor:
    """(B,) cosines → (B,) angles in [0, π]; at ±1 and, by rounding, beyond it is 0 or π, with derivative 0 not ∞.

    That derivative is never missed: the cosine itself does not change with the embedding there.
    """
    return torch.atan2(sine(cosine), cosine)


def formula(cosine: Tensor, mapped: Tensor) -> Tensor:
    """``mapped`` as it is, with its own derivative."""
    return mapped


_GRADIENT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"true": formula, "straight_through": straight_through}


def chosen_gradient(gradient: bool | str) -> Callable[[Tensor, Tensor], Tensor]:
    """What an option `gradient` stands for: a function (cosine, mapped) → mapped with that gradient.

    Args:
        gradient: ``True``: the derivative of the mapping; ``"straight_through"``: it is taken to be 1, as in public
            code that maps the cosines under ``no_grad``.

    Raises:
        ValueError: it is neither.
    """
    name = str(gradient).lower()
    if name not in _GRADIENT:
        raise ValueError(f"gradient={name} is unknown: choose one of {', '.join(_GRADIENT)}")
    return _GRADIENT[name]
