"""RKD: images shall lie to each other as they do for the teacher."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from facelab.distill.base import Distiller, Seen, Shapes, require_between
from facelab.distill.directions import precise, unit

_ELEMENTS = 2**24  # of the two arrays (anchors, B, B or D) that exist at a time; 64 MiB each in float32


class Relational(Distiller):
    """L = λ_d·mean over pairs of h(d_s − d_t) + λ_a·mean over triples of h(c_s − c_t); h is the smooth L1 of width 1.

    d_ij is the distance of images i and j, in units of the mean distance in this network's batch; c_ijk the cosine of
    the angle at image i between j and k. All pairs and triples of the global batch take part; those with an image
    twice, alike in both networks, count in the means, as in the authors' code. Only relations are compared: the two
    embeddings may have different lengths, and the student's space may be turned, shifted or scaled.

    Source: Park et al., "Relational Knowledge Distillation", arXiv:1904.05068, section 3.2; 1·distance + 2·angle and
    what is normalised follow the authors' code for metric learning: the teacher's embeddings, not the student's.

    Cost: B³ angles of D products each, for both networks, B the global batch. Every rank does those at its own images,
    in chunks that are computed again in the backward pass: 556 MiB at their highest with B = D = 512 in float32 on a
    CPU, where all triples at once would be several arrays of 512 MiB.

    Args:
        student: its shapes.
        teacher: its shapes.
        distance: λ_d, 0…1000.
        angle: λ_a, 0…1000; 0 spares the B³.
        unit_student: whether the student's embeddings are brought to length 1 first.
        unit_teacher: whether the teacher's are.

    Raises:
        ValueError: an option is out of range, or both weights are 0.
    """

    def __init__(
        self,
        student: Shapes,
        teacher: Shapes,
        distance: float,
        angle: float,
        unit_student: bool,
        unit_teacher: bool,
    ):
        super().__init__()
        require_between("distance", distance, 0.0, 1e3)
        require_between("angle", angle, 0.0, 1e3)
        if not (distance or angle):
            raise ValueError("distance=0 and angle=0 leave nothing to compare: give one of them a weight")
        self.distance, self.angle = distance, angle
        self.unit_student, self.unit_teacher = unit_student, unit_teacher

    def forward(self, student: Seen, teacher: Seen, labels: Tensor) -> Tensor:
        """Both networks' (b,D) embeddings of this rank → a scalar, of the global batch."""
        with torch.autocast(student.embeddings.device.type, enabled=False):
            mine = self.ranks.gather(precise(student.embeddings))
            theirs = self.ranks.gather(precise(teacher.embeddings))
            mine = unit(mine) if self.unit_student else mine
            theirs = unit(theirs) if self.unit_teacher else theirs
            total = mine.new_zeros(())
            if self.distance:
                total = total + self.distance * F.smooth_l1_loss(_relative(mine), _relative(theirs))
            if self.angle:
                total = total + self.angle * self._angles(mine, theirs, len(student.embeddings))
        return total

    def _angles(self, mine: Tensor, theirs: Tensor, count: int) -> Tensor:
        """(B,D_s), (B,D_t) of all ranks → the mean over triples; this rank does the triples at its own images."""
        everyone = self.ranks.enter(mine)
        anchors = self.ranks.own(torch.arange(len(mine), device=mine.device), count)
        assert len(anchors) == count
        largest = len(mine) * max(len(mine), mine.shape[1], theirs.shape[1])  # elements for one anchor
        total = mine.new_zeros(())
        for some in anchors.split(max(1, _ELEMENTS // largest)):
            total = total + checkpoint(_at, some, everyone, theirs, use_reentrant=False, preserve_rng_state=False)
        return self.ranks.sum(total) / len(mine) ** 3


def _relative(points: Tensor) -> Tensor:
    """(B,D) → (B,B) distances in units of their mean, leaving out those that are 0."""
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")  # where it is 0, so its slope
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / mean.masked_fill(mean == 0, torch.inf)


def _at(anchors: Tensor, mine: Tensor, theirs: Tensor) -> Tensor:
    """The sum over all triples at these (a,) images."""
    return F.smooth_l1_loss(_cosines(mine, anchors), _cosines(theirs, anchors), reduction="sum")


def _cosines(points: Tensor, anchors: Tensor) -> Tensor:
    """(B,D), (a,) → (a,B,B) cosine of the angle at an anchor between two points; 0 where one of them is the anchor."""
    edges = unit(points - points[anchors, None])
    return edges @ edges.mT
