"""Finds faces and their five points, and chooses one."""

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from facelab.kinds import check_kind
from facelab.prepare.detector_file import detector_file, published

__all__ = ["CHOICES", "Face", "YuNet"]

_OVERLAP = 0.3  # of boxes, from which on two are one face: OpenCV's own default
_CANDIDATES = 5000  # before overlapping ones are dropped, likewise
_SMALLEST = 32  # pixels, on which the file is tried


@dataclass(frozen=True)
class Face:
    """A face in a photograph, in pixels of it.

    Attributes:
        box: left, top, width, height.
        points: (5,2) eyes, nose, corners of the mouth, left to right as one sees them; (0, 0) is a pixel's middle.
        score: 0 to 1.
    """

    box: tuple[float, float, float, float]
    points: np.ndarray
    score: float

    @property
    def side(self) -> float:
        """The shorter side of the box."""
        return min(self.box[2:])


def _size(face: Face, height: int, width: int) -> float:
    return face.box[2] * face.box[3]


def _nearness(face: Face, height: int, width: int) -> float:
    left, top, wide, high = face.box
    return -((left + wide / 2 - width / 2) ** 2 + (top + high / 2 - height / 2) ** 2)


def _score(face: Face, height: int, width: int) -> float:
    return face.score


# Which of several faces: the one for which this is largest, given the photograph's height and width.
CHOICES: dict[str, Callable[[Face, int, int], float]] = {"largest": _size, "central": _nearness, "best": _score}


class YuNet:
    """YuNet (Wu et al. 2023) through OpenCV; may be called from several threads, each has a network of its own.

    It was trained on faces of 10 to 300 pixels. So a large photograph is shrunk first; where nothing is found, other
    sizes are tried: smaller for faces that fill the photograph, larger for small ones.

    Attributes:
        sha256: of its file.

    Args:
        model: its ONNX file, fixed shape for OpenCV 4.x, dynamic shape for 5.x; null: fetched once.
        threshold: score from which on something is a face.
        longest_side: pixels of the longer side to which a larger photograph is shrunk.
        again: longest sides that are tried one after another where nothing was found.

    Raises:
        ValueError, FileNotFoundError: a value is out of its range, or the file is not there or cannot be used.
    """

    def __init__(self, model: str | None, threshold: float, longest_side: int, again: Sequence[int]):
        check_kind("detector.model", model, str | None)
        check_kind("detector.threshold", threshold, float)
        check_kind("detector.longest_side", longest_side, int)
        check_kind("detector.again", again, list[int])
        if not 0 < threshold < 1:
            raise ValueError(f"detector.threshold is {threshold}: give a score between 0 and 1")
        if min([longest_side, *again]) < _SMALLEST:
            raise ValueError(f"detector.longest_side and again are {[longest_side, *again]}: give {_SMALLEST} or more")
        content = detector_file(model)
        self._content = np.frombuffer(content, np.uint8)
        self._threshold, self._sides = threshold, (longest_side, *again)
        self._own = threading.local()
        self.sha256 = hashlib.sha256(content).hexdigest()
        try:
            self._network().detect(np.zeros((_SMALLEST, _SMALLEST, 3), np.uint8))
        except cv2.error as error:
            raise ValueError(
                f"detector.model={model or published().name} is nothing that OpenCV {cv2.__version__} can use "
                f"({' '.join(str(error.err).split())}): give YuNet as {published().name} has it"
            ) from error

    def __call__(self, image: np.ndarray) -> list[Face]:
        """The faces of a photograph (H,W,3) uint8, BGR, in no order; none where there is none."""
        longest = max(image.shape[:2])
        for side in dict.fromkeys(min(side, longest) for side in self._sides):
            faces = self._detect(image, side / longest)
            if faces:
                return faces
        return []

    def _detect(self, image: np.ndarray, scale: float) -> list[Face]:
        height, width = image.shape[:2]
        small = image
        if scale < 1:
            shape = (max(round(width * scale), 1), max(round(height * scale), 1))
            small = cv2.resize(image, shape, interpolation=cv2.INTER_AREA)
        network = self._network()
        network.setInputSize((small.shape[1], small.shape[0]))
        found = network.detect(small)[1]
        if found is None:
            return []
        found = found[np.isfinite(found).all(1)].astype(np.float64)
        factor = np.array([width / small.shape[1], height / small.shape[0]])
        boxes = found[:, :4] * np.tile(factor, 2)
        # A pixel's middle is what stays in its place when an image is resized.
        points = (found[:, 4:14].reshape(-1, 5, 2) + 0.5) * factor - 0.5
        return [
            Face((box[0], box[1], box[2], box[3]), five, float(score))
            for box, five, score in zip(boxes.tolist(), points, found[:, 14], strict=True)
        ]

    def _network(self) -> cv2.FaceDetectorYN:
        if not hasattr(self._own, "network"):
            self._own.network = cv2.FaceDetectorYN.create(
                "onnx",
                self._content,
                np.empty(0, np.uint8),
                (_SMALLEST, _SMALLEST),
                self._threshold,
                _OVERLAP,
                _CANDIDATES,
            )
        return self._own.network
