"""SyntheticFaces: a data set of drawn faces, so that everything runs at once and no photograph is ever shipped."""

from __future__ import annotations

import threading
from functools import cached_property, lru_cache

import cv2
import numpy as np

from facelab.data.face_geometry import Identity, View, draw_identity
from facelab.data.face_nuisance import draw_conditions
from facelab.data.face_renderer import draw_face
from facelab.data.face_scene import draw_background, draw_hair, draw_obstacles, expose, photograph

_PERSON, _IMAGE = 0, 1  # the two streams of random numbers


def _generator(seed: int, stream: int, identity: int, sample: int) -> np.random.Generator:
    """A counter-based generator: any image's numbers are reached directly, and no two images share any."""
    return np.random.Generator(np.random.Philox(key=[seed, identity], counter=[0, 0, sample, stream]))


@lru_cache(maxsize=256)
def _person(seed: int, identity: int) -> Identity:
    return draw_identity(_generator(seed, _PERSON, identity, 0))


def melanin(seed: int, identity: int) -> float:
    """Skin of a person, 0 fair … 1 dark."""
    return draw_identity(_generator(seed, _PERSON, identity, 0)).melanin


def render(seed: int, identity: int, sample: int, size: int, nuisance: float) -> np.ndarray:
    """Render one image (size, size, 3) uint8 RGB: a pure function of its arguments.

    Args:
        seed: of the population, 0 … 2^64-1.
        identity: number of the person.
        sample: number of the image of that person.
        size: side in pixels.
        nuisance: strength of everything that is not identity; 0 gives the same frontal, evenly lit face every time.
    """
    person = _person(seed, identity)
    rng = _generator(seed, _IMAGE, identity, sample)
    now = draw_conditions(rng, person, nuisance)
    drawn = size * max(1, round(112 / size))  # lines would clog in a smaller picture: draw larger, then shrink
    view = View(person.shape, now.yaw, now.pitch, now.error, drawn)
    image = draw_background(drawn, view, person, now, nuisance, rng)
    light = draw_face(image, person, view, now)
    draw_hair(image, person, view, now)
    draw_obstacles(image, person, view, now, nuisance, rng)
    image = expose(image, light, nuisance, rng)
    if drawn != size:
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    return photograph(image, nuisance, rng)


class _Drawings:
    """The images of one data set that have been drawn so far."""

    def __init__(self, count: int, size: int) -> None:
        self.images = np.zeros((count, size, size, 3), np.uint8)  # the pages are taken when written to
        self.drawn = np.zeros(count, bool)
        self.lock = threading.Lock()


@lru_cache(maxsize=2)
def _drawings(faces: type, arguments: tuple, count: int, size: int) -> _Drawings:
    """Those of the two latest data sets: the jobs of a sweep see the same faces, and only the first one draws them."""
    return _Drawings(count, size)


class SyntheticFaces:
    """A source of drawn faces whose identity lies in the geometry: proportions, not colours, tell people apart.

    Pose, expression, light, hair, beard, glasses, occlusion, blur, resolution and compression vary from image to image.
    An image is a function of (seed, identity, sample, size, nuisance) alone: a larger data set contains the smaller
    one's images. Images are drawn on first use and kept in memory (37 KB each at 112 pixels), for the next data set of
    the same arguments in this process as well.

    Args:
        identities: number of persons C, at least 2.
        images_per_identity: images of the first (with `long_tail` 1: of every) person, at least 2.
        size: side of the images in pixels, at least 32.
        long_tail: imbalance r ≥ 1: person i has images_per_identity · r^(-i/(C-1)) images, rounded, at least 2.
        nuisance: strength of all that is not identity: 0 none, 1 the usual.
        seed: of the population; not the run's seed, so that runs are compared on the same faces.

    Raises:
        ValueError: if an argument is out of range.
    """

    identity_names: list[str] | None

    def __init__(
        self, identities: int, images_per_identity: int, size: int, long_tail: float, nuisance: float, seed: int
    ) -> None:
        lower: dict[str, tuple[float, int]]
        lower = {"identities": (identities, 2), "images_per_identity": (images_per_identity, 2), "size": (size, 32)}
        lower |= {"long_tail": (long_tail, 1), "nuisance": (nuisance, 0), "seed": (seed, 0)}
        for name, (value, least) in lower.items():
            if not value >= least:
                raise ValueError(f"SyntheticFaces: {name} is {value}, but must be at least {least}")
        self.size, self.nuisance, self.seed = size, nuisance, seed
        self._arguments = (identities, images_per_identity, size, long_tail, nuisance, seed)
        falling = images_per_identity * float(long_tail) ** (-np.arange(identities) / (identities - 1))
        counts = np.maximum(2, np.rint(falling)).astype(np.int64)
        self.labels = np.repeat(np.arange(identities, dtype=np.int64), counts)
        self.num_classes = identities
        self.identity_names = [f"person {i}" for i in range(identities)]
        self._first = np.concatenate([[0], np.cumsum(counts)[:-1]])

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple:
        # Another process draws its own images: these are many megabytes.
        return type(self), self._arguments

    def _number(self, identity: int) -> int:
        """Which person of the population an identity is."""
        return identity

    @cached_property
    def _kept(self) -> _Drawings:
        return _drawings(*self.__reduce__(), len(self), self.size)

    def load(self, index: int, out: np.ndarray | None = None) -> np.ndarray:
        """Return image `index` (size, size, 3) uint8 RGB, read-only; several threads may ask at once. Leaves `out`."""
        kept = self._kept
        if not kept.drawn[index]:
            identity = int(self.labels[index])
            sample = int(index - self._first[identity])
            image = render(self.seed, self._number(identity), sample, self.size, self.nuisance)
            # Two threads may draw the same image: they write the same bytes. The flag is set after the pixels.
            with kept.lock:
                kept.images[index] = image
                kept.drawn[index] = True
        image = kept.images[index]
        image.flags.writeable = False
        return image
