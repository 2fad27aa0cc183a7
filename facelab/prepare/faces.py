"""From the bytes of a photograph to the JPEG of an aligned face."""

from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np

from facelab.alignment import similarities, warp
from facelab.pixels import fit
from facelab.prepare.detect import CHOICES, Face, YuNet
from facelab.prepare.parts import Made
from facelab.prepare.photograph import Unusable, encode, is_plain_jpeg, read

__all__ = ["WAYS", "Aligner", "Keeper"]


class Aligner:
    """Finds faces, chooses one, brings it onto the template; may be called from several threads.

    Args:
        detector: image (H,W,3) uint8, BGR → faces.
        face: which of several, one of CHOICES.
        min_size: pixels of the photograph that the shorter side of a face's box has at least.
        size: pixels of the aligned face.
        quality: of its JPEG.
    """

    def __init__(self, detector: Callable[[np.ndarray], list[Face]], face: str, min_size: int, size: int, quality: int):
        self.detector, self.choice = detector, CHOICES[face]
        self.min_size, self.size, self.quality = min_size, size, quality

    def __call__(self, encoded: np.ndarray) -> Made:
        """The face of a photograph's bytes (n,) uint8.

        Raises:
            Unusable: it is unreadable, or has no face, or none that is large enough.
        """
        image = read(encoded)
        height, width = image.shape[:2]
        try:
            faces = self.detector(image)
            if not faces:
                raise Unusable("no face", f"in {width} x {height} pixels")
            chosen = self._chosen(faces, height, width)
            pixels = warp(image, similarities(chosen.points[None], self.size)[0], self.size)
        except cv2.error as error:  # some sides are too long for it, or too short
            reason = " ".join(str(error.err).split())
            raise Unusable("no face", f"OpenCV cannot take {width} x {height} pixels ({reason})") from None
        about = {"found": len(faces), "score": round(chosen.score, 4)}
        about |= dict(zip(("left", "top", "width", "height"), (round(value, 2) for value in chosen.box), strict=True))
        for number, (x, y) in enumerate(chosen.points.tolist(), start=1):
            about |= {f"x{number}": round(x, 2), f"y{number}": round(y, 2)}
        return Made(encode(pixels, self.quality), about)

    def _chosen(self, faces: list[Face], height: int, width: int) -> Face:
        large = [face for face in faces if face.side >= self.min_size]
        if not large:
            most = max(face.side for face in faces)
            raise Unusable("too small", f"the largest of {len(faces)} faces has {most:.0f} pixels")
        return max(large, key=lambda face: self.choice(face, height, width))


class Keeper:
    """Takes images that are aligned faces already; JPEGs of the right size stay as they are, byte for byte.

    Args:
        min_size: pixels of the side that an image has at least.
        size: pixels to which larger and smaller ones are brought.
        quality: of the JPEG of what is brought to another size, or was no JPEG of three channels.
    """

    def __init__(self, min_size: int, size: int, quality: int):
        self.min_size, self.size, self.quality = min_size, size, quality

    def __call__(self, encoded: np.ndarray) -> Made:
        """The face of an image's bytes (n,) uint8.

        Raises:
            Unusable: it is unreadable, not square or too small.
        """
        image = read(encoded)
        height, width = image.shape[:2]
        if height != width:
            raise Unusable("not square", f"has {width} x {height} pixels: detect=yunet finds and aligns faces")
        if height < self.min_size:
            raise Unusable("too small", f"has {width} x {height} pixels")
        about = {"pixels": height}
        if height == self.size and is_plain_jpeg(encoded):
            return Made(encoded.tobytes(), about)
        return Made(encode(fit(image, self.size, "image"), self.quality), about)


def _aligner(detector: Mapping[str, Any], face: str, **options: int) -> tuple[Aligner, dict[str, Any]]:
    network = YuNet(**detector)
    told = {key: value for key, value in detector.items() if key != "model"}
    return Aligner(network, face, **options), {"face": face, "detector": {**told, "sha256": network.sha256}}


def _keeper(detector: Mapping[str, Any], face: str, **options: int) -> tuple[Keeper, dict[str, Any]]:
    return Keeper(**options), {}


# detect= → from its options to who makes faces, and what of these options makes a difference.
WAYS: dict[str, Callable[..., tuple[Callable[[np.ndarray], Made], dict[str, Any]]]] = {
    "yunet": _aligner,
    "none": _keeper,
}
