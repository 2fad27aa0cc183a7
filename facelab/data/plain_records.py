"""Many records of a RecordIO file looked at together: what is usual is decoded at once, the rest is left to the reader.

The checks are those of `recordio.py`, for all images of a batch's part in a few array operations. One after another
they take 5 µs an image, in which the interpreter lock keeps the other threads from beginning their next image.
"""

from typing import Any

import numpy as np
import simplejpeg

from facelab.pixels import EXIF

__all__ = ["decode_plain"]

_MAGIC = 0xCED7230A
_IMAGE = 32  # bytes of frame and header, before an image of one label
_HEAD = 24  # bytes of a JPEG that say what it is
_EXIF = np.frombuffer(EXIF, np.uint8)


def decode_plain(records: Any, rows: np.ndarray, target: np.ndarray) -> list[int]:
    """Decodes those records that are whole, of one label and a plain JPEG of the target's size.

    Args:
        records: `bytes` and `words` of the file, `offsets` of its records, and `bound(rows)`, up to which each may go.
            Their keys are not compared.
        rows: (n,) which records.
        target: (n,H,W,3) uint8, contiguous: where their pixels go.

    Returns:
        The places 0…n-1 that have no image yet: in one respect or another these records are not plain.
    """
    at = records.offsets[rows]
    word = at >> 2
    words = records.words
    ends = at + 8 + words[np.minimum(word + 1, len(words) - 1)]
    nexts = ends + 3 >> 2
    inside = (ends <= 4 * (len(words) - 1)) & (ends - at - _IMAGE > _HEAD)
    plain = inside & (words[word] == _MAGIC) & (words[np.minimum(word + 2, len(words) - 1)] == 0)
    plain &= 4 * nexts <= records.bound(rows)
    nexts = np.where(plain, nexts, 0)
    plain &= words[nexts] == _MAGIC
    begins = at + _IMAGE
    heads = records.bytes[np.where(plain, begins, 0)[:, None] + np.arange(_HEAD)]
    plain &= (heads[:, :3] == (0xFF, 0xD8, 0xFF)).all(axis=1)
    plain &= (heads[:, 2:4] != _EXIF).any(axis=1) & (heads[:, 20:22] != _EXIF).any(axis=1)
    left, files, shape = [], records.bytes, target.shape[1:]
    for place, (is_plain, begin, end, out) in enumerate(
        zip(plain.tolist(), begins.tolist(), ends.tolist(), target, strict=True)
    ):
        try:
            if not is_plain or simplejpeg.decode_jpeg(files[begin:end], "RGB", buffer=out).shape != shape:
                left.append(place)
        except ValueError:  # damaged, or of another size
            left.append(place)
    return left
