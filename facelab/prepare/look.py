"""Every image of a set is looked at once: is it sound, how large is it, and is there another like it?"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import simplejpeg

from facelab.data.inspect import UNREADABLE, Odd, inspect
from facelab.pixels import decode
from facelab.prepare.existing import tried

__all__ = ["ALIKE", "Looked", "copies", "look"]

ALIKE = ("bytes", "pixels")


class Looked(NamedTuple):
    """What was seen.

    Attributes:
        odd: images that are not 8-bit RGB JPEG, and folders without images (`facelab.data.inspect`).
        sound: (N,) bool, images that can be read.
        shapes: (N,2) int32, heights and widths in pixels; 0 where that was not seen.
        hashes: (N,) uint64 of bytes or pixels.
    """

    odd: tuple[Odd, ...]
    sound: np.ndarray
    shapes: np.ndarray
    hashes: np.ndarray


def look(source: Any, alike: str, threads: int, tell: Callable[[int, int], None]) -> Looked:
    """Looks at all images of a source.

    Args:
        source: a set.
        alike: whether images are copies whose `bytes` are equal, or whose `pixels` are.
        threads: how many look.
        tell: is told now and then how many have been looked at, and how many there are.

    Raises:
        ValueError: `alike` is neither, or there is no thread.
    """
    if alike not in ALIKE:
        raise ValueError(f"duplicates are told by {alike!r}: give one of {', '.join(ALIKE)}")
    hashing = _Hashing(source, alike == "pixels")
    found = inspect(hashing, True, "skip", "keep", threads, tell)
    sound = np.ones(len(source), dtype=bool)
    sound[[odd.image for odd in found.odd if odd.kind == UNREADABLE and odd.image is not None]] = False
    return Looked(found.odd, sound, hashing.shapes, hashing.hashes)


class _Hashing:
    """A source that remembers the hash and the size of every image whose bytes are asked for."""

    def __init__(self, source: Any, pixels: bool):
        self._source, self._pixels = source, pixels
        self.hashes = np.zeros(len(source), dtype=np.uint64)
        self.shapes = np.zeros((len(source), 2), dtype=np.int32)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def encoded(self, index: int) -> np.ndarray:
        encoded = self._source.encoded(index)
        image = decode(encoded) if self._pixels else None
        self.shapes[index] = _shape(encoded) if image is None else image.shape[:2]
        content = encoded if image is None else image
        self.hashes[index] = int.from_bytes(hashlib.blake2b(content.tobytes(), digest_size=8).digest(), "little")
        return encoded


def _shape(encoded: np.ndarray) -> tuple[int, int]:
    """Height and width by the header of a JPEG, else of the decoded image; (0, 0) where it is none."""
    header = tried(simplejpeg.decode_jpeg_header, encoded) if encoded[:3].tobytes() == b"\xff\xd8\xff" else None
    if header is not None:
        return header[0], header[1]
    image = decode(encoded)
    return (0, 0) if image is None else (image.shape[0], image.shape[1])


def copies(source: Any, looked: Looked, alike: str) -> Iterator[list[int]]:
    """Images that are alike, in groups of two or more, each in the order of the source.

    Equal hashes are only where to look: the images themselves are compared.
    """
    sound = np.flatnonzero(looked.sound)
    order = sound[np.argsort(looked.hashes[sound], kind="stable")]
    hashes = looked.hashes[order]
    bounds = np.flatnonzero(np.diff(hashes)) + 1
    groups = [group for group in np.split(order, bounds) if len(group) > 1]
    for group in sorted(groups, key=lambda group: int(group[0])):
        contents: dict[bytes, list[int]] = {}
        for index in group.tolist():
            encoded = source.encoded(index)
            image = decode(encoded) if alike == "pixels" else encoded
            assert image is not None, "it was readable before"
            content = f"{image.shape}".encode() + hashlib.sha256(image.tobytes()).digest()
            contents.setdefault(content, []).append(index)
        yield from (alike for alike in contents.values() if len(alike) > 1)
