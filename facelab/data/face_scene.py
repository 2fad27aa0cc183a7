"""Everything around a rendered face: background, hair, glasses and other things in the way, the camera."""

from __future__ import annotations

import cv2
import numpy as np

from facelab.data.brush import Colour, blend, darker, fill, soft_fill, soften, stroke
from facelab.data.face_geometry import Identity, View, curve, mirrored
from facelab.data.face_nuisance import HAT, LONG, SHAVED, Conditions
from facelab.data.face_renderer import skin_colour

_BANK = 256  # side of the stored noise pictures


def _noise_bank() -> tuple[np.ndarray, np.ndarray]:
    """White noise for the sensor and vertical strands for hair; drawn once, cut at a random place per image."""
    rng = np.random.Generator(np.random.Philox(key=20240229))
    white = rng.standard_normal((_BANK, _BANK)).astype(np.float32)
    strands = cv2.GaussianBlur(white, (0, 0), sigmaX=0.8, sigmaY=9, borderType=cv2.BORDER_REFLECT)
    return white, strands / strands.std()


_WHITE, _STRANDS = _noise_bank()


def _cut(bank: np.ndarray, size: int, place: tuple[float, float]) -> np.ndarray:
    """A (size, size) piece of a noise picture, `place` (0 … 1) from its corner; tiled where it is too small."""
    if size > _BANK // 2:
        times = size // _BANK + 2
        bank = np.tile(bank, (times, times))
    y, x = (int(p * (len(bank) - size)) for p in place)
    return bank[y : y + size, x : x + size]


def draw_background(
    size: int, view: View, person: Identity, now: Conditions, n: float, rng: np.random.Generator
) -> np.ndarray:
    """Background, long hair behind the head, neck and clothes, (size, size, 3) uint8."""
    mix = min(n, 1.0)
    base = np.array((176.0, 182.0, 190.0)) + mix * (rng.uniform(20, 235, 3) - (176, 182, 190))
    coarse = base + mix * rng.uniform(5, 60) * (rng.standard_normal((4, 4, 1)) + 0.5 * rng.standard_normal((4, 4, 3)))
    coarse = coarse.clip(0, 255).astype(np.uint8)
    image = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    for _ in range(int(mix * rng.integers(0, 5))):
        corner, extent = rng.uniform(-0.2, 1, 2) * size, rng.uniform(0.08, 0.7, 2) * size
        box = corner + np.array([(0, 0), (1, 0.1), (1, 1), (0, 1)]) * extent
        fill(image, box, tuple(rng.uniform(0, 255, 3).tolist()))
    if mix:
        image = soften(image, 0.02 * size)
    skin = skin_colour(person)
    if now.style == LONG:
        reach = 1.35 + 2 * now.volume
        half = [
            (0, -1.45, -0.3),
            (0.8, -1.2, -0.3),
            (1.18, -0.3, -0.3),
            (1.2, 0.6, -0.3),
            (1.1, reach, -0.3),
            (0, 2.2, -0.3),
        ]
        fill(image, view(curve(mirrored(np.array(half)), closed=True)), darker(now.hair, 0.7))
    neck = np.array(
        [
            (-0.55, 0.9, -0.2),
            (0.55, 0.9, -0.2),
            (0.6, 1.75, -0.2),
            (0.9, 2.6, -0.2),
            (-0.9, 2.6, -0.2),
            (-0.6, 1.75, -0.2),
        ]
    )
    fill(image, view(neck), darker(skin, 0.68))
    cloth = np.array((86.0, 98.0, 122.0)) + mix * (rng.uniform(10, 245, 3) - (86, 98, 122))
    shirt = [
        (-3.0, 2.05, -0.3),
        (-0.75, 1.72, -0.2),
        (0, 1.95, 0.0),
        (0.75, 1.72, -0.2),
        (3.0, 2.05, -0.3),
        (3, 4, 0),
        (-3, 4, 0),
    ]
    fill(image, view(np.array(shirt)), tuple(cloth.tolist()))
    return image


def draw_hair(image: np.ndarray, person: Identity, view: View, now: Conditions) -> None:
    """Hair (or a hat) over the forehead, in place."""
    s, style = person.shape, now.style
    line, crown, cheek = s["hairline"], s["crown"], s["cheek"]
    if style == SHAVED:
        volume, tuft = 0.03, 0.0
    else:
        volume, tuft = max(0.05, now.volume), 0.08 * now.parting
    # by style: how far down the sides, how low on the forehead, how much the parting tilts the hairline
    low = (0.15, 0.8, 0.2, -0.05, 0.0)[style]
    lift, sweep = (0.0, 0.04, 0.33, 0.0, 0.14)[style], (0.2, 0.16, 0.08, 0.0, 0.0)[style] * now.parting
    right = [
        (0.72, crown * 0.88 - 0.9 * volume, 0.1),
        (0.97 * cheek + volume, -0.45, 0.0),
        (1.01 * cheek + 0.5 * volume, -0.1, 0.0),
    ]
    right += [(0.99 * cheek, low, 0.05)]
    left = [(-x, y, z) for x, y, z in right[::-1]]
    outer = [*left, (tuft, crown - 1.15 * volume, 0.15), *right]
    front = [(0.86 * cheek, -0.3, 0.3), (0.7 * cheek, line + 0.2 + 0.7 * lift, 0.5), (0.36, line + lift + 0.02, 0.7)]
    back = [(-x, y, z) for x, y, z in front[::-1]]
    inner = [right[-1], *((x, y - sweep * x, z) for x, y, z in front), (0, line + lift, 0.75)]
    inner += [*((x, y - sweep * x, z) for x, y, z in back), left[0]]
    brim = view(curve(np.array(inner)))
    outline = np.concatenate([view(curve(np.array(outer))), brim])
    rows = slice(0, int(np.clip(outline[:, 1].max() + 0.1 * view.size, 1, view.size)))
    mask, part = np.zeros(image[rows].shape[:2], np.uint8), image[rows]
    fill(mask, outline, (255, 255, 255))
    blend(part, soften(mask, 0.02 * view.size), darker(skin_colour(person), 0.45), 0.35)
    if style != HAT:
        mask = soften(mask, 0.3 + 0.004 * view.size)
    top = view(np.array([[0, 0.8 * crown, 0.3]]))[0, 1]
    shine = 0.82 + 0.3 * np.exp(-0.5 * np.square((np.arange(len(part), dtype=np.float32) - top) / (0.2 * view.unit)))
    tone = shine[:, None] + np.float32(0.03 if style == HAT else 0.1) * _cut(_STRANDS, view.size, now.texture)[rows]
    colour = now.hat if style == HAT else now.hair
    weight = mask * np.float32((0.45 if style == SHAVED else 0.97) / 255)
    layer = cv2.merge([np.clip(tone * c, 0, 255).astype(np.uint8) for c in colour])
    keep = cv2.merge([weight, weight, weight])
    cv2.add(cv2.multiply(layer, keep, dtype=cv2.CV_8U), cv2.multiply(part, 1 - keep, dtype=cv2.CV_8U), dst=part)
    if style == HAT:
        stroke(image, brim, 0.07 * view.unit, darker(colour, 0.75))


def draw_obstacles(
    image: np.ndarray, person: Identity, view: View, now: Conditions, n: float, rng: np.random.Generator
) -> None:
    """Glasses, sunglasses, masks, hands and bars, each with a small probability that `nuisance` scales, in place."""
    pick = rng.random(5) / max(n, 1e-9)
    if pick[0] < 0.15:
        _glasses(image, person.shape, view, rng, dark=pick[0] < 0.025)
    if pick[1] < 0.025:
        _mask(image, person.shape, view, rng)
    if pick[2] < 0.03:
        _hand(image, person, view, rng)
    if pick[3] < 0.04:
        size = image.shape[0]
        middle, angle, half = rng.uniform(0.1, 0.9, 2) * size, rng.uniform(0, np.pi), rng.uniform(0.03, 0.09) * size
        along = 2 * size * np.array([np.cos(angle), np.sin(angle)])
        stroke(image, np.stack([middle - along, middle + along]), half, tuple(rng.uniform(0, 255, 3).tolist()))


def _glasses(image: np.ndarray, s: dict[str, float], view: View, rng: np.random.Generator, dark: bool) -> None:
    frame: Colour = tuple((rng.uniform(10, 90, 3) if rng.random() < 0.7 else rng.uniform(60, 220, 3)).tolist())
    wide, tall, power = rng.uniform(0.29, 0.38), rng.uniform(0.19, 0.30), rng.uniform(0.55, 1.0)
    thick = rng.uniform(0.014, 0.04) * view.unit
    angle = np.linspace(0, 2 * np.pi, 28)
    cos, sin = np.cos(angle), np.sin(angle)
    gap = max(s["eye_gap"], wide + 0.05)
    for side in (-1, 1):
        x = side * gap + wide * np.sign(cos) * np.abs(cos) ** power
        y = 0.02 + tall * np.sign(sin) * np.abs(sin) ** power
        lens = view(np.column_stack([x, y, np.full_like(x, 0.95)]))
        soft_fill(image, lens, (18, 18, 22) if dark else (205, 215, 225), 0.94 if dark else 0.12, 0.1)
        stroke(image, lens, thick, frame)
        arm = view(np.array([(side * (gap + wide), -0.04, 0.95), (side * 1.08, -0.06, -0.2)]))
        stroke(image, arm, thick, frame)
    bridge = np.array([(wide - gap, 0.0, 0.97), (0.0, -0.05, 1.05), (gap - wide, 0.0, 0.97)])
    stroke(image, view(curve(bridge)), thick, frame)


def _mask(image: np.ndarray, s: dict[str, float], view: View, rng: np.random.Generator) -> None:
    colour: Colour = tuple((np.array((170, 205, 225)) if rng.random() < 0.5 else rng.uniform(15, 240, 3)).tolist())
    top = rng.uniform(0.15, 0.4)
    half = [(0, top, 1.15), (0.45, top + 0.14, 0.8), (0.93 * s["cheek"], 0.5, 0.15), (s["jaw"], s["mouth"] + 0.1, 0.2)]
    half += [(s["chin_width"] + 0.12, s["chin"] - 0.06, 0.4), (0, s["chin"] + 0.06, 0.6)]
    fill(image, view(curve(mirrored(np.array(half)), closed=True)), colour)
    for y in (0.62, 0.85, 1.08):
        pleat = np.array([(-0.7, y - 0.05, 0.4), (0, y, 1.0), (0.7, y - 0.05, 0.4)])
        stroke(image, view(curve(pleat)), 0.012 * view.unit, darker(colour, 0.82))
    for side in (-1, 1):
        strap = np.array([(side * 0.93 * s["cheek"], 0.5, 0.15), (side * 1.1 * s["cheek"], 0.0, -0.2)])
        stroke(image, view(strap), 0.018 * view.unit, darker(colour, 0.9))


def _hand(image: np.ndarray, person: Identity, view: View, rng: np.random.Generator) -> None:
    skin = skin_colour(person)
    side = 1 if rng.random() < 0.5 else -1
    start = np.array([side * rng.uniform(0.7, 1.2), rng.uniform(0.9, 1.6)])
    aim = np.arctan2(rng.uniform(-0.3, 0.9) - start[1], -start[0])
    for finger in range(4):
        angle = aim + 0.16 * (finger - 1.5)
        root = start + 0.17 * (finger - 1.5) * np.array([-np.sin(aim), np.cos(aim)])
        reach = 0.75 - 0.08 * (finger - 1.3) ** 2
        t = np.linspace(-0.6, 1, 10)[:, None]
        line = root + t * reach * np.array([np.cos(angle), np.sin(angle)])
        line = view(np.column_stack([line, np.full(10, 0.5)]))
        width = 0.095 * view.unit * np.sqrt(np.clip(1.02 - np.linspace(0, 1, 10) ** 6, 0, 1))
        stroke(image, line, width + 0.02 * view.unit, darker(skin, 0.6))
        stroke(image, line, width, darker(skin, 0.95))


def expose(image: np.ndarray, light: np.ndarray, n: float, rng: np.random.Generator) -> np.ndarray:
    """Light on the skin, a gradient over the whole scene, exposure, colour cast and gamma; returns uint8."""
    size = image.shape[0]
    g = rng.standard_normal(8).clip(-2.5, 2.5) * n
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    light = light * (1 + np.float32(0.2 * g[0]) * ramp[None, :] + np.float32(0.2 * g[1]) * ramp[:, None])
    lit = cv2.multiply(image, cv2.merge([light, light, light]), dtype=cv2.CV_8U)
    gain = 2.0 ** (0.22 * g[2] + 0.08 * g[3:6])
    gamma = 2.0 ** (0.18 * g[6])
    level = (np.arange(256)[:, None] / 255) ** gamma * gain
    level = level + 0.08 * max(g[7], 0) * (1 - level)  # veiling haze
    table = (255 * np.clip(level, 0, 1)).astype(np.uint8)
    return cv2.LUT(lit, table[:, None, :])


def photograph(image: np.ndarray, n: float, rng: np.random.Generator) -> np.ndarray:
    """The camera: lens and motion blur, a low resolution, noise, JPEG, in this order; returns uint8."""
    size = image.shape[0]
    u = rng.random(8)
    if u[0] < 0.18 * n:
        image = cv2.GaussianBlur(image, (0, 0), (0.3 + 0.7 * u[1]) * min(n, 2) * size / 112)
    elif u[0] > 1 - 0.06 * n:
        image = _motion(image, (2 + 6 * u[1]) * size / 112, np.pi * u[2])
    if u[3] < 0.2 * n:
        small = max(8, round(size * 4.0 ** -u[4]))
        image = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
        image = cv2.resize(image, (size, size), interpolation=(cv2.INTER_LINEAR, cv2.INTER_CUBIC)[int(u[5] < 0.5)])
    sigma = n * 7.0 * u[6] ** 2
    if sigma > 0.3:
        noise = _cut(_WHITE, size, (rng.random(), rng.random())) * np.float32(sigma)
        image = cv2.add(image, cv2.merge([noise, noise, noise]), dtype=cv2.CV_8U)
    if u[7] < 0.25 * n:
        quality = int(rng.integers(20, 80))
        _, code = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR))
    return image


def _motion(image: np.ndarray, length: float, angle: float) -> np.ndarray:
    side = int(length) // 2 * 2 + 3
    kernel = np.zeros((side, side), np.uint8)
    middle, reach = side / 2 - 0.5, 0.5 * length * np.array([np.cos(angle), np.sin(angle)])
    stroke(kernel, np.stack([middle - reach, middle + reach]), 0.5, (255, 255, 255))
    weights = kernel.astype(np.float32)
    return cv2.filter2D(image, -1, weights / weights.sum())
