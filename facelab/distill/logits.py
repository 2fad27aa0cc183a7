"""Logits KD: the student shall find the same people similar to an image as the teacher does."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from facelab.distill.base import Distiller, Seen, Shapes, require_between
from facelab.distill.directions import precise, unit

_ELEMENTS = 2**24  # of the arrays (B, classes) that exist at a time; 64 MiB each in float32


class Logits(Distiller):
    """L = w·T²·mean over images of KL(p_t ‖ p_s); p = softmax over all classes of s·cosθ/T, without any margin.

    Each network has its own embeddings, class centres and s; their embeddings may have different sizes, their classes
    must be the same. The student's centres learn from it too, where they are not frozen.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv:1503.02531 (the T² keeps the gradient's
    size whatever T is); T = 4 as in the code of attention transfer (arXiv:1612.03928) and of others. Some public code
    divides the sum by images × classes; this is the mean over images.

    Classes are shared by the ranks, and gone through in chunks that are computed again in the backward pass: no matrix
    of images × classes is kept. All of it is in float32.

    Args:
        student: its shapes.
        teacher: its shapes.
        weight: w, 0…1000.
        temperature: T, 0.1…100.
        scale: s for both; ``None`` for that of each network's own loss.

    Raises:
        ValueError: a network's loss has no s, and none is given; an option is out of range; in the call: a network has
            no class centres, or they have others.
    """

    wants_centres = True

    def __init__(self, student: Shapes, teacher: Shapes, weight: float, temperature: float, scale: float | None):
        super().__init__()
        require_between("weight", weight, 0.0, 1e3)
        require_between("temperature", temperature, 0.1, 100.0)
        if scale is not None:
            require_between("scale", scale, 1e-3, 1e4)
        self.weight, self.temperature = weight, temperature
        self.student_factor = _scale(student, scale) / temperature
        self.teacher_factor = _scale(teacher, scale) / temperature

    def forward(self, student: Seen, teacher: Seen, labels: Tensor) -> Tensor:
        """Both networks' (b,D) embeddings of this rank and (C_rank,D) centres → a scalar, of the global batch."""
        centres, teachers = _same_classes(student, teacher)
        with torch.autocast(student.embeddings.device.type, enabled=False):
            mine = self.ranks.enter(unit(self.ranks.gather(precise(student.embeddings)))) * self.student_factor
            theirs = unit(self.ranks.gather(precise(teacher.embeddings))) * self.teacher_factor
            size = max(1, _ELEMENTS // max(1, len(mine)))
            with torch.no_grad():
                parts = [_logits(theirs, some).logsumexp(dim=1) for some in teachers.split(size)]
                total = self.ranks.logsumexp(torch.stack(parts).logsumexp(dim=0))
            gaps, parts = [], []
            for some, same in zip(centres.split(size), teachers.split(size), strict=True):
                gap, part = checkpoint(
                    _compare, mine, some, theirs, same, total, use_reentrant=False, preserve_rng_state=False
                )
                gaps.append(gap)
                parts.append(part)
            # KL = Σ p_t·(log p_t − log p_s), with log p = logit − logsumexp
            own = self.ranks.logsumexp(torch.stack(parts).logsumexp(dim=0))
            divergence = self.ranks.sum(torch.stack(gaps).sum(dim=0)) + own - total
            return self.weight * self.temperature**2 * divergence.mean()


def _scale(network: Shapes, scale: float | None) -> float:
    scale = network.scale if scale is None else scale
    if not isinstance(scale, (int, float)):  # none, or SphereFace's, which is each embedding's own length
        raise ValueError(
            f"logits compares softmaxes, and the loss of the {network.name} has no fixed scale: set scale=64"
        )
    return scale


def _logits(scaled: Tensor, centres: Tensor) -> Tensor:
    """(B,D) embeddings of length s/T, (c,D) centres → (B,c)."""
    return scaled @ unit(precise(centres)).T


def _compare(mine: Tensor, centres: Tensor, theirs: Tensor, teachers: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """→ (B,) Σ p_t·(teacher's logit − student's), (B,) logsumexp of the student's; of some of the classes.

    `total` is the (B,) logsumexp of the teacher's logits, of all classes.
    """
    logits, wanted = _logits(mine, centres), _logits(theirs, teachers)
    return ((wanted - total[:, None]).exp() * (wanted - logits)).sum(dim=1), logits.logsumexp(dim=1)


def _same_classes(student: Seen, teacher: Seen) -> tuple[Tensor, Tensor]:
    if student.centres is None or teacher.centres is None:
        who = "student" if student.centres is None else "teacher"
        raise ValueError(
            f"logits compares class logits, and the {who} has no class centres: use a loss with a classifier"
        )
    if (student.first, len(student.centres)) != (teacher.first, len(teacher.centres)):
        raise ValueError(
            f"logits compares class with class, and the student has {len(student.centres)} from {student.first} on, "
            f"the teacher {len(teacher.centres)} from {teacher.first} on: train both on the same people"
        )
    return student.centres, teacher.centres
