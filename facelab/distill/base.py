"""What every distiller is, and what it is given to compare: what teacher and student have seen in the same faces.

A distiller is a module called as ``distiller(student, teacher, labels)`` on this rank's part of the batch; it returns
the scalar that is added to the student's loss. It asks for what it compares by its class attributes, so that nothing
else is kept in memory. On W ranks it keeps the promise of the losses: what leaves it is to be *averaged* over ranks,
as DistributedDataParallel does, and the average is the gradient of the global batch. A mean over this rank's images
keeps it by itself; who compares images, or looks at class centres, asks ``ranks``.
"""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Seen:
    """What one network makes of a batch; of the teacher all of it is detached.

    Attributes:
        embeddings: (B,D) float32, not normalised.
        features: the feature maps that were asked for, (B,C,h,w) each, in the order of the network.
        attention: of each attention unit, in the order of the network, its channel map (B,C,1,1) and its spatial map
            (B,1,h,w), before their sigmoid.
        centres: (C_rank,D) this rank's class centres, not normalised; None where the loss has none, or nobody asked.
        first: the class of ``centres[0]``.
    """

    embeddings: Tensor
    features: tuple[Tensor, ...] = ()
    attention: tuple[tuple[Tensor, Tensor], ...] = ()
    centres: Tensor | None = None
    first: int = 0


@dataclass(frozen=True)
class Shapes:
    """What is known of a network before it has seen anything.

    Attributes:
        name: for messages, such as ``student IResNet``.
        embedding_size: D.
        features: (C,h,w) of each feature map that was asked for.
        attention: (C,h,w) of each attention unit's result: its channel map has C numbers, its spatial map h × w.
        scale: s, what the cosines are multiplied by in this network's own loss; None where it has no such number.
    """

    name: str
    embedding_size: int
    features: tuple[tuple[int, int, int], ...] = ()
    attention: tuple[tuple[int, int, int], ...] = ()
    scale: float | None = None


class Ranks:
    """How the ranks put together what each has a part of; this one is for a process alone."""

    def gather(self, rows: Tensor) -> Tensor:
        """(b,…) of this rank → (B,…) of all, in the order of ranks; the gradient is W times this rank's part."""
        return rows

    def own(self, rows: Tensor, count: int) -> Tensor:
        """(B,…) of all ranks, in the order of ``gather`` → the ``count`` of them that are this rank's."""
        return rows

    def enter(self, replicated: Tensor) -> Tensor:
        """The same values, about to be compared with this rank's class centres; the ranks' gradients are summed."""
        return replicated

    def sum(self, parts: Tensor) -> Tensor:
        """The ranks' parts, added up; every rank holds the sum, with its gradient."""
        return parts

    def logsumexp(self, parts: Tensor) -> Tensor:
        """Log Σ exp over the ranks' parts, which are such numbers themselves."""
        return parts


ALONE = Ranks()


class Distiller(nn.Module):
    """A term of the student's loss, or a way of training that leans on a teacher.

    Subclasses are built as ``Distiller(student=Shapes, teacher=Shapes, **options)`` and refuse, with a ``ValueError``
    and before any training, two networks that they cannot compare.

    Attributes:
        wants_features: whether it compares feature maps.
        wants_attention: whether it compares attention maps; both networks need attention.
        wants_centres: whether it looks at the class centres of teacher and student.
        inherits_centres: whether the student's classifier *is* the teacher's: its centres, frozen.
        gives_margins: whether it has a margin for each image, which takes the place of the loss's own.
        ranks: set by whoever trains on more than one.
    """

    wants_features = False
    wants_attention = False
    wants_centres = False
    inherits_centres = False
    gives_margins = False
    ranks: Ranks = ALONE

    def forward(self, student: Seen, teacher: Seen, labels: Tensor) -> Tensor:
        """The term for this batch.

        Args:
            student: of the images as the student gets them, with gradients.
            teacher: of the same images, as the teacher gets them.
            labels: (B,) int64, of this rank.
        """
        return student.embeddings.new_zeros(())

    def margins(self, teacher: Seen, labels: Tensor) -> Tensor | None:
        """(B,) a margin for each image of this rank, in the unit of the loss's own; None where it has none to give."""
        return None


def require_same_size(student: Shapes, teacher: Shapes, what: str) -> None:
    """Refuse to compare embeddings of two lengths.

    Args:
        student: its shapes.
        teacher: its shapes.
        what: the distiller, for the message.

    Raises:
        ValueError: naming both sizes.
    """
    if student.embedding_size != teacher.embedding_size:
        raise ValueError(
            f"{what} compares embeddings, and the {student.name}'s have {student.embedding_size} numbers, the "
            f"{teacher.name}'s {teacher.embedding_size}: set backbone.embedding_size={teacher.embedding_size}"
        )


def require_between(name: str, value: float, low: float, high: float) -> None:
    """Refuse an option outside [low, high] (NaN included) with a ``ValueError`` that names it."""
    if not low <= value <= high:
        raise ValueError(f"{name}={value} is out of range: choose it between {low:g} and {high:g}")
