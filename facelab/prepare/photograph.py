"""Photographs as they come: of any format that OpenCV reads, turned by EXIF, grey, CMYK, 16-bit, damaged."""

import struct

import cv2
import numpy as np
import simplejpeg

from facelab.data.inspect import is_cut_short

__all__ = ["Unusable", "encode", "is_plain_jpeg", "orientation", "read"]

_MOST_PIXELS = 1 << 28  # of a JPEG: 800 MB in memory; OpenCV has a limit of its own for other formats
_DAMAGE = ("Premature end", "Corrupt JPEG")  # how libjpeg's remarks on lost or changed bytes begin
_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # EXIF orientation → what cv2.flip has to do, transposed from 5 on


class Unusable(ValueError):
    """An image of which no face can be made.

    Attributes:
        reason: in a few words, the same for all such images, to count by.
        detail: what is wrong with this one; may be empty.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def read(encoded: np.ndarray) -> np.ndarray:
    """Pixels (H,W,3) uint8, BGR, upright, of an encoded image (n,) uint8.

    Raises:
        Unusable: when it is damaged, cut short, too large or no image.
    """
    if encoded[:3].tobytes() == b"\xff\xd8\xff":
        return _read_jpeg(encoded)
    if not len(encoded):
        raise Unusable("unreadable", "is an empty file")
    if is_cut_short(encoded[:32].tobytes(), encoded):
        raise Unusable("unreadable", "is cut short")
    return _read_with_opencv(encoded)


def encode(image: np.ndarray, quality: int) -> bytes:
    """JPEG of an image (H,W,3) uint8, BGR."""
    done, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return encoded.tobytes()


def is_plain_jpeg(encoded: np.ndarray) -> bool:
    """Whether an image that can be read is an upright JPEG of three channels: what published sets hold."""
    try:
        colours = simplejpeg.decode_jpeg_header(encoded)[2]
    except ValueError:
        return False
    return colours in ("YCbCr", "RGB") and orientation(encoded.tobytes()) == 1


def orientation(jpeg: bytes) -> int:
    """EXIF's orientation of a JPEG, 1 (upright) to 8; 1 where it says nothing, or nothing that can be read."""
    position = 2
    while position + 4 <= len(jpeg) and jpeg[position] == 0xFF:
        marker = jpeg[position + 1]
        if marker == 0xFF:  # filling
            position += 1
            continue
        if marker in (0xDA, 0xD9):  # the image's own data, the end
            break
        end = position + 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
        if marker == 0xE1 and jpeg[position + 4 : position + 10] == b"Exif\0\0":
            return _orientation_in(jpeg[position + 10 : end])
        position = end
    return 1


def _orientation_in(tiff: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (begin,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, begin)
        for number in range(count):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, begin + 2 + 12 * number)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # it ends before what it speaks of
        pass
    return 1


def _read_jpeg(encoded: np.ndarray) -> np.ndarray:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:  # damaged, or a subsampling that it does not know
        height, width, colours = 0, 0, ""
    if height * width > _MOST_PIXELS:
        raise Unusable("unreadable", f"has {height} x {width} pixels, too many")
    try:
        if colours in ("CMYK", "YCCK"):  # which only OpenCV makes RGB of; it would fill up what is missing
            simplejpeg.decode_jpeg(encoded, "CMYK")
            return _read_with_opencv(encoded)
        image = simplejpeg.decode_jpeg(encoded, "BGR")
    except ValueError as error:
        if str(error).startswith(_DAMAGE):
            raise Unusable("unreadable", f"is damaged or cut short ({error})") from None
        return _read_with_opencv(encoded)
    return _upright(image, orientation(encoded.tobytes()))


def _upright(image: np.ndarray, turned: int) -> np.ndarray:
    if turned >= 5:
        image = cv2.transpose(image)
    return cv2.flip(image, _FLIPS[turned]) if turned in _FLIPS else image


def _read_with_opencv(encoded: np.ndarray) -> np.ndarray:
    try:
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR)  # EXIF applied, 8 bits, three channels
    except cv2.error as error:
        raise Unusable("unreadable", "cannot be decoded (" + " ".join(str(error.err).split()) + ")") from None
    if image is None:
        raise Unusable("unreadable", "is no image, or a damaged one")
    return image
