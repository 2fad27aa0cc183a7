"""Feature maps of two networks, brought together."""

import torch.nn.functional as F
from torch import Tensor

from facelab.distill.base import Shapes
from facelab.distill.directions import precise


def resized(teachers: Tensor, students: Tensor) -> Tensor:
    """(B,C,h,w) of the teacher → (B,C,h',w'), as high and wide as the student's; of the same size it is left alone.

    Bilinear, with the antialiasing triangle: shrinking averages everything that it leaves out, and enlarging makes no
    steps, as a mean over areas would. It is the teacher's map that changes, being the one without a gradient; half
    precision then becomes float32.
    """
    if teachers.shape[2:] == students.shape[2:]:
        return teachers
    return F.interpolate(
        precise(teachers), size=students.shape[2:], mode="bilinear", align_corners=False, antialias=True
    )


def require_as_many(student: Shapes, teacher: Shapes, what: str) -> None:
    """Refuse networks whose feature maps do not go together one by one.

    Args:
        student: its shapes.
        teacher: its shapes.
        what: the distiller, for the message.

    Raises:
        ValueError: there is none, or there are not as many; naming both numbers.
    """
    mine, theirs = len(student.features), len(teacher.features)
    if mine != theirs or not mine:
        raise ValueError(
            f"{what} compares feature maps one by one, and the {student.name} gives {mine}, the {teacher.name} "
            f"{theirs}: ask for as many of both, at least 1"
        )
