"""MarginDistillation: the teacher's class centres, and a margin as large as the teacher is sure."""

import math

import torch
from torch import Tensor

from facelab.distill.base import Distiller, Seen, Shapes, require_between, require_same_size
from facelab.distill.directions import precise, unit


class Margin(Distiller):
    """The student's centres are the teacher's, frozen; image i has the margin m_low + (m_high − m_low)·c_i / max_j c_j.

    c_i = max(0, cosθ_i), θ_i the angle between the teacher's embedding of image i and its class's centre; the maximum
    is over the global batch. So the margin is between m_low and m_high, in the unit of the loss (radians for ArcFace),
    the largest for the image that the teacher has nearest to its class. There is no term of the loss besides.

    Source: Svitov and Alyamkin, "MarginDistillation: distillation for margin-based softmax", arXiv:2003.02586; the
    formula is that of the authors' code, over ArcFace with s = 64 and 0.2…0.5. There the maximum is over the images of
    one GPU, and a negative cosine counts as it is (a margin below m_low, and below 0 where the teacher knows nobody).

    Args:
        student: its shapes.
        teacher: its shapes.
        low: m_low, 0…π/2.
        high: m_high, low…π/2.

    Raises:
        ValueError: embeddings of two lengths; an option is out of range; in the call: the teacher has no class centres.
    """

    wants_centres = True
    inherits_centres = True
    gives_margins = True

    def __init__(self, student: Shapes, teacher: Shapes, low: float, high: float):
        super().__init__()
        require_same_size(student, teacher, "margin")
        require_between("low", low, 0.0, math.pi / 2)
        require_between("high", high, low, math.pi / 2)
        self.low, self.high = low, high

    @torch.no_grad()
    def margins(self, teacher: Seen, labels: Tensor) -> Tensor:
        """The teacher's (b,D) embeddings of this rank and its (C_rank,D) centres, (b,) labels → (b,) margins."""
        centres = teacher.centres
        if centres is None:
            raise ValueError("margin gives the student the teacher's class centres, and the teacher has none")
        with torch.autocast(labels.device.type, enabled=False):
            embeddings = unit(self.ranks.gather(precise(teacher.embeddings)))
            place = self.ranks.gather(labels) - teacher.first
            here = (place >= 0) & (place < len(centres))
            own = unit(precise(centres[place.clamp(0, len(centres) - 1)]))
            cosine = self.ranks.sum(torch.where(here, (embeddings * own).sum(dim=1), 0)).clamp(min=0)
            largest = cosine.max()
            share = cosine / largest.masked_fill(largest == 0, torch.inf)
            margins = self.ranks.own(self.low + (self.high - self.low) * share, len(labels))
        assert len(margins) == len(labels)
        return margins
