"""From the bytes of an image file to RGB pixels, the same way in every room."""

import cv2
import numpy as np
import simplejpeg

__all__ = ["decode", "fit", "is_plain_jpeg"]

EXIF = b"\xff\xe1"  # begins a part that may say how an image is to be turned


def decode(encoded: np.ndarray, out: np.ndarray | None = None) -> np.ndarray | None:
    """Pixels (H,W,3) uint8 RGB of an encoded image, or None where the bytes are none that can be read.

    JPEG goes through libjpeg-turbo, which gives OpenCV's pixels and can put them where they belong; what it hands back
    and all other formats go through OpenCV. Grey becomes three equal channels, CMYK becomes RGB, 16 bits become 8,
    transparency is dropped, an EXIF rotation is applied. The interpreter lock is free while pixels are made.

    Args:
        encoded: (n,) uint8, contiguous.
        out: (H,W,3) uint8, contiguous: where the pixels go if the image has this shape.
    """
    if len(encoded) < 4:
        return None
    if is_plain_jpeg(encoded):
        try:
            image = simplejpeg.decode_jpeg(encoded, "RGB", buffer=out)
            return out if out is not None and out.shape == image.shape else image
        except ValueError:
            if out is not None:  # another size, perhaps
                return decode(encoded)
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)


def is_plain_jpeg(encoded: np.ndarray) -> bool:
    """Whether bytes (n,) uint8 begin as a JPEG without EXIF: as one whose pixels lie as they are to be seen."""
    head = encoded[:24].tobytes()
    # EXIF follows the first two bytes, or a JFIF header of the usual 16 bytes.
    return head[:3] == b"\xff\xd8\xff" and head[2:4] != EXIF and head[20:22] != EXIF


def fit(image: np.ndarray, size: int, what: str) -> np.ndarray:
    """A square uint8 image (H,H,3) at `size` pixels: shrunk by area, enlarged by cubic interpolation.

    Raises:
        ValueError: when the image is not square; `what` names it in the message.
    """
    height, width = image.shape[:2]
    if height != width:
        raise ValueError(
            f"{what}: is {height}×{width} pixels, not square: align the faces first (python -m facelab.prepare)"
        )
    if height == size:
        return image
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if height > size else cv2.INTER_CUBIC)
