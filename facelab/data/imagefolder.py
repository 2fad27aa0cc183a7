"""Photographs of anything, one folder for each class, as torchvision's ImageFolder has them."""

import os
from os import PathLike
from pathlib import Path

import cv2
import numpy as np

from facelab.pixels import decode

__all__ = ["ImageFolder"]

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
_LAYOUT = (
    "expected <root>/train/<class>/<image>.jpg, and <root>/val/<class>/… beside it or nothing; or <root>/<class>/…"
)


class ImageFolder:
    """Images as `<root>/train/<class>/…` and `<root>/val/<class>/…`, or as `<root>/<class>/…`, at any depth below.

    Classes are the folders of the training part in the order of their names, images the files in the order of theirs,
    the training part first. Hidden files and folders, and files that are no images, are left out. Images may have any
    size and aspect: the largest square in their middle is brought to `size`, which is the shorter side resized and the
    rest cut off.

    Attributes:
        labels: (N,) int64, class of each image, 0…num_classes-1.
        reported: (N,) bool, the images of the part that is reported on, and never trained on.
        num_classes: number of classes.
        identity_names: the classes' names.
        size: height and width of the loaded images in pixels.
        empty: the folders without an image, which are left out.
        resizes: images of another size are brought to `size`.
        crops: and so are those that are not square.
        closed_set: the classes that are reported on are those that are trained on.

    Args:
        root: folder that holds the parts, or the classes.
        size: height and width in pixels that images are brought to.
        train: folder of the training part; where it is missing, or has no folders, the classes lie in `root` itself.
        val: folder of the part that is reported on, where there are parts; None: a share of the training part is.

    Raises:
        FileNotFoundError: `root` or one of the parts is missing.
        ValueError: there are no images, or of fewer than two classes; or a class is reported on and not trained on.
    """

    resizes = crops = closed_set = True

    def __init__(self, root: str | PathLike, size: int, train: str, val: str | None) -> None:
        self.root, self.size = Path(root).expanduser(), size
        if not self.root.is_dir():
            raise FileNotFoundError(f"data.root={root}: no such folder; {_LAYOUT}")
        parts = self._parts(train, val)
        trained = _classes(self.root / parts[0])
        self.empty = [_join(parts[0], name) for name, files in trained.items() if not files]
        self.identity_names = [name for name, files in trained.items() if files]
        self.num_classes = len(self.identity_names)
        if self.num_classes < 2:
            found = f"only of {self.identity_names[0]!r}" if self.identity_names else "of none"
            raise ValueError(
                f"data.root={root}: has images {found} of {len(trained)} classes, at least 2 are needed; {_LAYOUT}"
            )
        reports = _classes(self.root / parts[1]) if len(parts) > 1 else {}
        self.empty += [_join(parts[1], name) for name, files in reports.items() if not files]
        reports = {name: files for name, files in reports.items() if files}
        strange = sorted(reports.keys() - set(self.identity_names))
        if strange:
            raise ValueError(
                f"data.root={root}: {parts[1]}/{strange[0]} has images, and {parts[0]}/{strange[0]} none"
                + (f"; so it is with {len(strange) - 1:,} more" if len(strange) > 1 else "")
                + ": what is reported has to be trained, so the classes of both have to be the same"
            )
        if len(parts) > 1 and not reports:
            raise ValueError(f"data.root={root}: {parts[1]} has no images; put them there, or set data.val=null")
        self._files: list[str] = []
        labels: list[int] = []
        for part, classes in zip(parts, (trained, reports), strict=False):
            for number, name in enumerate(self.identity_names):
                files = classes.get(name, [])
                self._files += [_join(part, f"{name}/{file}") for file in files]
                labels += [number] * len(files)
        self.labels = np.array(labels, dtype=np.int64)
        self.reported = np.arange(len(labels)) >= sum(map(len, trained.values()))

    def _parts(self, train: str, val: str | None) -> list[str]:
        """The folders below root that hold classes: that to train on ("" for root itself), that to report on."""
        folders = {name: _folders(self.root / name) for name in _folders(self.root)}
        if folders.get(train):
            if val is None:
                return [train]
            if val in folders:
                return [train, val]
            others = sorted(folders.keys() - {train})
            if others:
                raise FileNotFoundError(
                    f"data.root={self.root}: has {train}/ and {', '.join(f'{name}/' for name in others[:4])}, but no "
                    f"{val}/: say with data.val=… which is reported, or data.val=null for a share of {train}/"
                )
            return [train]
        if val is not None and folders.get(val):
            raise FileNotFoundError(
                f"data.root={self.root}: has {val}/ with a folder for each class, but no such {train}/; {_LAYOUT}, or "
                "data.train=… says what it is called"
            )
        return [""]

    def __len__(self) -> int:
        return len(self._files)

    def path(self, index: int) -> Path:
        """Where an image lies."""
        return self.root / self._files[index]

    def name(self, index: int) -> str:
        """An image's name within the set, <part>/<class>/<file>."""
        return self._files[index]

    def encoded(self, index: int) -> np.ndarray:
        """Bytes of an image file (n,) uint8, as they lie in the set."""
        return np.fromfile(self.path(index), dtype=np.uint8)

    def load(self, index: int, out: np.ndarray | None = None) -> np.ndarray:
        """Image (size,size,3), uint8, RGB, in `out` where its file has that shape; may be called from several threads.

        Raises:
            ValueError: when the file is not a readable image, naming it.
        """
        image = decode(self.encoded(index), out)
        if image is None:
            raise ValueError(
                f"{self.path(index)}: is not a readable image; remove it, or have all such images found and left out "
                "with data.inspect.images=true data.inspect.unreadable=skip"
            )
        return centre_square(image, self.size)


def centre_square(image: np.ndarray, size: int) -> np.ndarray:
    """The largest square in the middle of a uint8 image (H,W,3), at `size` pixels: by area if smaller, else cubic."""
    height, width = image.shape[:2]
    side = min(height, width)
    if height != width:
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    if side == size:
        return image
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)


def _join(part: str, name: str) -> str:
    return f"{part}/{name}" if part else name


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _classes(folder: Path) -> dict[str, list[str]]:
    """Class → its images, as paths below the class's folder, both in order."""
    return {name: sorted(_images(folder / name)) for name in _folders(folder)}


def _images(folder: Path) -> list[str]:
    found = []
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(where).relative_to(folder)
        found += [
            (below / name).as_posix()
            for name in files
            if name.lower().endswith(_EXTENSIONS) and not name.startswith(".")
        ]
    return found
