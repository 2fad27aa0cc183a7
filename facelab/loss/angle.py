"""The angle behind a cosine, and the choice between two gradients, for margins that need them."""

from collections.abc import Callable

import torch
from torch import Tensor

from facelab.loss.arcface import sine, straight_through


def angle(cosine: Tensor) -> Tensor:
    """(B,) cosines → (B,) angles in [0, π]; at ±1 and, by rounding, beyond it is 0 or π, with derivative 0 not ∞.

    That derivative is never missed: the cosine itself does not change with the embedding there.
    """
    return torch.atan2(sine(cosine), cosine)


def chosen_gradient(gradient: bool | str) -> Callable[[Tensor, Tensor], Tensor]:
    """What an option `gradient` stands for: a function (cosine, mapped) → mapped with that gradient.

    Args:
        gradient: ``True``: the derivative of the mapping; ``"straight_through"``: it is taken to be 1, as in public
            code that maps the cosines under ``no_grad``.

    Raises:
        ValueError: it is neither.
    """
    known: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "true": lambda cosine, mapped: mapped,
        "straight_through": straight_through,
    }
    if str(gradient).lower() not in known:
        raise ValueError(f"gradient={gradient} is unknown: choose one of {', '.join(known)}")
    return known[str(gradient).lower()]
