"""The geometry of a rendered face: the traits of an identity, and where a pose puts them in the picture.

Face coordinates: x to the picture's right, y down, z towards the viewer; the eyes lie at y = 0 and half the head's
width is about 1. Only ratios survive, as in a real pipeline: a similarity transform fitted to five points (eyes, nose,
mouth corners) places every face, so size and in-plane rotation say nothing about who it is.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

# name: (mean, spread) in face units; an identity draws each from a normal distribution cut at 2.2 spreads.
TRAITS = {
    "cheek": (1.0, 0.081),  # half width at the eyes
    "jaw": (0.79, 0.1),  # half width at the mouth
    "chin_width": (0.36, 0.1),
    "chin": (1.53, 0.1),  # y of its lowest point
    "crown": (-1.30, 0.081),  # y of the skull's top
    "hairline": (-0.86, 0.13),
    "eye_gap": (0.46, 0.058),  # half the distance of the pupils
    "eye_width": (0.205, 0.034),
    "eye_open": (0.095, 0.032),  # height of the upper lid above the pupil
    "eye_low": (0.055, 0.018),
    "eye_tilt": (0.03, 0.053),  # rise of the outer corner
    "eye_peak": (0.0, 0.52),  # where the upper lid is highest: inner (-1) … outer (+1)
    "iris": (0.096, 0.012),
    "crease": (0.055, 0.038),  # of the upper lid
    "brow_gap": (0.285, 0.065),
    "brow_thick": (0.042, 0.02),
    "brow_tilt": (0.0, 0.075),
    "brow_arch": (0.06, 0.045),
    "brow_length": (0.28, 0.06),
    "nose": (0.60, 0.09),  # y of its base
    "nose_width": (0.20, 0.052),
    "bridge": (0.085, 0.033),
    "nose_out": (0.36, 0.1),  # how far the tip stands out
    "mouth": (0.95, 0.068),
    "mouth_width": (0.35, 0.07),
    "lip_up": (0.072, 0.032),
    "lip_low": (0.098, 0.038),
    "bow": (0.022, 0.019),  # depth of Cupid's bow
    "mouth_curve": (0.0, 0.036),
    "cheekbone": (0.12, 0.09),  # relief heights
    "socket": (0.12, 0.06),
    "chin_out": (0.12, 0.08),
    "fold": (0.35, 0.28),  # strength of the folds from nose to mouth
    "ear": (0.27, 0.06),
    "ear_out": (0.12, 0.075),
    "redness": (0.0, 1.0),
    "eye_slip": (0.0, 0.013),  # one eye, brow, mouth corner higher than the other; the nose aside
    "brow_slip": (0.0, 0.018),
    "mouth_slip": (0.0, 0.016),
    "nose_slip": (0.0, 0.02),
}
FRAME = 0.30  # one face unit as a fraction of the picture's side
EYE_LINE = 0.47  # where the middle of the eyes stands in the upright mean face


class Identity(NamedTuple):
    """Everything that stays the same over the images of one person."""

    shape: dict[str, float]  # TRAITS, in face units
    melanin: float  # 0 fair … 1 dark
    iris_colour: int
    hair_colour: int  # the habits that `nuisance` overrules: hair, beard, fringe
    hair_style: int
    beard: float
    freckles: np.ndarray  # (n, 3) x, y, strength
    moles: np.ndarray  # (n, 3) x, y, radius


def draw_identity(rng: np.random.Generator) -> Identity:
    """Draw one person from the population."""
    deviates = np.clip(rng.standard_normal(len(TRAITS)), -2.2, 2.2).tolist()
    shape = {name: mean + spread * d for (name, (mean, spread)), d in zip(TRAITS.items(), deviates, strict=True)}
    freckled = rng.random() < 0.2
    freckles = rng.uniform((-0.75, 0.15, 0.3), (0.75, 0.6, 1.0), (int(rng.integers(15, 40)) if freckled else 0, 3))
    moles = rng.uniform((-0.75, -0.6, 0.015), (0.75, 1.2, 0.032), (int(rng.integers(0, 4)), 3))
    melanin = float(rng.beta(1.1, 1.5))
    return Identity(
        shape=shape,
        melanin=melanin,
        iris_colour=int(rng.integers(0, 3) if melanin > 0.45 else rng.integers(0, 7)),
        hair_colour=int(rng.integers(0, 8)),
        hair_style=int(rng.integers(0, 4)),
        beard=float(max(0.0, rng.normal(-0.2, 0.5))),
        freckles=freckles,
        moles=moles,
    )


class View:
    """Projects face coordinates into a picture: rotation, weak perspective, five-point alignment, residual error.

    Args:
        shape: the traits.
        yaw: turn of the head in radians.
        pitch: nod in radians.
        error: what the alignment leaves: (shift x, shift y, relative scale, rotation in radians), shifts as a fraction
            of the side.
        size: side of the picture in pixels.
    """

    def __init__(
        self, shape: dict[str, float], yaw: float, pitch: float, error: tuple[float, float, float, float], size: int
    ) -> None:
        cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
        self.turn = np.array([[cy, sy * sp], [0.0, cp], [sy, -cy * sp]])  # (3, 2): x, y, z → right, down
        found = _five_points(shape) @ self.turn
        found = found[:, 0] + 1j * found[:, 1]
        centre = found.mean()
        scale = np.vdot(found - centre, _TEMPLATE - _TEMPLATE.mean()) / np.vdot(found - centre, found - centre)
        scale *= (1 + error[2]) * np.exp(1j * error[3])
        shift = _TEMPLATE.mean() + error[0] + 1j * error[1] - scale * centre
        scale, shift = scale * size, shift * size - 0.5
        self.turn = self.turn @ np.array([[scale.real, scale.imag], [-scale.imag, scale.real]])
        self.shift = np.array([shift.real, shift.imag])
        self.unit = abs(scale)  # pixels per face unit
        self.size = size
        self.yaw, self.pitch = yaw, pitch

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Project points (n, 3) to pixel coordinates (n, 2), where 0 is the centre of the first pixel."""
        return points @ self.turn + self.shift


def _five_points(shape: dict[str, float]) -> np.ndarray:
    gap, width, mouth = shape["eye_gap"], shape["mouth_width"], shape["mouth"]
    tip = (0.0, shape["nose"] - 0.1, 0.75 + shape["nose_out"])
    return np.array([(-gap, 0, 0.72), (gap, 0, 0.72), tip, (-width, mouth, 0.74), (width, mouth, 0.74)])


_MEAN = _five_points({name: mean for name, (mean, _) in TRAITS.items()})
_TEMPLATE = 0.5 + _MEAN[:, 0] * FRAME + 1j * (EYE_LINE + _MEAN[:, 1] * FRAME)


@lru_cache(maxsize=64)
def _spline(count: int, closed: bool, steps: int) -> np.ndarray:
    """Weights (m, count) of a Catmull-Rom spline through `count` points."""
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    basis = 0.5 * np.hstack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2])
    segments = count if closed else count - 1
    weights = np.zeros((segments * steps + (not closed), count))
    for segment in range(segments):
        for tap in range(4):
            point = segment + tap - 1
            point = point % count if closed else min(max(point, 0), count - 1)
            weights[segment * steps : (segment + 1) * steps, point] += basis[:, tap]
    if not closed:
        weights[-1, -1] = 1.0
    return weights


def curve(points: np.ndarray, closed: bool = False, steps: int = 5) -> np.ndarray:
    """Lay a smooth curve through points (n, k); returns (m, k)."""
    return _spline(len(points), closed, steps) @ points


def mirrored(half: np.ndarray) -> np.ndarray:
    """Complete the right half of an outline (n, 3), given from top to bottom, to the whole closed one."""
    left = half[::-1] * (-1.0, 1.0, 1.0)
    return np.concatenate([half, left[left[:, 0] < -1e-9]])


def face_outline(shape: dict[str, float], drop: float) -> np.ndarray:
    """The closed contour (m, 3) of skull and jaw; `drop` lowers the chin with the opening mouth."""
    s = shape
    half = np.array(
        [
            (0.0, s["crown"], 0.25),
            (0.52, s["crown"] * 0.93, 0.2),
            (0.88 * s["cheek"], s["crown"] * 0.55, 0.1),
            (s["cheek"], -0.05, 0.0),
            (0.965 * s["cheek"], 0.45, 0.02),
            (s["jaw"], s["mouth"] + 0.05 + 0.5 * drop, 0.12),
            (0.5 * (s["jaw"] + s["chin_width"]), 0.47 * s["mouth"] + 0.53 * s["chin"] + drop, 0.3),
            (s["chin_width"] * 0.62, s["chin"] - 0.035 + drop, 0.45),
            (0.0, s["chin"] + drop, 0.5),
        ]
    )
    return curve(mirrored(half), closed=True)
