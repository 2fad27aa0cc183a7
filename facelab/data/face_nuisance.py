"""What differs between two images of one rendered person: pose, expression, hair, light, things in the way, camera."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from facelab.data.brush import Colour
from facelab.data.face_geometry import Identity

_DARK = ((24, 20, 20), (38, 26, 22), (52, 34, 24), (92, 60, 36))
HAIR = (*_DARK, (134, 66, 34), (198, 160, 96), (226, 204, 158), (150, 146, 142))
SHORT, LONG, FRINGE, SHAVED, HAT = range(5)  # what is on the head


class Conditions(NamedTuple):
    """The circumstances of one image that the drawing needs."""

    yaw: float  # radians
    pitch: float
    error: tuple[float, float, float, float]  # what the alignment leaves: see face_geometry.View
    smile: float  # -0.5 … 1
    open: float  # the mouth, face units
    lids: float  # 0 closed … 1 open
    brow_raise: float  # face units
    gaze: tuple[float, float]  # -1 … 1
    light: tuple[float, float]  # where it comes from: right, down (towards the viewer is 1)
    contrast: float  # 0 flat … 1 hard light
    hair: Colour
    hat: Colour
    style: int
    texture: tuple[float, float]  # which piece of the stored strands, 0 … 1
    parting: float  # -1 … 1
    volume: float  # of the hair, face units
    beard: float  # opacity


def draw_conditions(rng: np.random.Generator, person: Identity, nuisance: float) -> Conditions:
    """Draw the circumstances of one image; `nuisance` 0 is a frontal, neutral, evenly lit face with its usual hair."""
    n = nuisance
    g = rng.standard_normal(20).clip(-2.5, 2.5).tolist()
    u = rng.random(12).tolist()
    mix = min(n, 1.0)
    usual = np.array(HAIR[person.hair_colour], np.float64)
    other = np.array(HAIR[int(u[0] * len(HAIR))]) * (0.75 + 0.5 * u[1]) if u[2] > 0.06 else 255 * rng.random(3)
    hair = (usual + mix * (other - usual)).clip(0, 255).tolist()
    lids = 1.0 + mix * (0.08 * g[10] - (0.85 if u[3] < 0.04 else 0.0))
    restyled = u[4] < n
    return Conditions(
        yaw=float(np.clip(0.17 * n * g[0], -0.8, 0.8)),
        pitch=float(np.clip(0.08 * n * g[1], -0.45, 0.45)),
        error=(0.008 * n * g[2], 0.008 * n * g[3], 0.015 * n * g[4], 0.02 * n * g[5]),
        smile=min(max(0.25 + n * 0.32 * g[6], -0.5), 1.0),
        open=min(max(0.0, n * (0.16 * g[7] - 0.06)), 0.4),
        lids=min(max(lids, 0.08), 1.3),
        brow_raise=min(max(0.025 * n * g[8], -0.06), 0.12),
        gaze=(min(max(0.4 * n * g[9], -1.0), 1.0), min(max(0.3 * n * g[11], -1.0), 1.0)),
        light=(min(max(0.42 * n * g[12], -1.6), 1.6), -0.45 + 0.25 * n * g[13]),
        contrast=min(max(0.5 + 0.13 * n * g[14], 0.15), 0.95),
        hair=(hair[0], hair[1], hair[2]),
        hat=(235 * u[9], 235 * u[10], 235 * u[11]),
        style=int(u[5] * 5) if restyled else person.hair_style,
        texture=(mix * u[5] * 97 % 1, mix * u[6] * 97 % 1),
        parting=(mix * (2 * u[6] - 1)),
        volume=0.14 + mix * 0.06 * g[15],
        beard=max(0.0, u[7] * 1.3 - 0.45 if u[8] < 0.4 * mix else (1 - mix) * person.beard),
    )
