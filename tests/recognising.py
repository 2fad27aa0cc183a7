"""A small recogniser for tests: no network, no detector's file, faces that are rendered."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np

from facelab.data.synthetic import render
from facelab.prepare.detect import Face
from facelab.verify.finding import Finder
from facelab.verify.recogniser import Recogniser

SIZE = 48
DETECTOR = {"model": None, "threshold": 0.7, "longest_side": 640, "again": [320]}


class Small:
    """Embeds by a fixed projection of coarse pixels; counts its calls."""

    def __init__(self, size=SIZE, dimension=32, **metadata):
        self.size, self.mirror, self.metadata = size, metadata.pop("mirror", False), metadata
        self.batches, self.embedding_size = [], dimension
        self.projection = np.random.default_rng(5).normal(size=(192, dimension))

    def embed(self, images, mirror=False):
        if mirror and not self.mirror:
            rows = self.embed(images) + self.embed(images[:, :, ::-1])
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)
        self.batches.append(len(images))
        coarse = np.stack([cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA) for image in images])
        rows = (coarse.reshape(len(images), -1) - 120.0) @ self.projection
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def recogniser(folder, *, detect="none", mirror=True, batch_size=4, face="single", min_size=20, **metadata):
    """Of a file in this folder, which holds anything."""
    path = Path(folder) / "model.onnx"
    if not path.exists():
        path.write_bytes(b"a network")
    return Recogniser(path, Small(**metadata), Finder(SIZE, detect, DETECTOR, face, min_size), mirror, batch_size)


def faces(folder, people=4, images=3, size=SIZE):
    """folder/<person>/<image>.png, rendered."""
    for person in range(people):
        (folder / f"p{person}").mkdir(parents=True)
        for image in range(images):
            pixels = render(0, person, image, size, 0.3)
            cv2.imwrite(str(folder / f"p{person}" / f"{image}.png"), pixels[..., ::-1])
    return folder


def found(*places):
    """A detector that finds faces of 40 pixels at these corners."""
    points = np.array([(12, 14), (28, 14), (20, 22), (14, 32), (26, 32)], float)
    listed = [Face((x, y, side, side), points * side / 40 + (x, y), 0.9) for x, y, side in places]
    return SimpleNamespace(prepare=lambda: lambda image: listed)
