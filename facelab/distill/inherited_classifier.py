"""ProxylessKD: the student trains on the teacher's classifier."""

from facelab.distill.base import Distiller, Shapes, require_same_size


class InheritedClassifier(Distiller):
    """The student's centres are the teacher's, frozen; the student's own loss, with its margin, is all there is.

    The student so learns to put an image where the teacher's classes are, and the embeddings of the two networks can
    be compared with each other: a gallery of the teacher's, probes of the student's.

    Source: Shi et al., "ProxylessKD: Direct Knowledge Distillation with Inherited Classifier for Face Recognition",
    arXiv:2011.00265.

    Args:
        student: its shapes.
        teacher: its shapes.

    Raises:
        ValueError: embeddings of two lengths.
    """

    inherits_centres = True

    def __init__(self, student: Shapes, teacher: Shapes):
        super().__init__()
        require_same_size(student, teacher, "inherited_classifier")
