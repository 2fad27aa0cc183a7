"""From a photograph, a file or an array, to the aligned face that a network is shown."""

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from facelab.alignment import similarities, warp
from facelab.kinds import check_kind
from facelab.pixels import fit
from facelab.prepare.detect import CHOICES, Face, YuNet
from facelab.prepare.photograph import Unusable, read

__all__ = ["DETECT", "FACES", "Aligned", "Finder", "Photograph", "open_photograph"]

Photograph = str | Path | np.ndarray

DETECT = ("auto", "yunet", "none")
FACES = ("single", *CHOICES)
_MOST_PIXELS = 1 << 27  # 400 MB once decoded; cameras have up to 200 million, and shrink them themselves
_RIVAL = 0.5  # of the largest face's size: what is smaller stands in the background
_MOST_BYTES = 1 << 29  # of a file


@dataclass(frozen=True)
class Aligned:
    """A face as a network is shown it.

    Attributes:
        pixels: (S,S,3) uint8 RGB.
        name: of the photograph, for messages.
        found: faces in the photograph; 0 where nobody looked, because it was aligned already.
        face: where in the photograph it was; None likewise.
    """

    pixels: np.ndarray
    name: str
    found: int = 0
    face: Face | None = None


class Finder:
    """Reads photographs, finds the face, brings it onto the template; may be called from several threads.

    Args:
        size: S, pixels of the aligned face.
        detect: see conf/recognition.yaml, as for the others.
        detector: see conf/detection.yaml.
        face: which of several.
        min_size: of its box.

    Raises:
        ValueError: a value is out of its range.
    """

    def __init__(self, size: int, detect: str, detector: Mapping[str, Any], face: str, min_size: int):
        check_kind("min_size", min_size, int)
        for name, value, known in (("detect", detect, DETECT), ("face", face, FACES)):
            if value not in known:
                raise ValueError(f"{name} is {value!r}: give one of {', '.join(known)}")
        if min_size < 1:
            raise ValueError(f"min_size is {min_size}: give a number of pixels above 0")
        self.size, self.detect, self.face, self.min_size = size, detect, face, min_size
        self._options = dict(detector)
        self._detector: YuNet | None = None

    def prepare(self) -> YuNet:
        """The detector, made at the first call.

        Raises:
            ValueError, FileNotFoundError: its file cannot be had or used.
        """
        if self._detector is None:
            cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
            self._detector = YuNet(**self._options)
        return self._detector

    def __call__(self, photograph: Photograph, name: str = "") -> Aligned:
        """The face of a photograph.

        Args:
            photograph: a file, or pixels (H,W,3) uint8 RGB.
            name: what it is called in messages; a file has its own.

        Raises:
            ValueError: it is unreadable or too large, has no face, several, or none that is large enough.
            FileNotFoundError: there is no such file.
        """
        name, image = open_photograph(photograph, name)
        height, width = image.shape[:2]
        if self.detect == "none" or (self.detect == "auto" and (height, width) == (self.size, self.size)):
            if height != width:
                raise ValueError(
                    f"{name}: has {width} x {height} pixels, and aligned faces are square: detect=yunet finds them"
                )
            pixels = image if height == self.size else fit(image, self.size, name)
            return Aligned(np.ascontiguousarray(pixels[..., ::-1]), name)
        return self._found(image, name)

    def _found(self, image: np.ndarray, name: str) -> Aligned:
        height, width = image.shape[:2]
        detector = self.prepare()
        try:
            faces = detector(image)
            chosen = self._chosen(faces, height, width, name)
            pixels = warp(image, similarities(chosen.points[None], self.size)[0], self.size)
        except cv2.error as error:  # some sides are too long for it, or too short
            reason = " ".join(str(error.err).split())
            raise ValueError(f"{name}: {width} x {height} pixels are more than OpenCV can take ({reason})") from None
        return Aligned(np.ascontiguousarray(pixels[..., ::-1]), name, len(faces), chosen)

    def _chosen(self, faces: list[Face], height: int, width: int, name: str) -> Face:
        if not faces:
            raise ValueError(
                f"{name}: no face in {width} x {height} pixels; give a photograph that shows one, or a lower "
                "detector.threshold"
            )
        large = [face for face in faces if face.side >= self.min_size]
        if not large:
            most = max(face.side for face in faces)
            raise ValueError(
                f"{name}: its largest face has {most:.0f} pixels, and {self.min_size} are asked for: give a larger "
                "photograph, or a lower min_size"
            )
        rivals = [face for face in large if face.side >= _RIVAL * max(one.side for one in large)]
        if self.face == "single" and len(rivals) > 1:
            raise ValueError(
                f"{name}: has {len(rivals)} faces; cut out the one that is meant, or choose face=largest, "
                "central or best"
            )
        choice = CHOICES.get(self.face, CHOICES["largest"])
        return max(large, key=lambda face: choice(face, height, width))


def open_photograph(photograph: Photograph, name: str = "") -> tuple[str, np.ndarray]:
    """What it is called, and its pixels (H,W,3) uint8 BGR, upright, in memory of at most 400 MB.

    Raises:
        ValueError: it is unreadable, too large, or an array of another kind.
        FileNotFoundError: there is no such file.
    """
    if isinstance(photograph, np.ndarray):
        name = name or "the array"
        if photograph.dtype != np.uint8 or photograph.ndim != 3 or photograph.shape[2] != 3 or not photograph.size:
            raise ValueError(
                f"{name}: has shape {photograph.shape} of {photograph.dtype}; a photograph is (H,W,3) uint8, RGB"
            )
        return name, np.ascontiguousarray(photograph[..., ::-1])
    if not isinstance(photograph, (str, Path)):
        raise ValueError(f"{photograph!r:.80}: is neither a file nor an array; give a path, or (H,W,3) uint8 RGB")
    path = Path(photograph).expanduser()
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give the photograph in it")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such photograph")
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path}: has {path.stat().st_size:,} bytes, {_MOST_BYTES:,} at most are read: shrink it")
    encoded = np.fromfile(path, np.uint8)
    _check_pixels(path, encoded)
    try:
        return str(path), read(encoded)
    except Unusable as error:
        raise ValueError(f"{path}: {error.detail or error.reason}; give another photograph") from None


def _check_pixels(path: Path, encoded: np.ndarray) -> None:
    """Refuses by the header alone what would fill the memory; what has none is told by whoever decodes it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(encoded.data)) as image:
                width, height = image.size
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: has too many pixels, {_MOST_PIXELS:,} at most are read ({error})") from None
    except (OSError, SyntaxError, ValueError):
        return
    if width * height > _MOST_PIXELS:
        raise ValueError(f"{path}: has {width:,} x {height:,} pixels, {_MOST_PIXELS:,} at most are read: shrink it")
