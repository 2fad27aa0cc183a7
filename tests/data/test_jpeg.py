"""JPEG's losses against Pillow's files, against plain float64 code, and alone or in a batch."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from facelab.data.jpeg import compress, quantisation_tables
from facelab.data.synthetic import render

QUALITIES = (5, 30, 50, 75, 100)


@pytest.fixture(scope="module")
def faces():
    return np.stack([render(0, person, 1, 64, 1.0) for person in range(len(QUALITIES))])


def ours(faces, *qualities):
    return compress(torch.from_numpy(faces).float(), torch.tensor(qualities)).numpy()


def saved(face, quality):
    file = io.BytesIO()
    Image.fromarray(face).save(file, "JPEG", quality=quality, subsampling=0)
    return Image.open(file)


@pytest.mark.parametrize("quality", QUALITIES)
def test_steps_are_those_in_a_file(faces, quality):
    theirs = saved(faces[0], quality).quantization
    for number, steps in enumerate(quantisation_tables()[quality - 1]):
        assert theirs[number] == steps.ravel().tolist()


def test_pixels_are_those_of_a_file(faces):
    result = ours(faces, *QUALITIES)
    for face, got, quality in zip(faces, result, QUALITIES, strict=True):
        expected = np.asarray(saved(face, quality)).astype(int)
        difference = np.abs(got - expected)
        # libjpeg knows coefficients to an eighth: one that lies between two steps may go the other way there.
        assert (difference > 2).mean() < 0.04
        assert difference.mean() < 0.5
        assert quality == 100 or np.abs(expected - face).mean() > 4 * difference.mean()


def plain(face, quality):
    """The formulas of T.81 and JFIF, one block after another."""
    cosines = np.array([[math.cos((2 * n + 1) * k * math.pi / 16) / 2 for n in range(8)] for k in range(8)])
    cosines[0] /= math.sqrt(2)
    r, g, b = np.moveaxis(face.astype(float), 2, 0)
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    y, cb, cr = np.rint(luma), np.rint(128 + (b - luma) / 1.772), np.rint(128 + (r - luma) / 1.402)
    planes = []
    for number, plane in enumerate((y, cb, cr)):
        steps, result = quantisation_tables()[quality - 1, min(number, 1)], np.empty_like(plane)
        for i in range(0, len(plane), 8):
            for j in range(0, len(plane), 8):
                levels = cosines @ (plane[i : i + 8, j : j + 8] - 128) @ cosines.T / steps
                levels = np.sign(levels) * np.floor(np.abs(levels) + 0.5 + 1e-9)
                result[i : i + 8, j : j + 8] = np.clip(np.rint(cosines.T @ (levels * steps) @ cosines) + 128, 0, 255)
        planes.append(result)
    y, cb, cr = planes
    rgb = y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)
    return np.clip(np.rint(np.stack(rgb, 2)), 0, 255)


def test_pixels_are_those_of_the_formulas(faces):
    result = ours(faces, *QUALITIES)
    for face, got, quality in zip(faces, result, QUALITIES, strict=True):
        difference = np.abs(got - plain(face, quality))
        assert (difference > 2).mean() < 0.01  # of colours, whose bytes are rounded three times on the way
        assert difference.mean() < 0.4


def test_an_image_does_not_depend_on_its_batch(faces):
    whole = ours(faces, *QUALITIES)
    assert all(np.array_equal(whole[i : i + 1], ours(faces[i : i + 1], q)) for i, q in enumerate(QUALITIES))


def test_a_grey_image_stays_grey_and_a_flat_one_flat():
    flat = np.full((1, 8, 8, 3), 77, np.uint8)
    assert np.array_equal(ours(flat, 100), flat)
    assert np.ptp(ours(np.full((1, 16, 16, 3), (200, 30, 90), np.uint8), 20), axis=(1, 2)).max() == 0
    grey = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 16, 16, 1), np.uint8), 3, 3)
    assert np.ptp(ours(grey, 40), axis=3).max() == 0
