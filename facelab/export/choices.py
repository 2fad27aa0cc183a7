"""What is exported, and in which form: the values of conf/export.yaml, checked before anything begins."""

from dataclasses import dataclass, fields

import torch

from facelab.export.base import Format
from facelab.kinds import check_kind

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}


@dataclass(frozen=True)
class Choices:
    """The form of an export; each value is explained in conf/export.yaml.

    Raises:
        ValueError: a value is out of its range.
    """

    precision: str
    preprocessing: bool
    mirror: bool
    unit: bool
    batch: int | None
    fold: bool

    def __post_init__(self) -> None:
        for field in fields(self):
            check_kind(field.name, getattr(self, field.name), field.type)
        if self.precision not in TYPES:
            raise ValueError(f"precision is {self.precision!r}: give one of {', '.join(TYPES)}")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch is {self.batch}: give at least 1, or null for any number of images")

    def check(self, format: Format) -> None:
        """Refuses what a format cannot hold.

        Raises:
            ValueError: with what it can.
        """
        if self.precision not in format.precisions:
            reason = WHY.get((format.name, self.precision), "")
            raise ValueError(
                f"precision={self.precision}: format={format.name} has {', '.join(format.precisions)}{reason}"
            )
        if not format.embeds and (self.mirror or self.batch is not None):
            key = "mirror" if self.mirror else "batch"
            raise ValueError(f"{key}={getattr(self, key)}: format={format.name} holds weights alone: leave it out")


WHY = {
    ("onnx", "bf16"): " (ONNX Runtime multiplies no bf16 on a processor: format=openvino does)",
    ("torchscript", "int8"): " (format=openvino and format=onnx have int8)",
    ("exported_program", "int8"): " (format=openvino and format=onnx have int8)",
}
