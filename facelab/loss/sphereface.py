"""SphereFace: the angle multiplied, annealed, and a row scaled by the embedding's length."""

import math

import torch
from torch import Tensor

from facelab.loss.angle import angle, chosen_gradient
from facelab.loss.base import require_between
from facelab.loss.classifier import Context, MarginLoss


class SphereFace(MarginLoss):
    """A-Softmax: the target logit is ‖x‖·(ψ(θ_y) + λ·cosθ_y)/(1 + λ), the others are ‖x‖·cosθ_j.

    ψ(θ) = (−1)^k·cos(mθ) − 2k with k = ⌊mθ/π⌋ falls from 1 at θ=0 to 1−2m at θ=π, for any real m ≥ 1. λ anneals from
    softmax to the margin: λ = max(lambda_min, lambda_base·(1 + lambda_gamma·i)^−lambda_power) at the i-th step, i
    counted from 1. The gradient flows through ‖x‖.

    Source: SphereFace, arXiv:1704.08063, equation 7; the annealing and its numbers from the authors' Caffe layer.

    What differs from public code: the Caffe layer has the same value, but divides the target gradient by its own length
    (its readme calls that a strategy); here it is the derivative. opensphere's SphereFace is ``scale=30, margin=1.7,
    lambda_base=0, lambda_min=0, gradient="straight_through"``.

    Args:
        embedding_size: D.
        num_classes: C, over all ranks.
        scale: ``"norm"`` for ‖x‖, with its gradient; or a number s that takes its place.
        margin: m, a factor on the angle, 1…8; the paper's 4.
        lambda_base: λ before the first step.
        lambda_gamma: how fast λ falls, per step.
        lambda_power: its exponent.
        lambda_min: λ's floor; 0 leaves nothing of the plain cosine.
        gradient: ``True`` for the derivative of the formula, ``"straight_through"`` for ∂target/∂cosθ_y = 1.

    Raises:
        ValueError: an option is out of range or unknown.
    """

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        scale: float | str,
        margin: float,
        lambda_base: float,
        lambda_gamma: float,
        lambda_power: float,
        lambda_min: float,
        gradient: bool | str,
    ):
        if isinstance(scale, str) and scale != "norm":
            raise ValueError(f"scale={scale} is unknown: give norm (the embedding's length) or a number such as 30")
        super().__init__(embedding_size, num_classes, 1.0 if isinstance(scale, str) else scale)
        require_between("margin", margin, 1.0, 8.0)
        for name, value in (("lambda_base", lambda_base), ("lambda_min", lambda_min)):
            require_between(name, value, 0.0, 1e6)
        require_between("lambda_gamma", lambda_gamma, 0.0, 1e3)
        require_between("lambda_power", lambda_power, 0.0, 10.0)
        self.by_norm, self.margin, self.gradient = scale == "norm", margin, chosen_gradient(gradient)
        self.lambda_base, self.lambda_min = lambda_base, lambda_min
        self.lambda_gamma, self.lambda_power = lambda_gamma, lambda_power

    def annealing(self, step: int) -> float:
        """λ at a step that is counted from 0."""
        fallen = self.lambda_base * (1 + self.lambda_gamma * (step + 1)) ** -self.lambda_power
        return max(self.lambda_min, fallen)

    def row_scale(self, context: Context) -> float | Tensor:
        """Return ‖x‖, or the number that takes its place."""
        return context.norms if self.by_norm else self.scale

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        """Return (ψ(θ_y) + λ·cosθ_y)/(1 + λ)."""
        multiplied = self.margin * angle(cosine)
        turns = torch.floor(multiplied.detach() / math.pi)
        psi = (1 - 2 * turns.remainder(2)) * torch.cos(multiplied) - 2 * turns
        weight = self.annealing(context.step)
        return self.gradient(cosine, (psi + weight * cosine) / (1 + weight))
