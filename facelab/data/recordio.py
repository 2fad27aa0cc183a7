"""InsightFace's RecordIO (`train.rec`, `train.idx`, `property`) read without mxnet.

A record is a magic word, a length word (upper three bits: part of a longer record), a payload, and padding to four
bytes. A payload is a header (flag, label, id, id2), `flag` further float32 labels, and an encoded image. InsightFace's
own sets begin with a record without image, whose two labels are [first identity record, end), and end with one record
without image for every identity, whose two labels are [first image, end). Other sets hold images only.

Labels are float32, so numbers above 2^24 in these records are rounded: where it matters, the index and the images
decide, and the identity records only say where to look.

A record must end where the next one begins, and no two keys may share one: so a changed length or a damaged index is an
error, never another image. Where records do not lie in the order of their keys (im2rec shuffles as it writes), a record
must also name its own key, if the set's records do that at all.
"""

import mmap
import struct
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path

import numpy as np

from facelab.data.plain_records import decode_plain
from facelab.data.record_index import Known, keep, read_index, recall
from facelab.pixels import decode

__all__ = ["RecordIOFaces"]

_MAGIC = 0xCED7230A
_MAGIC_BYTES = np.frombuffer(struct.pack("<I", _MAGIC), dtype=np.uint8)
_FRAME = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
_SMALLEST = _FRAME.size + _HEADER.size  # bytes of a record
_EXACT = 2**24  # float32 holds every whole number up to here
_SAMPLE = 1024  # records looked at when a set is opened
_CHUNK = 1 << 18  # headers gathered at once
_NO_MAGIC = " does not begin with the magic word: the index belongs to another file, or the file is damaged"
_TRUNCATED = " runs over the end of the file: the file is truncated"


class RecordIOFaces:
    """A training set in InsightFace's format. Nothing is copied: images are decoded from the memory-mapped file.

    Opening reads the index, a sample of the records, and the labels: one image of each identity where the set has
    identity records (and a few around each boundary beyond image 2^24, where float32 blurs it), else the header of
    every image, which takes a while on a cold disk. Of a set of a million records and more this is kept for the next
    time, see record_index.py.

    Attributes:
        labels: (N,) int64, contiguous 0…num_classes-1 (identities that have images).
        identity_names: the label that each identity has in the file, as text.
        size: height and width of the images in pixels.
        resizes: no image is resized, all have `size`.

    Args:
        root: folder with `train.rec`, `train.idx` and `property`.
        size: height and width in pixels; must be what `property` says.

    Raises:
        FileNotFoundError: when the folder or one of its files is missing.
        ValueError: when a file is empty, truncated or malformed, or when they disagree.
    """

    resizes = False

    def __init__(self, root: str | PathLike, size: int) -> None:
        self.root, self.size = Path(root).expanduser(), size
        if not self.root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder; expected one with train.rec, train.idx and property")
        rec, idx, described = (self.root / name for name in ("train.rec", "train.idx", "property"))
        for path in (rec, idx, described):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file; a set is train.rec, train.idx and property")
        classes = _read_property(described, size)
        known = recall(rec, idx)
        self._records = _Records(rec, idx, known)
        if known is None:
            known = _learn(self._records)
            if self._records.in_order:
                keep(rec, idx, known)
        names = known.names
        if len(names) > classes:
            raise ValueError(f"{described}: says {classes} identities, but {rec.name} has images of {len(names)}")
        if names[-1] >= classes:
            image = int(np.argmax(known.labels >= np.searchsorted(names, classes)))
            raise ValueError(
                f"{self._records.describe(known.first + image)} has the label {names[known.labels[image]]}, but "
                f"{described.name} says {classes} identities, 0 to {classes - 1}: they do not belong together; if the "
                f"labels are right, write {names[-1] + 1},{size},{size} into {described.name}"
            )
        if len(names) < 2:
            raise ValueError(f"{rec}: has images of one identity only (label {names[0]}), 2 are needed")
        self._first_row = known.first
        self.labels = known.labels
        self.num_classes = len(names)
        self.identity_names = [str(name) for name in names.tolist()]

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple:
        # A memory map cannot be sent to another process: the set is opened again there.
        return type(self), (self.root, self.size)

    def name(self, index: int) -> str:
        """An image's name within the set, its record's key."""
        return f"key {self._records.keys[self._first_row + index]}"

    def encoded(self, index: int) -> np.ndarray:
        """Bytes of an image file (n,) uint8, as they lie in the set: for decoders other than OpenCV."""
        if not 0 <= index < len(self.labels):
            raise IndexError(f"image {index} of {len(self.labels)}")
        return self._records.read(self._first_row + index)[1]

    def load_plain(self, indices: np.ndarray, target: np.ndarray) -> list[int]:
        """Images (n,) of the usual kind into (n,H,W,3), all at once; gives the places of the others."""
        if self._records.checks_keys:
            return list(range(len(indices)))
        return decode_plain(self._records, self._first_row + indices, target)

    def load(self, index: int, out: np.ndarray | None = None) -> np.ndarray:
        """Image (H,W,3), uint8, RGB, in `out` where its shape is that; may be called from several threads.

        Raises:
            ValueError: when the record is damaged or holds no readable image, naming file and key.
        """
        image = decode(self.encoded(index), out)
        if image is None:
            raise ValueError(
                f"{self._records.describe(self._first_row + index)} holds no readable image; have all such images "
                "found and left out with data.inspect.images=true data.inspect.unreadable=skip"
            )
        return image


class _Records:
    """The records of a file, numbered in the order of their keys (a row is a place in that order)."""

    def __init__(self, rec: Path, idx: Path, known: Known | None) -> None:
        self.path = rec
        self.size = rec.stat().st_size
        if self.size < _SMALLEST:
            raise ValueError(f"{rec}: has {self.size} bytes, no record fits: it is empty or truncated")
        if known is None:
            self.keys, self.offsets = read_index(idx)
            self._check_offsets(idx)
            self.last = int(np.argmax(self.offsets))
            self.in_order = bool((self.offsets[1:] > self.offsets[:-1]).all())
        else:
            self.keys, self.offsets, self.last = known.keys, known.offsets, known.last
            self.in_order = True  # of no other set it is kept what is known
        self._bounds = self.offsets[1:] if self.in_order else _following(self.keys, self.offsets, idx)
        self._named = range(0)
        with rec.open("rb") as file:
            self.bytes = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
        self.words = self.bytes[: self.size // 4 * 4].view("<u4")
        sample = self._sample(range(len(self.keys)))
        self._check_magic(sample, self.words[self.offsets[sample] >> 2])
        self.read(self.last)  # a truncated file ends within its last record

    def _check_offsets(self, idx: Path) -> None:
        rec = self.path
        wrong = (self.offsets < 0) | (self.offsets > self.size - _SMALLEST) | (self.offsets % 4 != 0)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(
                f"{idx}: key {self.keys[row]} points to byte {self.offsets[row]}, where no record of {rec.name} "
                f"({self.size} bytes) can be: {rec.name} is truncated, or the index belongs to another file"
            )

    @property
    def checks_keys(self) -> bool:
        """Whether each image is asked for its key."""
        return len(self._named) > 0

    def describe(self, row: int) -> str:
        """A record's name for a message."""
        return f"{self.path}: the record of key {self.keys[row]} (byte {self.offsets[row]})"

    def expect_keys(self, images: range) -> None:
        """Has the images be checked for their keys, where their order leaves a doubt and their headers hold keys."""
        if not self.in_order:
            sample = self._sample(images)
            at = self.offsets[sample] >> 2
            ids = self.words[at + 4].astype(np.int64) | self.words[at + 5].astype(np.int64) << 32
            if 2 * (ids == np.asarray(self.keys)[sample]).sum() > len(sample):
                self._named = images

    def bound(self, rows: np.ndarray) -> np.ndarray:
        """(n,) the byte that the next record begins with, or one behind the file."""
        past = self.size + 3
        last = len(self._bounds) - 1
        return np.where(rows <= last, self._bounds[np.minimum(rows, last)], past)

    def _sample(self, rows: range) -> np.ndarray:
        return np.unique(np.linspace(rows.start, rows.stop - 1, _SAMPLE).astype(np.int64))

    def read(self, row: int) -> tuple[list[float], np.ndarray]:
        """A record's labels, and the bytes of its image (empty where it has none)."""
        payload, _ = self._payload(row)
        if len(payload) < _HEADER.size:
            raise ValueError(f"{self.describe(row)} is shorter than a header: the file is damaged")
        flag, label, key, _ = _HEADER.unpack_from(payload.data)
        if row in self._named and key != int(self.keys[row]):
            raise ValueError(f"{self.describe(row)} says of itself that its key is {key}: the index is damaged")
        if not flag:
            return [label], payload[_HEADER.size :]
        end = _HEADER.size + 4 * flag
        if end > len(payload):
            raise ValueError(f"{self.describe(row)} is too short for its {flag} labels: the file is damaged")
        labels = payload[_HEADER.size : end].view("<f4").tolist()
        if not (labels[0] >= 0 and labels[0].is_integer()):  # of an image, for instance, whose flag is damaged
            raise ValueError(f"{self.describe(row)} has the label {labels[0]}: it must be a whole number")
        return labels, payload[end:]

    def _payload(self, row: int) -> tuple[np.ndarray, int]:
        """What a record holds, and where the next one begins."""
        position = int(self.offsets[row])
        parts: list[np.ndarray] = []
        while True:
            if position + _FRAME.size > self.size:
                raise ValueError(self.describe(row) + _TRUNCATED)
            magic, length = _FRAME.unpack_from(self.bytes.data, position)
            if magic != _MAGIC:
                raise ValueError(self.describe(row) + _NO_MAGIC)
            part, length = length >> 29, length & 0x1FFFFFFF
            end = position + _FRAME.size + length
            if end > self.size:
                raise ValueError(self.describe(row) + _TRUNCATED)
            payload = self.bytes[position + _FRAME.size : end]
            end = (end + 3) // 4 * 4
            if part == 0 and not parts:
                self._check_next(row, end)
                return payload, end
            if part not in ((2, 3) if parts else (1,)):
                raise ValueError(f"{self.describe(row)} has its parts in a wrong order: the file is damaged")
            parts += [_MAGIC_BYTES, payload] if parts else [payload]
            if part == 3:
                self._check_next(row, end)
                return np.concatenate(parts), end
            position = end

    def _check_next(self, row: int, end: int) -> None:
        """A record that ends elsewhere than where another begins has a wrong length."""
        word = end >> 2
        if end > (self._bounds[row] if row < len(self._bounds) else self.size + 3) or (
            word < len(self.words) and self.words[word] != _MAGIC
        ):
            raise ValueError(f"{self.describe(row)} does not end where another one begins: the file is damaged")

    def check_end(self) -> None:
        """Refuses an index that has lost its end: without gaps, and images lie behind the last record that it names."""
        _, end = self._payload(self.last)
        if end + _SMALLEST > self.size or not isinstance(self.keys, range):
            return
        flag, length = int(self.words[(end >> 2) + 2]), int(self.words[(end >> 2) + 1]) & 0x1FFFFFFF
        if length > _HEADER.size + 4 * flag:
            raise ValueError(
                f"{self.path}: goes on with further images behind that of key {self.keys[self.last]} (byte {end}), the "
                "last that its index names: the index is truncated, or belongs to another file"
            )

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """The (first) label of each row, int64, gathered from the headers; threads, because a cold disk has to seek."""
        chunks = [rows[first : first + _CHUNK] for first in range(0, len(rows), _CHUNK)]
        with ThreadPoolExecutor(8) as pool:
            return np.concatenate(list(pool.map(self._labels, chunks)))

    def _labels(self, rows: np.ndarray) -> np.ndarray:
        at = self.offsets[rows] >> 2
        magic, frame, flag, label = (self.words[at + word] for word in range(4))
        self._check_magic(rows, magic)
        label = label.view("<f4").copy()
        several = np.flatnonzero((flag > 0) & (at + 8 < len(self.words)))
        label[several] = self.words[at[several] + 8].view("<f4")
        # Whatever is not one plain record of a plausible length is read slowly, with all checks.
        odd = (frame >> 29 != 0) | ((frame & 0x1FFFFFFF) < _HEADER.size + 4 * flag.astype(np.int64))
        for number in np.flatnonzero(odd).tolist():
            label[number] = self.read(int(rows[number]))[0][0]
        wrong = ~((label >= 0) & (label < _EXACT)) | (label != np.floor(label))
        if wrong.any():
            number = int(np.argmax(wrong))
            where = self.describe(int(rows[number]))
            raise ValueError(f"{where} has the label {label[number]}: it must be a whole number below 2^24")
        return label.astype(np.int64)

    def _check_magic(self, rows: np.ndarray, magic: np.ndarray) -> None:
        wrong = magic != _MAGIC
        if wrong.any():
            raise ValueError(self.describe(int(rows[np.argmax(wrong)])) + _NO_MAGIC)


def _following(keys: range | np.ndarray, offsets: np.ndarray, idx: Path) -> np.ndarray:
    """Where the next record begins behind each one that lies in any order; very far behind the last."""
    order = np.argsort(offsets, kind="stable")
    twice = np.flatnonzero(np.diff(offsets[order]) == 0)
    if len(twice):
        one, other = (keys[row] for row in order[twice[0] : twice[0] + 2].tolist())
        where = offsets[order[twice[0]]]
        raise ValueError(f"{idx}: keys {one} and {other} point to the same byte {where}: the index is damaged")
    bounds = np.full(len(offsets), np.iinfo(np.int64).max)
    bounds[order[:-1]] = offsets[order[1:]]
    return bounds


def _read_property(path: Path, size: int) -> int:
    """Number of identities that `property` declares."""
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    fields = text.split(",")
    if len(fields) != 3 or not all(field.strip().isdecimal() for field in fields):
        raise ValueError(f"{path}: is {text[:60]!r}, expected three whole numbers 'classes,height,width'")
    classes, height, width = (int(field) for field in fields)
    if (height, width) != (size, size):
        raise ValueError(f"{path}: says images of {height}×{width} pixels, but size is {size}: make them equal")
    return classes


def _learn(records: _Records) -> Known:
    """Which records are images, and whose."""
    images, identities = _sections(records)
    records.expect_keys(images)
    ranged = len(identities) and records.in_order
    labels = _labels_by_ranges(records, images, identities) if ranged else None
    if labels is None:
        labels = records.labels(np.arange(images.start, images.stop))
    present = np.zeros(int(labels.max()) + 1, dtype=bool)
    present[labels] = True
    contiguous = (np.cumsum(present) - 1)[labels]
    return Known(records.keys, records.offsets, images.start, records.last, contiguous, np.flatnonzero(present))


def _sections(records: _Records) -> tuple[range, range]:
    """Rows of images and rows of identity records."""
    count = len(records.keys)
    labels, image = records.read(0)
    if len(image):
        labels, image = records.read(count - 1)
        if len(labels) == 2 and not len(image):
            raise ValueError(
                f"{records.path}: begins with an image and ends with an identity record: its header is damaged, or "
                "the index lacks it"
            )
        records.check_end()
        return range(count), range(0)
    if len(labels) < 2:
        raise ValueError(f"{records.describe(0)} is neither an image nor a header")
    if records.keys[0] != 0 or records.keys[-1] != count - 1:
        raise ValueError(
            f"{records.path}: begins with a header, so its index must have the keys 0 to {count - 1}, but the keys run "
            f"from {records.keys[0]} to {records.keys[-1]}: the index lacks records"
        )
    # The header's own numbers may be rounded. Images come first, so bisecting finds where they end.
    low, high = 1, count
    while low < high:
        middle = (low + high) // 2
        if len(records.read(middle)[1]):
            low = middle + 1
        else:
            high = middle
    if low == 1:
        raise ValueError(f"{records.path}: holds no images")
    for what, said, found in (("images up to", labels[0], low), ("identity records up to", labels[1], count)):
        cut_off = what.startswith("identity") and low == count  # an index of the images alone is fine
        if not cut_off and not abs(said - found) <= _blur(np.array(found)):
            raise ValueError(
                f"{records.path}: its header says {what} key {said:.0f}, but its index has them up to {found}: "
                "they do not belong together"
            )
    return range(1, low), range(low, count)


def _blur(numbers: np.ndarray) -> np.ndarray:
    """How far off whole numbers may be that were rounded to float32."""
    return np.where(numbers >= _EXACT, np.spacing(numbers.astype(np.float32)) / 2, 0).astype(np.float64)


def _labels_by_ranges(records: _Records, images: range, identities: range) -> np.ndarray | None:
    """Labels of all images from one image of each identity; None where the identity records do not fit the images."""
    at = records.offsets[identities.start : identities.stop] >> 2
    plain = (at + 9 < len(records.words)).all()
    if not plain or (records.words[at + 1] != _HEADER.size + 8).any() or (records.words[at + 2] != 2).any():
        return None
    first, end = (records.words[at + word].view("<f4").astype(np.float64) for word in (8, 9))
    complete = first[0] == images.start and abs(end[-1] - images.stop) <= _blur(np.array(images.stop))
    if not complete or (first[1:] != end[:-1]).any() or not (first <= end).all():
        return None
    # Every change of label lies within `blur` of a rounded boundary: labels read there hold until the next one read.
    blur = _blur(first)
    shifts = range(-int(blur.max()), int(blur.max()) + 1)
    reads = np.unique(np.concatenate([first[abs(shift) <= blur] + shift for shift in shifts]).astype(np.int64))
    reads = reads[(reads >= images.start) & (reads < images.stop)]
    read = records.labels(reads)
    if len(np.unique(read)) < (first < end).sum():  # one of the images read has a wrong label: ask them all
        return None
    labels = np.repeat(read, np.diff(np.append(reads, images.stop)))
    sample = np.unique(np.linspace(0, len(labels) - 1, _SAMPLE).astype(np.int64))
    return labels if (records.labels(sample + images.start) == labels[sample]).all() else None
