"""Faces on which a model and its export are compared, and those of which int8 learns its scales."""

from typing import Any, NamedTuple

import numpy as np

from facelab.data.synthetic import SyntheticFaces

SEED = 0  # of the rendered people


class Faces(NamedTuple):
    """Aligned faces of several people.

    Attributes:
        images: (M,H,W,3) uint8, RGB.
        labels: (M,) identity.
        about: where they are from, in words.
    """

    images: np.ndarray
    labels: np.ndarray
    about: str


def compared_faces(key: str, source: str | None, identities: int, images: int, size: int) -> Faces:
    """Some images of some people who have several.

    Args:
        key: where the configuration names the source, for messages.
        source: a folder of identities or a pack, of aligned faces; null: rendered faces.
        identities: people, at least 2.
        images: of each, at least 2; fewer where somebody has fewer.
        size: pixels, H = W.

    Raises:
        FileNotFoundError: there is no such set.
        ValueError: it has fewer than 2 people with 2 images, or a number is out of range.
    """
    if identities < 2 or images < 2:
        raise ValueError(f"parity.identities is {identities}, parity.images {images}: give at least 2 of each")
    if source is None:
        faces: Any = SyntheticFaces(identities, images, size, 1.0, 1.0, SEED)
        about = f"{identities} rendered people"
    else:
        faces, about = open_source(key, source, size), source
    order = np.argsort(faces.labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(faces.labels[order])) + 1)
    several = [group for group in groups if len(group) > 1]
    if len(several) < 2:
        raise ValueError(f"{key}={source}: {len(several)} people have two images or more, and 2 are needed")
    places = np.unique(np.linspace(0, len(several) - 1, identities).round().astype(int))
    chosen = np.concatenate([several[place][:images] for place in places])
    pixels = np.stack([faces.load(int(index)) for index in chosen])
    return Faces(pixels, faces.labels[chosen].astype(np.int64), f"{about}, {len(chosen)} images")


def calibration_faces(source: Any, count: int, batch: int, size: int) -> np.ndarray:
    """(n,H,W,3) uint8: images spread evenly over a set, a multiple of `batch` and at most `count` of them.

    Args:
        source: a folder of identities or a pack, of aligned faces.
        count: how many.
        batch: the model's fixed number of images; 1 where it takes any.
        size: pixels, H = W.

    Raises:
        FileNotFoundError: there is no such set.
        ValueError: none is given, or it has too few images.
    """
    if source is None:
        raise ValueError(
            "precision=int8 learns the range of every layer from faces like those that it will see: give "
            "calibration.faces=FOLDER (folders of identities, or a pack), a few hundred aligned images that are not "
            "those of a benchmark"
        )
    if count < batch:
        raise ValueError(f"calibration.images is {count}: give at least {batch}; 200 to 500 are usual")
    faces = open_source("calibration.faces", source, size)
    places = np.unique(np.linspace(0, len(faces) - 1, min(count, len(faces))).round().astype(int))
    places = places[: len(places) // batch * batch]
    if not len(places):
        raise ValueError(f"calibration.faces={source}: has {len(faces)} images, and batch={batch} needs as many")
    return np.stack([faces.load(int(index)) for index in places])


def open_source(key: str, source: Any, size: int) -> Any:
    """A set of aligned faces, its images at a size; `key` names it in messages."""
    from facelab.prepare.existing import open_set

    try:
        return open_set(source, size)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(str(error).replace("source=", f"{key}=").replace("source is", f"{key} is")) from error
