"""Looks at every image before anything is trained: what is damaged or unusual is counted, and named in a file.

The usual is what published sets hold: JPEG with three channels of eight bits. Anything else that can be read trains as
well as it can (`facelab.pixels.decode` makes RGB of it); whether it should is for its owner to say.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg

from facelab.atomic import atomic
from facelab.pixels import decode

__all__ = ["Inspection", "Odd", "inspect"]

EMPTY = "empty folder"
UNREADABLE = "unreadable"
CHOICES = {"unreadable": ("stop", "skip"), "unusual": ("keep", "skip", "stop")}
_DONE = {"keep": "kept", "skip": "skipped", "stop": "stops the run"}
# File names may hold bytes that are no UTF-8: they are written as they are.
_TEXT: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
_CHUNK = 512  # images that a thread looks at in one go
_DAMAGE = ("Premature end", "Corrupt JPEG")  # how libjpeg's remarks on lost or changed bytes begin
_COLOURS = {"Gray": "grayscale", "CMYK": "CMYK", "YCCK": "CMYK"}  # of a JPEG; all others are three channels


class Odd(NamedTuple):
    """An image that is not an 8-bit RGB JPEG, or a folder without images."""

    image: int | None  # its number in the source; None for a folder
    identity: str
    name: str  # the file, or the record's key
    kind: str  # unreadable, grayscale, CMYK, 16-bit, PNG, BMP, WebP, another format, empty folder
    done: str  # kept, skipped, stops the run
    why: str  # what is wrong with an unreadable one


@dataclass(frozen=True)
class Inspection:
    """What was found, and what becomes of it.

    Attributes:
        images: N, all images of the source.
        looked: whether they were looked at.
        odd: what is not ordinary, in the source's order; folders without images come first.
    """

    images: int
    looked: bool
    odd: tuple[Odd, ...]

    @property
    def kept(self) -> np.ndarray:
        """(N,) bool: the images that are used."""
        kept = np.ones(self.images, dtype=bool)
        kept[[odd.image for odd in self.odd if odd.image is not None and odd.done == _DONE["skip"]]] = False
        return kept

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each kind that occurs; ordinary ones only where they were looked at."""
        counts = dict(Counter(odd.kind for odd in self.odd))
        ordinary = self.images - sum(count for kind, count in counts.items() if kind != EMPTY)
        return {"ordinary": ordinary, **counts} if self.looked else counts

    def refusal(self, file: Path) -> str | None:
        """One line where something must stop the run, else None; `file` is where all of it is named."""
        fatal = [odd for odd in self.odd if odd.done == _DONE["stop"]]
        if not fatal:
            return None
        unreadable = [odd for odd in fatal if odd.kind == UNREADABLE]
        first, what = (unreadable or fatal)[0], "unreadable" if unreadable else "unusual"
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in Counter(odd.kind for odd in fatal).items())
        return (
            f"data: of {self.images:,} images {kinds}; the first is {first.name} ({first.why or first.kind}), all are "
            f"named in {file}: mend or remove them, or leave them out with data.inspect.{what}=skip"
        )

    def __str__(self) -> str:
        """What a summary says."""
        done = Counter((odd.kind, odd.done) for odd in self.odd)
        parts = [f"{n:,} {_several(kind, n)} {what}" for (kind, what), n in done.items()]
        looked = f"{self.images:,} looked at" if self.looked else "not looked at (data.inspect.images=false)"
        if parts:
            return f"{looked}: {', '.join(parts)}; named in images.csv"
        return f"{looked}: all are 8-bit RGB JPEG" if self.looked else looked

    def write(self, file: Path) -> None:
        """Writes a line of counts (`# ` and JSON), and a table with a row for everything that is not ordinary."""
        with atomic(file) as temporary, open(temporary, "w", **_TEXT) as out:
            out.write("# " + json.dumps({"images": self.images, "looked": self.looked, **self.counts}) + "\n")
            writer = csv.writer(out)
            writer.writerow(Odd._fields)
            writer.writerows(self.odd)

    @classmethod
    def read(cls, file: Path, source: Any) -> "Inspection":
        """What `write` wrote about this source, so that a run that is resumed uses the same images.

        Raises:
            ValueError: when the file is damaged, or the source holds other images than it did then.
        """
        try:
            with open(file, **_TEXT) as lines:
                head = json.loads(lines.readline().removeprefix("# "))
                rows = list(csv.reader(lines))
            odd = tuple(Odd(int(image) if image else None, *rest) for image, *rest in rows[1:])
            found = cls(int(head["images"]), bool(head["looked"]), odd)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"{file}: cannot be read ({error}); delete it, and the images are looked at again"
            ) from error
        numbered = [(one.image, one.name) for one in odd if one.image is not None]
        moved = [name for index, name in numbered if index >= len(source) or source.name(index) != name]
        if found.images != len(source) or moved:
            another = f"others, without {moved[0]} in its place" if found.images == len(source) else f"{len(source):,}"
            raise ValueError(
                f"{file}: this run began with {found.images:,} images, and now there are {another}: put the data set "
                "back as it was, or begin another run (job=…)"
            )
        return found


def inspect(
    source: Any, images: bool, unreadable: str, unusual: str, threads: int, tell: Callable[[int, int], None]
) -> Inspection:
    """Looks at the images of a source, and decides about each that is not an 8-bit RGB JPEG.

    Unreadable is what a loader would refuse: damaged or cut short, no image at all, not square where the source does
    not crop (`crops`), or not of its size where it does not resize.

    Args:
        source: a data set with `encoded(index)` and `name(index)`; any other has only images of its own making.
        images: whether to look at them; folders without images are told in any case.
        unreadable: what becomes of unreadable images: stop, skip.
        unusual: what becomes of grayscale, CMYK, 16-bit and non-JPEG images: keep, skip, stop.
        threads: how many look.
        tell: is told now and then how many have been looked at, and how many there are.

    Raises:
        ValueError: when a choice is none of those above, or there is no thread.
    """
    for key, value in (("unreadable", unreadable), ("unusual", unusual)):
        if value not in CHOICES[key]:
            raise ValueError(f"data.inspect.{key} is {value!r}: give one of {', '.join(CHOICES[key])}")
    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads is {threads!r}: at least 1 is needed to look at images")
    odd = [Odd(None, folder, folder, EMPTY, "left out", "") for folder in getattr(source, "empty", ())]
    if not images or not hasattr(source, "encoded"):
        return Inspection(len(source), False, tuple(odd))
    chunks = [range(first, min(first + _CHUNK, len(source))) for first in range(0, len(source), _CHUNK)]
    pool = ThreadPoolExecutor(threads, thread_name_prefix="facelab-inspect")
    try:
        for chunk, found in zip(chunks, pool.map(lambda chunk: _examine(source, chunk), chunks), strict=True):
            for index, kind, why in found:
                done = _DONE[unreadable if kind == UNREADABLE else unusual]
                identity = source.identity_names[source.labels[index]]
                odd.append(Odd(index, identity, source.name(index), kind, done, why))
            tell(chunk.stop, len(source))
    finally:
        pool.shutdown(cancel_futures=True)
    return Inspection(len(source), True, tuple(odd))


def _examine(source: Any, indices: Iterable[int]) -> list[tuple[int, str, str]]:
    """Index, kind, and what is wrong, of the images that are not ordinary."""
    found = []
    buffer = np.empty((source.size, source.size, 3), dtype=np.uint8)
    for index in indices:
        try:
            kind, shape = _kind(source.encoded(index), buffer)
        except (ValueError, OSError) as error:
            kind, shape, why = UNREADABLE, (0, 0), " ".join(str(error).split())
        else:
            # The sets of a union differ in what they resize.
            own = source.of(index)[0] if hasattr(source, "of") else source
            why = _misshapen(shape, own)
        if why:
            kind = UNREADABLE
        if kind is not None:
            found.append((index, kind, why))
    return found


def _misshapen(shape: tuple[int, int], source: Any) -> str:
    height, width = shape
    if height != width and not getattr(source, "crops", False):
        return f"is {height}×{width} pixels, not square: align the faces first (python -m facelab.prepare)"
    if height != source.size and not source.resizes:
        return f"is {height}×{width} pixels, not {source.size}×{source.size}"
    return ""


def _kind(encoded: np.ndarray, buffer: np.ndarray) -> tuple[str | None, tuple[int, int]]:
    """What an image is (None: an 8-bit RGB JPEG), and its height and width.

    Raises:
        ValueError: when it cannot be read, saying why.
    """
    head = encoded[:32].tobytes()
    if head[:3] == b"\xff\xd8\xff":
        return _kind_of_jpeg(encoded, buffer)
    if _is_cut_short(head, encoded):
        raise ValueError("is cut short")
    image = decode(encoded)
    if image is None:
        raise ValueError("is no image" if len(encoded) else "is an empty file")
    if head[:4] == b"\x89PNG":
        depth, colour = head[24], head[25]
        return "16-bit" if depth == 16 else "grayscale" if colour in (0, 4) else "PNG", image.shape[:2]
    stored = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    if stored is not None and stored.dtype != np.uint8:
        return "16-bit", image.shape[:2]
    if stored is not None and stored.ndim == 2:
        return "grayscale", image.shape[:2]
    return {b"BM": "BMP", b"RI": "WebP"}.get(head[:2], "of another format"), image.shape[:2]


def _kind_of_jpeg(encoded: np.ndarray, buffer: np.ndarray) -> tuple[str | None, tuple[int, int]]:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:  # damaged, or a subsampling that it does not know
        height = width = 0
        colours = ""
    try:
        simplejpeg.decode_jpeg(encoded, "RGB", buffer=buffer if (height, width) == buffer.shape[:2] else None)
    except ValueError as error:
        if str(error).startswith(_DAMAGE):  # other readers may fill up what is missing, and say nothing
            raise
        image = decode(encoded)
        if image is None:
            raise ValueError("is a damaged JPEG") from None
        height, width = image.shape[:2]
    return _COLOURS.get(colours), (height, width)


def _is_cut_short(head: bytes, encoded: np.ndarray) -> bool:
    """Whether a file has lost its end, by its own account; some decoders fill up what is missing and say nothing."""
    if head[:4] == b"\x89PNG":
        return b"IEND" not in encoded[-1024:].tobytes()
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return int.from_bytes(head[4:8], "little") + 8 > len(encoded)
    return head[:2] == b"BM" and int.from_bytes(head[2:6], "little") > len(encoded)


def _several(kind: str, count: int) -> str:
    return f"{kind}s" if kind == EMPTY and count != 1 else kind
