"""Which teacher, for which student: chosen, looked at and checked before anything is trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict
from torch import Tensor, nn

from facelab.backbone.stages import shapes
from facelab.digest import digest_of
from facelab.distill.base import Distiller, Shapes
from facelab.loss.base import Loss
from facelab.training import centres
from facelab.training.lesson import Lesson, Teacher
from facelab.training.network import about_input
from facelab.training.objective import margin_of
from facelab.training.options import check_kind, in_bf16
from facelab.training.trained import Trained, file_of, meta_of, out_of_checkpoint, out_of_weights

# What may stand in a distiller's node beside the arguments of its constructor; see conf/config.yaml.
COMMON = ("teacher", "loss_weight")
_CHECKPOINT = "distill.teacher.checkpoint"


class Teaching:
    """A run's teacher, and the way its student learns from it.

    Args:
        node: the `distill` node.
        backbone: the student's, whose shapes alone are needed.
        loss: the student's, for whom the same holds.
        size: pixels of the student's images.
        num_classes: C, over all ranks.
        on_gpu: whether the run is on a GPU.

    Attributes:
        about: the teacher in words, for the summary.
        digest: SHA-256 of its file.
        distiller: without its values; what it asks for.
        inherits: the checkpoint whose class centres are the student's, frozen; or None.

    Raises:
        ValueError, FileNotFoundError: there is no such teacher, or these two cannot be compared.
    """

    def __init__(self, node: DictConfig, backbone: nn.Module, loss: Loss, size: int, num_classes: int, on_gpu: bool):
        self.node = node.copy()
        with open_dict(self.node):
            teacher, weight = (self.node.pop(key) for key in COMMON)
        check_kind("distill.loss_weight", weight, float)
        if not 0 <= weight <= 1e4:
            raise ValueError(f"distill.loss_weight is {weight}: give 0 (the distiller's term alone) up to 10000")
        for name, kind in {"ema": bool | None, "size": int | None, "precision": str}.items():
            check_kind(f"distill.teacher.{name}", teacher[name], kind)
        if teacher.checkpoint is None:
            raise ValueError(
                f"{_CHECKPOINT} is null: name the teacher, a best.ckpt of a run, or published weights with "
                "backbone@distill.teacher.backbone=…; or set distill=none"
            )
        self.path = file_of(_CHECKPOINT, teacher.checkpoint)
        self.meta, self.digest = meta_of(self.path), digest_of(self.path)
        found, own_size = self._network(teacher, size)
        bf16 = in_bf16("distill.teacher.", teacher.precision, on_gpu)
        self.lesson = Lesson(Teacher(found.backbone, found.head, own_size, bf16), weight)
        self.about = (
            f"{type(found.backbone).__name__}, {found.about}{about_input(found.backbone)}, {own_size}×{own_size} "
            f"pixels, {'bf16' if bf16 else 'fp32'}"
        )
        # Without a classifier: who asks for a scale asks for class centres too, and is refused for want of them.
        self.shapes = (
            _shapes("student", backbone, size, getattr(margin_of(loss), "scale", 1.0)),
            _shapes("teacher", found.backbone, own_size, self._scale()),
        )
        with torch.device("meta"):
            self.distiller = self.make()
        self._check_attention()
        self._check_margins(loss)
        self._check_centres(loss, num_classes)

    def make(self) -> Distiller:
        """The distiller, with numbers of its own to learn where it has some."""
        student, teacher = self.shapes
        return instantiate(self.node, _partial_=True)(student=student, teacher=teacher)

    def begin(self, loss: Loss, num_classes: int) -> Distiller:
        """Makes the distiller, and hands it to the lesson with the student's loss as it was built."""
        distiller = self.make()
        self.lesson.begin(distiller, loss, self._centres_for(loss, num_classes))
        return distiller

    @property
    def inherits(self) -> Path | None:
        """See the class."""
        return self.path if self.distiller.inherits_centres else None

    def inherited(self, node: DictConfig) -> DictConfig:
        """A `loss` node whose classifier is the teacher's, where the distiller wants that; else the same.

        Raises:
            ValueError: it has class centres of another checkpoint.
        """
        if self.inherits is None:
            return node
        if node.classifier.weights is not None:
            raise ValueError(
                f"loss.classifier.weights is {node.classifier.weights}, and {type(self.distiller).__name__} gives the "
                "student its teacher's class centres: leave it at null"
            )
        node = node.copy()
        node.classifier.weights, node.classifier.frozen = str(self.path), True
        return node

    def _network(self, teacher: DictConfig, size: int) -> tuple[Trained, int]:
        """The teacher, and the pixels of its images."""
        if self.meta is None:
            own_size, node = teacher.size or size, teacher.get("backbone")
            if node is not None and "image_size" in node:
                node = node.copy()
                node.image_size = own_size
            return out_of_weights(
                _CHECKPOINT, self.path, node, "backbone@distill.teacher.backbone", teacher.ema
            ), own_size
        if teacher.get("backbone") is not None:
            raise ValueError(
                f"distill.teacher.backbone is given, and {_CHECKPOINT}={self.path} says itself what network it is: "
                "leave it out"
            )
        own_size = self.meta["config"]["data"]["size"]
        if teacher.size not in (None, own_size):
            raise ValueError(
                f"distill.teacher.size is {teacher.size}, and {_CHECKPOINT}={self.path} was trained on {own_size} "
                "pixels: leave it at null"
            )
        return out_of_checkpoint(_CHECKPOINT, self.path, self.meta, teacher.ema), own_size

    def _scale(self) -> float | None:
        return 1.0 if self.meta is None else self.meta["config"]["loss"].get("scale")

    def _check_attention(self) -> None:
        if not self.distiller.wants_attention:
            return
        mends = ("set backbone.attention=cbam", "give one that was trained with backbone.attention=cbam")
        for shape, mend in zip(self.shapes, mends, strict=True):
            if not shape.attention:
                raise ValueError(
                    f"{type(self.distiller).__name__} compares attention maps, and the {shape.name} has no attention: "
                    f"{mend}"
                )

    def _check_margins(self, loss: Loss) -> None:
        if self.distiller.gives_margins and not loss.takes_margins:
            raise ValueError(
                f"{type(self.distiller).__name__} gives every image a margin of its own, which "
                f"{type(loss).__name__} does not take: choose loss=arcface or loss=cosface"
            )

    def _check_centres(self, loss: Loss, num_classes: int) -> None:
        distiller, name = self.distiller, type(self.distiller).__name__
        if not (distiller.wants_centres or distiller.inherits_centres):
            return
        margin = margin_of(loss)
        if margin is None:
            raise ValueError(
                f"{name} needs class centres, and {type(loss).__name__} has none: choose a loss with a classifier"
            )
        if self.meta is None:
            raise ValueError(
                f"{name} needs the teacher's class centres, and {_CHECKPOINT}={self.path} is published weights, which "
                "have none: give a checkpoint of facelab, trained on the same people"
            )
        if margin.options.some and not distiller.inherits_centres:
            raise ValueError(
                f"{name} looks at all classes, and loss.classifier shows a step only some: set "
                "loss.classifier.sample_rate=1.0 and loss.classifier.prototypes.queue=null"
            )
        first = centres.rows(_CHECKPOINT, self.path, num_classes, (0, 1))
        if distiller.inherits_centres and first.shape[1] != self.shapes[0].embedding_size:
            raise ValueError(
                f"{_CHECKPOINT}={self.path} has class centres of {first.shape[1]} numbers, which {name} gives to the "
                f"student, whose embeddings have {self.shapes[0].embedding_size}: set "
                f"backbone.embedding_size={first.shape[1]}"
            )

    def _centres_for(self, loss: Loss, num_classes: int) -> Tensor | None:
        """This rank's part of the teacher's class centres, shared out like the student's."""
        margin = margin_of(loss)
        if margin is None or not (self.distiller.wants_centres or self.distiller.gives_margins):
            return None
        part = margin.classifier.start, margin.classifier.stop
        return centres.rows(_CHECKPOINT, self.path, num_classes, part)


def taught(
    node: DictConfig,
    backbone: nn.Module,
    loss: Loss,
    size: int,
    num_classes: int,
    on_gpu: bool,
    meta: Mapping[str, Any] | None,
) -> Teaching | None:
    """The teaching that a `distill` node describes; None for distill=none.

    Args:
        node: of the configuration.
        backbone: the student's; its shapes alone.
        loss: the student's; its shapes alone.
        size: pixels of the student's images.
        num_classes: C, over all ranks.
        on_gpu: whether the run is on a GPU.
        meta: what the checkpoint says from which the run goes on; None where it begins.

    Raises:
        ValueError, FileNotFoundError: see `Teaching`; a teacher without a distiller; or the file is not that which the
            run began with.
    """
    if "_target_" not in node:
        if node.teacher.checkpoint is not None:
            raise ValueError(
                f"{_CHECKPOINT} is given, and distill=none does not ask it: say how, as distill=attention_similarity"
            )
        return None
    teaching = Teaching(node, backbone, loss, size, num_classes, on_gpu)
    began = None if meta is None else meta.get("teacher_sha256")
    if began not in (None, teaching.digest):
        raise ValueError(
            f"{_CHECKPOINT}={teaching.path} is not the file that this run began with (its SHA-256 was {began[:12]}…): "
            "bring that back, or begin another run with job=a_new_name"
        )
    return teaching


def _shapes(whose: str, backbone: Any, size: int, scale: float | None) -> Shapes:
    """What is known of a network before it has seen anything."""
    features, attention = shapes(backbone, size)
    return Shapes(
        f"{whose} {type(backbone).__name__}", backbone.embedding_size, tuple(features), tuple(attention), scale
    )
