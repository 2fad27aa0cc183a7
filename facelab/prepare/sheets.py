"""Contact sheets: what one looks at first."""

from collections.abc import Sequence
from contextlib import suppress
from math import ceil, sqrt
from pathlib import Path

import cv2
import numpy as np

from facelab.atomic import atomic
from facelab.prepare.photograph import Unusable, read

__all__ = ["faces_sheet", "failures_sheet", "save"]

_TILE = 180  # pixels of a failure's photograph
_TEXT = 34  # pixels of the lines below it
_GREY = 96


def faces_sheet(jpegs: Sequence[bytes], size: int) -> np.ndarray:
    """Aligned faces side by side, (H,W,3) uint8, BGR."""
    tiles = [read(np.frombuffer(jpeg, np.uint8)) for jpeg in jpegs]
    return _grid(tiles, size, size)


def failures_sheet(failures: Sequence[tuple[np.ndarray, str, str]]) -> np.ndarray:
    """Photographs (their bytes), shrunk, each above its reason and detail; (H,W,3) uint8, BGR."""
    tiles = []
    for encoded, reason, detail in failures:
        tile = np.full((_TILE + _TEXT, _TILE, 3), _GREY, np.uint8)
        with suppress(Unusable, cv2.error):  # the reason says why
            _place(tile[:_TILE], read(encoded))
        tile[_TILE:] = 0
        for number, text in enumerate((reason, detail)):
            letters = text.encode("ascii", "replace").decode()[:30]
            at = (4, _TILE + 14 + 14 * number)
            cv2.putText(tile, letters, at, cv2.FONT_HERSHEY_PLAIN, 0.75, (255, 255, 255), 1, cv2.LINE_AA)
        tiles.append(tile)
    return _grid(tiles, _TILE + _TEXT, _TILE)


def save(file: Path, sheet: np.ndarray) -> None:
    """Writes a sheet as PNG."""
    with atomic(file) as temporary:
        temporary.write_bytes(cv2.imencode(".png", sheet)[1].tobytes())


def _place(tile: np.ndarray, image: np.ndarray) -> None:
    """An image in the middle of a tile, shrunk to fit."""
    scale = min(1, _TILE / max(image.shape[:2]))
    height, width = (max(round(side * scale), 1) for side in image.shape[:2])
    top, left = (_TILE - height) // 2, (_TILE - width) // 2
    tile[top : top + height, left : left + width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _grid(tiles: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Tiles of one shape, in rows, on a sheet half again as wide as high."""
    columns = min(len(tiles), ceil(sqrt(1.5 * len(tiles) * height / width)))
    rows = ceil(len(tiles) / columns)
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for number, tile in enumerate(tiles):
        top, left = number // columns * height, number % columns * width
        sheet[top : top + height, left : left + width] = tile
    return sheet
