"""AdaFace whose quality indicator is the class-standardised norm: long for its person, not long for its frequency."""

import torch
from torch import Tensor

from facelab.loss.adaface import NORM_RANGE, AdaFace, standardised
from facelab.loss.base import require_between
from facelab.loss.classifier import Context
from facelab.loss.collective import sum_over_shards


class AdaFaceByClass(AdaFace):
    """AdaFace, cos(θ_y − m·ẑ) − (m + m·ẑ), with ẑ = clip(h·(‖x‖ − μ_y)/(σ_y + ε), −1, 1).

    μ_y and σ_y are running mean and standard deviation of the lengths of the row's own class, where AdaFace has those
    of all: the length grows with the number of images that a class is trained on, so that AdaFace takes whole classes
    of the tail for bad images. A class that was seen less than `least` times takes μ and σ of all, as AdaFace.

    What a class has seen counts as at most `memory` images, so that a mean is exact at first and forgets later, as the
    lengths change in training: with n = min(seen, memory) images before and k of the class in the batch, of mean x̄ and
    sum of squared deviations S,

        μ ← (n·μ + k·x̄)/(n + k)        v ← (n·v + S + (x̄ − μ)²·n·k/(n + k))/(n + k)        σ² = v·n/(n − 1)

    They move before they are used, as AdaFace's do, and see the global batch. They belong to their class's shard.

    Source: equations 12 to 15 of AdaFace, arXiv:2204.00964; the class-standardised norm of Kim and Sohn, whose stated
    next step this is; the merging of variances is that of Chan, Golub and LeVeque, 1979.

    Args:
        embedding_size: D.
        num_classes: C, over all ranks.
        scale: s.
        margin: m, in radians and in units of the cosine, 0…1 (0.4 rad = 22.9°).
        concentration: h, above 0; ẑ reaches ±1 at 1/h standard deviations.
        t_alpha: share of the new batch in the averages of all classes, above 0 and at most 1.
        least: images that a class must have been seen with; 2 or more.
        memory: images that what a class has seen counts for, at most; at least `least`.

    Attributes:
        mean_norm, std_norm: μ and σ of all.
        class_seen, class_mean, class_variance: n, μ_y and v of this rank's classes; all are saved in checkpoints.

    Raises:
        ValueError: an option is out of range.
    """

    class_seen: Tensor
    class_mean: Tensor
    class_variance: Tensor

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        scale: float,
        margin: float,
        concentration: float,
        t_alpha: float,
        least: int,
        memory: int,
    ):
        super().__init__(embedding_size, num_classes, scale, margin, concentration, t_alpha)
        require_between("least", least, 2, 10**6)
        require_between("memory", memory, least, 10**9)
        self.least, self.memory = least, memory
        classes = self.classifier.stop - self.classifier.start
        for name in ("class_seen", "class_mean", "class_variance"):
            self.register_buffer(name, torch.zeros(classes))

    def sharded_parameters(self) -> list[str]:
        """The class centres, and what is known of the lengths of each class."""
        return [*super().sharded_parameters(), "class_seen", "class_mean", "class_variance"]

    @torch.no_grad()
    def _quality(self, context: Context) -> Tensor:
        """→ (B,) ẑ in [−1, 1]."""
        of_all = super()._quality(context)
        norms = context.norms.clamp(*NORM_RANGE)
        start, stop = self.classifier.start, self.classifier.stop
        here = (context.labels >= start) & (context.labels < stop)
        rows = torch.where(here, context.labels - start, 0)
        if context.training:
            self._see(rows[here], norms[here])
        seen = self.class_seen[rows].clamp(max=self.memory)
        spread = self.class_variance[rows] * seen / (seen - 1).clamp(min=1)
        known = torch.stack([seen, self.class_mean[rows], spread.sqrt()]).to(norms.dtype)
        seen, mean, std = sum_over_shards(torch.where(here, known, 0))
        own = standardised(norms, mean, std, self.concentration)
        return torch.where((seen >= self.least) & (std > 0), own, of_all)

    def _see(self, rows: Tensor, norms: Tensor) -> None:
        """Merges the lengths (b,) of this rank's classes `rows` (b,) into what is known of them."""
        norms = norms.to(self.class_mean.dtype)
        classes, place = rows.unique(return_inverse=True)
        nothing = norms.new_zeros(len(classes))
        new = nothing.index_add(0, place, torch.ones_like(norms))
        fresh = nothing.index_add(0, place, norms) / new
        squares = nothing.index_add(0, place, (norms - fresh[place]) ** 2)
        seen, mean, variance = self.class_seen[classes], self.class_mean[classes], self.class_variance[classes]
        before = seen.clamp(max=self.memory)
        apart, share = fresh - mean, new / (before + new)
        self.class_variance[classes] = (before * variance + squares + apart**2 * before * share) / (before + new)
        self.class_mean[classes] = mean + apart * share
        self.class_seen[classes] = seen + new
