"""Loose image files, one folder for each identity."""

import os
from os import PathLike
from pathlib import Path

import numpy as np

from facelab.pixels import decode, fit

__all__ = ["FolderFaces"]

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class FolderFaces:
    """Aligned faces as `<root>/<identity>/<any name>.jpg` (or jpeg, png, bmp, webp).

    Identities are the folders in the order of their names, images the files in the order of theirs. Hidden files, other
    files and folders within an identity's folder are left out. Square images of another size are resized.

    Attributes:
        labels: (N,) int64, contiguous 0…num_classes-1.
        num_classes: number of identities.
        identity_names: the folders' names.
        size: height and width of the loaded images in pixels.
        empty: the folders without an image, which are left out.
        resizes: square images of another size are brought to `size`.

    Args:
        root: folder of folders.
        size: height and width in pixels that images are brought to.

    Raises:
        FileNotFoundError: when `root` is missing.
        ValueError: when it has no images, or images of fewer than two identities.
    """

    resizes = True

    def __init__(self, root: str | PathLike, size: int) -> None:
        self.root, self.size = Path(root).expanduser(), size
        layout = "expected <root>/<identity>/<image>.jpg, one folder for each identity"
        if not self.root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder; {layout}")
        self.identity_names: list[str] = []
        self.empty: list[str] = []
        self._files: list[str] = []
        counts: list[int] = []
        with os.scandir(self.root) as entries:
            folders = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        for folder in folders:
            files = _images(self.root / folder)
            if not files:
                self.empty.append(folder)
                continue
            self.identity_names.append(folder)
            counts.append(len(files))
            self._files += files
        if not counts:
            raise ValueError(f"{root}: has no images in its {len(folders)} folders; {layout}")
        if len(counts) < 2:
            raise ValueError(
                f"{root}: has images of one identity only ({self.identity_names[0]!r}), 2 are needed; {layout}"
            )
        self.num_classes = len(counts)
        self.labels = np.repeat(np.arange(self.num_classes, dtype=np.int64), counts)

    def __len__(self) -> int:
        return len(self._files)

    def path(self, index: int) -> Path:
        """Where an image lies."""
        return self.root / self.identity_names[self.labels[index]] / self._files[index]

    def name(self, index: int) -> str:
        """An image's name within the set, <identity>/<file>."""
        return f"{self.identity_names[self.labels[index]]}/{self._files[index]}"

    def encoded(self, index: int) -> np.ndarray:
        """Bytes of an image file (n,) uint8, as they lie in the set: for decoders other than OpenCV."""
        return np.fromfile(self.path(index), dtype=np.uint8)

    def load(self, index: int, out: np.ndarray | None = None) -> np.ndarray:
        """Image (size,size,3), uint8, RGB, in `out` where its file has that shape; may be called from several threads.

        Raises:
            ValueError: when the file is not a readable image, or not square, naming it.
        """
        image = decode(self.encoded(index), out)  # not cv2.imread, which fails on Korean letters under Windows
        if image is None:
            raise ValueError(
                f"{self.path(index)}: is not a readable image; remove it, or have all such images found and left out "
                "with data.inspect.images=true data.inspect.unreadable=skip"
            )
        return fit(image, self.size, str(self.path(index)))


def _images(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if entry.name.lower().endswith(_EXTENSIONS) and not entry.name.startswith(".") and entry.is_file()
        )
