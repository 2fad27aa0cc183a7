"""SphereFace2: every class is a question of its own, is it this person or not?"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from facelab.loss.angle import chosen_gradient
from facelab.loss.base import require_between
from facelab.loss.classifier import Context, MarginLoss
from facelab.loss.collective import enter_shards

_WEIGHT = 50.0  # of the authors' code; it sets the size of the gradients for their learning rate


class SphereFace2(MarginLoss):
    """One against all, with a cosine margin on both sides; no softmax, so no class competes with another.

    z_y = r·(g(cosθ_y) − m) + b, z_j = r·(g(cosθ_j) + m) + b, g(c) = 2·((c + 1)/2)^t − 1, and

        L = (50/r)·( α·log(1 + exp(−z_y)) + (1 − α)·Σ_j log(1 + exp(z_j)) )

    b is learnable, one for all classes; it starts where at cosθ = 0 the two sides pull on it equally.

    Source: SphereFace2, arXiv:2108.01513, equation 5; the weight 50/r and the start of b from opensphere, the authors'
    code, whose gradient is ``straight_through`` and which keeps its centres at length 1.

    Args:
        embedding_size: D.
        num_classes: C, over all ranks.
        scale: r, 20…64; the paper's 40.
        margin: m, in units of g, 0…1; the paper's 0.4.
        exponent: t, 1…10; above 1 it spreads similarities that lie near each other. The paper's 3.
        balance: α, the share of the person's own class, above 0 and below 1; the paper's 0.7.
        gradient: ``True`` for the derivative of the formula, ``"straight_through"`` for g' = 1.

    Attributes:
        bias: b, a scalar parameter.

    Raises:
        ValueError: an option is out of range or unknown.
    """

    combine = "sum"  # the classes' terms are added, where a softmax takes the logsumexp of logits

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        scale: float,
        margin: float,
        exponent: float,
        balance: float,
        gradient: bool | str,
    ):
        super().__init__(embedding_size, num_classes, scale)
        require_between("margin", margin, 0.0, 1.0)
        require_between("exponent", exponent, 1.0, 10.0)
        require_between("balance", balance, 1e-6, 1 - 1e-6)
        self.margin, self.exponent, self.balance = margin, exponent, balance
        self.gradient = chosen_gradient(gradient)
        self.bias = torch.nn.Parameter(torch.tensor(self._first_bias(num_classes)))

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        """Return g(cosθ_y) − m + b/r."""
        return self._spread(cosine) - self.margin + self.bias / self.scale

    def non_target(self, cosines: Tensor, target: Tensor, context: Context) -> Tensor:
        """Return g(cosθ_j) + m + b/r."""
        return self._spread(cosines) + self.margin + enter_shards(self.bias) / self.scale

    def others(self, logits: Tensor, context: Context) -> Tensor:
        """(B,c) logits → (B,) Σ_j log(1 + exp(z_j))."""
        return F.softplus(logits).sum(dim=1)

    def reduction(self, others: Tensor, target: Tensor, context: Context) -> Tensor:
        """(B,) sums over the other classes and (B,) target logits → scalar."""
        terms = self.balance * F.softplus(-target) + (1 - self.balance) * others
        return _WEIGHT / self.scale * terms.mean()

    def _spread(self, cosine: Tensor) -> Tensor:
        # By rounding a cosine may be −1.0000001, and a negative number has no power t.
        return self.gradient(cosine, 2 * ((cosine + 1) / 2).clamp(min=0) ** self.exponent - 1)

    def _first_bias(self, num_classes: int) -> float:
        """B with α·σ(−z_y) = (1 − α)·(C − 1)·σ(z_j) at cosθ = 0: the positive root of a quadratic in exp(b)."""
        ratio = self.balance / ((1 - self.balance) * max(num_classes - 1, 1))
        centre = 2 * 0.5**self.exponent - 1
        own, other = self.scale * (centre - self.margin), self.scale * (centre + self.margin)
        root = math.sqrt((1 - ratio) ** 2 + 4 * ratio * math.exp(own - other))
        if ratio > 1:  # of the two equal forms the one that does not cancel
            return math.log((ratio - 1 + root) / 2) - own
        return math.log(2 * ratio / (1 - ratio + root)) - other
