"""The student's embedding shall be the teacher's, of the same image."""

from collections.abc import Callable

import torch
from torch import Tensor

from facelab.distill.base import Distiller, Seen, Shapes, require_between, require_same_size
from facelab.distill.directions import one_minus_cosine, precise


class Embedding(Distiller):
    """L = w·mean over images of one of four distances between the embeddings of student and teacher.

    Args:
        student: its shapes.
        teacher: its shapes.
        weight: w, 0…1000.
        form: the distance of e_s and e_t, θ being the angle between them:
            ``"l2"``: ‖e_s − e_t‖², lengths included; a sum over the D numbers, not a mean;
            ``"cosine"``: 1 − cosθ, 0…2 (F-SKD, which compares features so);
            ``"angular"``: (1 − cosθ)², 0…4; gentle to those that are near (ShrinkTeaNet, arXiv:1905.10620);
            ``"unit_l2"``: ‖ê_s − ê_t‖² of unit vectors, which is 2·(1 − cosθ), 0…4 (VarGFaceNet, arXiv:1910.04985).

    Raises:
        ValueError: embeddings of two lengths; an option is out of range or unknown.
    """

    def __init__(self, student: Shapes, teacher: Shapes, weight: float, form: str):
        super().__init__()
        require_same_size(student, teacher, "embedding")
        require_between("weight", weight, 0.0, 1e3)
        if form not in _FORMS:
            raise ValueError(f"form={form} is unknown: choose one of {', '.join(_FORMS)}")
        self.weight, self.form = weight, form

    def forward(self, student: Seen, teacher: Seen, labels: Tensor) -> Tensor:
        """Both networks' (B,D) embeddings → a scalar."""
        with torch.autocast(student.embeddings.device.type, enabled=False):
            terms = _FORMS[self.form](precise(student.embeddings), precise(teacher.embeddings))
            return self.weight * terms.mean()


# (B,D) of the student, (B,D) of the teacher → (B,)
_FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l2": lambda mine, theirs: (mine - theirs).square().sum(dim=1),
    "cosine": one_minus_cosine,
    "angular": lambda mine, theirs: one_minus_cosine(mine, theirs).square(),
    "unit_l2": lambda mine, theirs: 2 * one_minus_cosine(mine, theirs),
}
