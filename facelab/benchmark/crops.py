"""Image files of any size and shape, as a network takes them: which part of them, and how it becomes square."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from facelab.pixels import decode

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
SHAPES = ("stretch", "pad")


@dataclass(frozen=True)
class Crop:
    """From an image file to the square that a network takes.

    Args:
        size: H = W in pixels of the square.
        keep: share of width and of height that is kept, around the middle; 1: all of the image.
        shape: ``stretch``: what is not square is stretched; ``pad``: it gets black edges.
        alignment: how the faces were cut out, in words that stand in the stamp; results with other words are not
            compared.

    Raises:
        ValueError: a setting out of range.
    """

    size: int
    keep: float
    shape: str
    alignment: str

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"benchmark.size={self.size}: an image has at least one pixel; usual is 112")
        if not 0 < self.keep <= 1:
            raise ValueError(f"benchmark.crop.keep is {self.keep}: give a share above 0, and 1 for the whole image")
        if self.shape not in SHAPES:
            raise ValueError(f"benchmark.crop.shape is {self.shape!r}: give one of {', '.join(SHAPES)}")

    @property
    def stamp(self) -> dict[str, Any]:
        """As it stands in a protocol stamp."""
        return {"crop": f"middle {self.keep:g}, {self.shape}", "alignment": self.alignment, "size": self.size}

    def load(self, file: Path, out: np.ndarray | None = None) -> np.ndarray:
        """The square (size,size,3) uint8 RGB: shrunk by area, enlarged by cubic interpolation.

        Args:
            file: the image.
            out: where the pixels may go.

        Raises:
            ValueError: no readable image.
        """
        image = decode(np.fromfile(file, np.uint8), out)
        if image is None:
            raise ValueError(f"{file}: is not a readable image; get the file again")
        height, width = (max(1, round(self.keep * side)) for side in image.shape[:2])
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        image = image[top : top + height, left : left + width]
        if self.shape == "pad" and height != width:
            most = max(height, width)
            above, before = (most - height) // 2, (most - width) // 2
            edges = (above, most - height - above, before, most - width - before)
            image = cv2.copyMakeBorder(image, *edges, cv2.BORDER_CONSTANT, value=(0, 0, 0))
        if image.shape[:2] == (self.size, self.size):
            return image
        smaller = image.shape[0] * image.shape[1] > self.size**2
        how = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
        return cv2.resize(image, (self.size, self.size), interpolation=how)


def images_in(folder: Path) -> list[Path]:
    """The image files right in a folder, in the order of their names."""
    return sorted(
        file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
