"""The detector's file: given, or fetched once from its public home and known by its SHA-256."""

import hashlib
import os
import urllib.request
from pathlib import Path
from typing import NamedTuple

import cv2

from facelab.atomic import atomic

__all__ = ["Published", "detector_file", "published"]

_HOME = (
    "https://media.githubusercontent.com/media/opencv/opencv_zoo/47534e27c9851bb1128ccc0102f1145e27f23f98/"
    "models/face_detection_yunet/"
)
_SECONDS = 60  # without an answer
_MOST_BYTES = 1 << 24  # it has a quarter of a million


class Published(NamedTuple):
    """A file of YuNet as OpenCV publishes it (MIT licence)."""

    name: str
    sha256: str


# OpenCV 4.x shapes the network to the image and trips over dynamic shapes; OpenCV 5.x needs them.
_FIXED = Published(
    "face_detection_yunet_2023mar.onnx", "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
)
_DYNAMIC = Published(
    "face_detection_yunet_2026may.onnx", "ebafce4e3c118d6554634be5c27ab333b4c047a9a8c3faf1d7cf93101c22f0f0"
)


def published() -> Published:
    """The file that this version of OpenCV takes."""
    return _DYNAMIC if int(cv2.__version__.split(".")[0]) >= 5 else _FIXED


def detector_file(model: str | None, home: str = _HOME) -> bytes:
    """The content of the detector's file.

    Args:
        model: where it lies; null: in ~/.cache/facelab (or $XDG_CACHE_HOME/facelab), fetched if it is not there yet.
        home: the folder, on the net, of the published files.

    Raises:
        FileNotFoundError: there is no such file, or it cannot be fetched.
        ValueError: what was fetched is not the published file.
    """
    if model is not None:
        path = Path(model).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"detector.model={model}: no such file")
        return path.read_bytes()
    wanted = published()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "facelab" / wanted.name
    if cache.is_file():
        content = cache.read_bytes()
        if hashlib.sha256(content).hexdigest() == wanted.sha256:
            return content
    content = _fetch(home + wanted.name)
    found = hashlib.sha256(content).hexdigest()
    if found != wanted.sha256:
        raise ValueError(
            f"{home}{wanted.name} gave {len(content):,} bytes with the SHA-256 {found}, not {wanted.sha256}: it is not "
            "the published file, and was thrown away; fetch it by hand and give detector.model=FILE"
        )
    with atomic(cache) as temporary:
        temporary.write_bytes(content)
    return content


def _fetch(url: str) -> bytes:
    print(f"fetching the face detector, once: {url}", flush=True)
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as answer:
            return answer.read(_MOST_BYTES)
    except OSError as error:  # no network, no name, no answer, no such page
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise FileNotFoundError(
            f"the face detector is not here and cannot be fetched ({reason}): bring {url} to this machine and give "
            "detector.model=FILE; for faces that are aligned already, detect=none"
        ) from error
