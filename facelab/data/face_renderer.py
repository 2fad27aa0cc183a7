"""Draws one face: outlines as polygons, relief as light on a smooth height field."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from facelab.data.brush import BLEED, Colour, darker, fill, soft_fill, soften, stroke
from facelab.data.face_geometry import Identity, View, curve, face_outline
from facelab.data.face_nuisance import Conditions

_SKIN = np.array([(246, 214, 192), (232, 188, 158), (206, 154, 118), (160, 110, 78), (98, 64, 46)], np.float64)
_IRIS = ((62, 40, 26), (92, 60, 34), (52, 34, 24), (122, 92, 48), (92, 112, 72), (88, 124, 156), (124, 136, 142))


def skin_colour(person: Identity) -> Colour:
    """Skin tone from melanin and redness."""
    place = np.clip(person.melanin, 0, 1) * (len(_SKIN) - 1)
    base = _SKIN[int(place)] + (place % 1) * (_SKIN[min(int(place) + 1, len(_SKIN) - 1)] - _SKIN[int(place)])
    red, green, blue = (base + np.array([1.0, -2.5, -3.5]) * person.shape["redness"]).tolist()
    return red, green, blue


def draw_face(image: np.ndarray, person: Identity, view: View, now: Conditions) -> np.ndarray:
    """Draw head and features over the background in place; returns the light on the skin (H, W) float32."""
    s = person.shape
    skin = skin_colour(person)
    drop = 0.55 * now.open
    _ears(image, s, view, skin)
    outline = view(face_outline(s, drop))
    fill(image, outline, skin)
    blush = darker(skin, 0.93)
    cheek = view(_pair(_ellipse((0.55, 0.5, 0.6), 0.25, 0.2)))
    soft_fill(image, cheek, (skin[0], blush[1], blush[2]), 0.6, 0.12 * view.unit)
    socket = view(_pair(_ellipse((s["eye_gap"], -0.06, 0.7), s["eye_width"] * 1.35, 0.2)))
    soft_fill(image, socket, darker(skin, 0.72), 0.25 + 1.5 * s["socket"], 0.07 * view.unit)
    _spots(image, person, view, skin)
    if now.beard > 0.05:
        _beard(image, s, view, now, drop)
    _folds(image, s, view, skin, now)
    _nose(image, s, view, skin)
    _mouth(image, person, view, skin, now)
    _eyes(image, person, view, skin, now)
    _brows(image, person, view, now)
    mask = np.zeros(image.shape[:2], np.uint8)
    fill(mask, outline, (255, 255, 255))
    mask = soften(mask, 0.012 * view.size)
    light = _light(s, view, now, drop)
    return 1 + (light - 1) * (mask * np.float32(1 / 255))


def _ellipse(centre: tuple[float, float, float], a: float, b: float, count: int = 20) -> np.ndarray:
    return _ring(count) * (a, b, 0.0) + centre


@lru_cache(maxsize=8)
def _ring(count: int) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.column_stack([np.cos(angle), np.sin(angle), np.zeros(count)])


@lru_cache(maxsize=8)
def _taper(count: int) -> np.ndarray:
    """Half widths of a brush stroke that is thin at both ends."""
    return np.sin(np.linspace(0.25, 3.0, count))


def _pair(right: np.ndarray) -> np.ndarray:
    """The mirror image of some points (n, 3) and the points themselves, (2, n, 3)."""
    return right * _BOTH


_SIDE = np.array([[-1.0], [1.0]])
_BOTH = np.array([[[-1.0, 1.0, 1.0]], [[1.0, 1.0, 1.0]]])


def _ears(image: np.ndarray, s: dict[str, float], view: View, skin: Colour) -> None:
    centre = (s["cheek"] + 0.4 * s["ear_out"], 0.2, -0.25)
    ear = _ellipse(centre, 0.09 + 0.6 * s["ear_out"], s["ear"])
    ear[:, 0] += 0.25 * (0.2 - ear[:, 1])
    fill(image, view(_pair(ear)), darker(skin, 0.9))
    inner = (ear - centre) * (0.5, 0.62, 1) + centre + (0.015, -0.01, 0)
    soft_fill(image, view(_pair(inner)), darker(skin, 0.66), 0.8, 0.02 * view.unit)


def _spots(image: np.ndarray, person: Identity, view: View, skin: Colour) -> None:
    if len(person.freckles):
        places = view(np.column_stack([person.freckles[:, :2], 0.85 - 0.5 * np.abs(person.freckles[:, 0])]))
        for place, strength in zip(places, person.freckles[:, 2], strict=True):
            tone = darker(skin, 1 - 0.2 * strength)
            fill(image, place + max(view.unit * 0.02 - BLEED, 0.1) * _DISC, (tone[0], tone[1] * 0.96, tone[2] * 0.9))
    if len(person.moles):
        places = view(np.column_stack([person.moles[:, :2], 0.85 - 0.5 * np.abs(person.moles[:, 0])]))
        for place, radius in zip(places, person.moles[:, 2], strict=True):
            fill(image, place + max(view.unit * radius - BLEED, 0.1) * _DISC, darker(skin, 0.5))


_DISC = _ellipse((0.0, 0.0, 0.0), 1.0, 1.0, 10)[:, :2]
_MOUTH_X = np.linspace(-1, 1, 17)
_MOUTH_BEND = np.maximum(np.cos(_MOUTH_X * np.pi / 2), 0.0)
_EYE_X = np.linspace(-1, 1, 15)
_EYE_BEND = 1 - _EYE_X**2
_BROW_T = np.linspace(0, 1, 12)


def _beard(image: np.ndarray, s: dict[str, float], view: View, now: Conditions, drop: float) -> None:
    top, width = s["mouth"] - 0.2, s["jaw"]
    half = [
        (0.12, top - 0.02, 0.9),
        (s["mouth_width"] + 0.1, top + 0.08, 0.75),
        (0.72 * width, s["mouth"] - 0.05, 0.5),
        (0.97 * s["cheek"], 0.3, 0.05),
        (0.99 * width, s["mouth"] + 0.08 + 0.5 * drop, 0.12),
        (0.5 * (width + s["chin_width"]), 0.45 * s["mouth"] + 0.55 * s["chin"] + drop, 0.3),
        (s["chin_width"] * 0.6, s["chin"] + drop, 0.45),
        (0.0, s["chin"] + 0.03 + drop, 0.5),
    ]
    right = np.array(half)
    outline = curve(np.concatenate([right, (right * (-1, 1, 1))[-2::-1]]), closed=True, steps=3)
    soft_fill(image, view(outline), now.hair, min(0.85, now.beard), 0.05 * view.unit)


def _folds(image: np.ndarray, s: dict[str, float], view: View, skin: Colour, now: Conditions) -> None:
    strength = np.clip(s["fold"] + 0.5 * max(now.smile, 0), 0, 1)
    if strength < 0.08:
        return
    x, y = s["mouth_width"] + 0.09 + 0.06 * now.smile, s["mouth"] - 0.04
    fold = np.array([(s["nose_width"] + 0.04, s["nose"] - 0.08, 0.85), (x - 0.05, y - 0.18, 0.8), (x, y, 0.72)])
    line = view(_pair(curve(fold)))
    stroke(image, line, 0.013 * view.unit * _taper(line.shape[1]), darker(skin, 1 - 0.2 * strength))


def _nose(image: np.ndarray, s: dict[str, float], view: View, skin: Colour) -> None:
    base, width, out = s["nose"], s["nose_width"], s["nose_out"]
    lean = np.array([s["nose_slip"], 0.0, 0.0])
    under = [
        (-width, base - 0.04, 0.85),
        (-0.5 * width, base + 0.03, 0.8 + 0.5 * out),
        (0, base + 0.05, 0.8 + 0.7 * out),
    ]
    half = np.array(under)
    line = np.concatenate([half, (half * (-1, 1, 1))[-2::-1]]) + lean
    soft_fill(image, view(curve(line)), darker(skin, 0.62), 0.75, 0.025 * view.unit)
    thin = BLEED / view.unit
    hole = _ellipse((0.46 * width, base + 0.005, 0.8 + 0.55 * out), 0.32 * width - thin, 0.034 - thin, 12)
    hole[:, 1] += 0.25 * (hole[:, 0] - 0.46 * width)
    fill(image, view(_pair(hole) + lean), darker(skin, 0.36))
    wing = np.array([(0.62, -0.19, 0.9), (0.95, -0.13, 0.85), (1.04, -0.05, 0.82), (0.85, 0.015, 0.85)])
    line = view(_pair(curve(wing * (width, 1, 1) + (0, base, 0))) + lean)
    stroke(image, line, 0.014 * view.unit * _taper(line.shape[1]), darker(skin, 0.6))


def _mouth(image: np.ndarray, person: Identity, view: View, skin: Colour, now: Conditions) -> None:
    s, u = person.shape, view.unit
    width = s["mouth_width"] * (1 + 0.16 * now.smile - 0.15 * now.open)
    y, lift = s["mouth"], s["mouth_curve"] + 0.09 * now.smile
    x, bend = _MOUTH_X, _MOUTH_BEND
    rest = y - lift * (np.abs(x) ** 1.6) + s["mouth_slip"] * x
    middle = rest + 0.02 * bend**2
    upper = middle - 0.16 * now.open * bend
    lower = middle + 0.55 * now.open * bend
    bow = s["bow"] * np.exp(-((x / 0.13) ** 2))
    top = upper - s["lip_up"] * (1 - 0.25 * max(now.smile, 0)) * bend**0.75 + bow
    bottom = lower + s["lip_low"] * bend**0.8
    z = 0.88 - 0.15 * x**2
    edges = [view(np.column_stack([width * x, edge, z])) for edge in (top, upper, lower, bottom)]
    red = (skin[0] * 0.82, skin[1] * 0.58, skin[2] * 0.60)
    fill(image, np.concatenate([edges[0], edges[1][::-1]]), darker(red, 0.9))
    fill(image, np.concatenate([edges[2], edges[3][::-1]]), red)
    gleam = view(_ellipse((0, (lower + 0.45 * s["lip_low"] * bend)[8], 0.9), 0.4 * width, 0.22 * s["lip_low"], 12))
    soft_fill(image, gleam, darker(red, 1.3), 0.5, 0.03 * u)
    if now.open > 0.03:
        fill(image, np.concatenate([edges[1], edges[2][::-1]]), (52, 22, 24))
        teeth = np.minimum(upper + 0.11 * bend, lower)[2:-2]
        row = view(np.column_stack([width * x[2:-2], teeth, z[2:-2]]))
        fill(image, np.concatenate([edges[1][2:-2], row[::-1]]), (226, 220, 208))
    else:
        stroke(image, edges[1], 0.016 * u * bend**0.5 + 0.003 * u, darker(red, 0.42))


def _eyes(image: np.ndarray, person: Identity, view: View, skin: Colour, now: Conditions) -> None:
    s, u, half = person.shape, view.unit, person.shape["eye_width"]
    across, bend = _EYE_X, _EYE_BEND
    squeeze = max(now.smile, 0.0)
    upper = -s["eye_open"] * now.lids * (1 - 0.12 * squeeze) * bend**0.8 * (1 + 0.45 * s["eye_peak"] * across)
    upper = upper + 0.7 * s["eye_low"] * (1 - now.lids) * bend
    lower = s["eye_low"] * bend * (1 - 0.15 * squeeze)

    def place(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Both eyes: a from the inner (-1) to the outer corner (1), b down → (2, n, 2) pixels."""
        points = np.empty((2, a.shape[-1], 3))
        points[..., 0] = _SIDE * (s["eye_gap"] + half * a)
        points[..., 1] = b - s["eye_tilt"] * a + _SIDE * s["eye_slip"]
        points[..., 2] = 0.76 - 0.14 * a * a - 0.02 * a
        return view(points)

    top, bottom = place(across, upper), place(across, lower)
    fill(image, np.concatenate([top, bottom[:, ::-1]], axis=1), (226, 222, 216))
    ring, tone = _ring(24), _IRIS[person.iris_colour]
    for radius, colour in ((1.0, darker(tone, 0.55)), (0.86, tone), (0.42, (14, 12, 12))):
        r = max(radius * s["iris"] - BLEED / u, 0.01)
        a = np.clip(_SIDE * now.gaze[0] * 0.35 + r / half * ring[:, 0], -0.97, 0.97)
        b = 0.3 * now.gaze[1] * s["iris"] - 0.012 + r * ring[:, 1]
        fill(image, place(a, np.clip(b, np.interp(a, across, upper), np.interp(a, across, lower))), colour)
    if now.lids > 0.4:
        glint = place(_SIDE * (0.08 + 0.35 * now.gaze[0]), np.array([0.3 * now.gaze[1] * s["iris"] - 0.04]))
        fill(image, glint + max(0.022 * u - BLEED, 0.1) * _DISC, (250, 250, 250))
    stroke(image, place(across * 1.04, upper), (0.0195 + 0.009 * across) * u, (34, 24, 22))
    stroke(image, bottom[:, 1:-1], 0.008 * u, darker(skin, 0.62))
    fold = upper - s["crease"] * (0.5 + 0.5 * bend) - 0.25 * (1 - now.lids) * s["eye_open"]
    stroke(image, place(across, fold), (0.011 * bend**0.5 + 0.002) * u, darker(skin, 0.62))


def _brows(image: np.ndarray, person: Identity, view: View, now: Conditions) -> None:
    s, t = person.shape, _BROW_T
    y = -s["brow_gap"] - s["brow_arch"] * np.sin(np.pi * t**1.3) - s["brow_tilt"] * (t - 0.5) - now.brow_raise
    x = s["eye_gap"] + s["brow_length"] * (2 * t - 1.02)
    line = view(_pair(np.column_stack([x, y, 0.86 - 0.3 * t**2])) + _SIDE[:, :, None] * (0, s["brow_slip"], 0))
    half = np.zeros((len(t), 2))
    half[:, 1] = s["brow_thick"] * view.unit * (np.sin(np.pi * (0.18 + 0.8 * t)) ** 0.7 + 0.05)
    hairs = np.concatenate([line + half, (line - half)[:, ::-1]], axis=1)
    soft_fill(image, hairs, darker(now.hair, 0.55), 0.88, 0.016 * view.unit)


def _light(s: dict[str, float], view: View, now: Conditions, drop: float) -> np.ndarray:
    """Lambert and a little gloss on the face's height field: a dome with Gaussian bumps (exact and separable)."""
    side = view.size
    bumps = np.array(_bumps(s, drop))
    places = view(bumps[:, :3])
    grid = np.arange(side, dtype=np.float32)
    spread = np.maximum(bumps[:, 3:5] * view.unit, 0.7)
    gx = np.exp(-0.5 * np.square((grid - places[:, :1]) / spread[:, :1])).astype(np.float32)
    gy = np.exp(-0.5 * np.square((grid - places[:, 1:]) / spread[:, 1:])).astype(np.float32)
    height = (gy * bumps[:, 5:].astype(np.float32)).T @ gx
    middle = view(np.array([[0.0, 0.5 * (s["crown"] + s["chin"]), 0.1]]))[0]
    dome_x = np.square((grid - middle[0]) / (1.12 * s["cheek"] * view.unit))
    dome_y = np.square((grid - middle[1]) / (0.62 * (s["chin"] - s["crown"]) * view.unit))
    dome = 1 - np.minimum(dome_x[None, :] + dome_y[:, None], 0.97)
    height += (0.85 * np.sqrt(dome)).astype(np.float32)
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=view.unit / 8)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=view.unit / 8)
    towards = np.array([now.light[0], now.light[1], 1.0])
    towards /= np.linalg.norm(towards)
    steep = 1 / np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    facing = (towards[2] - towards[0] * slope_x - towards[1] * slope_y).astype(np.float32) * steep
    half = towards + np.array([0.0, 0.0, 1.0])
    half /= np.linalg.norm(half)
    gloss = (half[2] - half[0] * slope_x - half[1] * slope_y).astype(np.float32) * steep
    gloss = np.maximum(gloss, 0)
    gloss *= gloss
    gloss *= gloss
    gloss *= gloss
    gloss *= gloss
    shade = np.maximum(facing, 0) * np.float32(now.contrast) + np.float32(1.02 - 0.88 * now.contrast)
    return shade + np.float32(0.10) * gloss


def _bumps(s: dict[str, float], drop: float) -> list[tuple[float, float, float, float, float, float]]:
    """The relief: rows of x, y, z, spread in x, spread in y, height, in face units."""
    nose, mouth, slip, out = s["nose"], s["mouth"], s["nose_slip"], s["nose_out"]
    rows = [
        (0.6 * slip, 0.05, 0.85, s["bridge"], 0.16, 0.30 * out),
        (0.8 * slip, 0.45 * nose, 0.75 + 0.55 * out, 0.95 * s["bridge"], 0.15, 0.45 * out),
        (slip, nose - 0.12, 0.75 + out, 0.4 * s["nose_width"] + 0.035, 0.10, 0.62 * out),
        (0.0, mouth - 0.18, 0.85, 0.035, 0.07, -0.025),
        (0.0, mouth + 0.06, 0.8, 0.75 * s["mouth_width"], 0.17, 0.10),
        (0.0, mouth + 0.24 + drop, 0.7, 0.20, 0.05, -0.045),
        (0.0, s["chin"] - 0.17 + drop, 0.6, 0.5 * s["chin_width"], 0.12, s["chin_out"]),
        (0.0, -0.6, 0.8, 0.5, 0.25, 0.05),
    ]
    for side in (-1, 1):
        rows += [
            (side * 0.78 * s["nose_width"] + slip, nose - 0.06, 0.85, 0.065, 0.065, 0.085),
            (side * s["eye_gap"], -0.03, 0.7, 1.05 * s["eye_width"], 0.13, -s["socket"]),
            (side * s["eye_gap"], 0.0, 0.74, 0.6 * s["eye_width"], 0.09, 0.05),
            (side * 0.9 * s["eye_gap"], -0.9 * s["brow_gap"], 0.8, 0.24, 0.085, 0.055),
            (side * 0.62, 0.42, 0.5, 0.21, 0.19, s["cheekbone"]),
            (side * 0.85, -0.5, 0.2, 0.15, 0.25, -0.05),
        ]
    return rows
