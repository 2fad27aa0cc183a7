"""Five points to the template: the least squares, against numpy's, and on real photographs."""

import json

import cv2
import numpy as np
import pytest

from facelab.alignment import TEMPLATE, similarities, warp


def solved(points, size):
    """The same least squares by a general solver: a, b, c, d of x' = a·x − b·y + c, y' = b·x + a·y + d."""
    rows = [row for x, y in points for row in ([x, -y, 1, 0], [y, x, 0, 1])]
    a, b, c, d = np.linalg.lstsq(np.array(rows), (TEMPLATE * size / 112).ravel(), rcond=None)[0]
    return np.array([[a, -b, c], [b, a, d]])


@pytest.mark.parametrize("size", [112, 64])
def test_it_is_the_least_squares_of_many_faces_at_once(size):
    points = TEMPLATE * 2.5 + np.random.default_rng(0).normal(0, 9, (20, 5, 2)) + [300, 40]
    found = similarities(points, size)
    np.testing.assert_allclose(found, [solved(five, size) for five in points], atol=1e-9)


def test_points_of_a_turned_and_scaled_template_come_back():
    turn = 3 * np.array([[np.cos(2), -np.sin(2)], [np.sin(2), np.cos(2)]])
    (matrix,) = similarities((TEMPLATE @ turn.T + [500, 20])[None], 112)
    np.testing.assert_allclose(matrix[:, :2] @ turn, np.eye(2), atol=1e-12)
    face = np.random.default_rng(1).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    (same,) = similarities(TEMPLATE[None], 112)
    assert np.array_equal(warp(face, same, 112), face)
    out = np.empty_like(face)
    assert warp(face, same, 112, out) is out
    assert np.array_equal(out, face)


def test_a_mirrored_face_is_not_turned_inside_out():
    (matrix,) = similarities((TEMPLATE * [-1, 1])[None], 112)
    assert np.linalg.det(matrix[:, :2]) > 0


@pytest.mark.parametrize("bad", [np.zeros((5, 2)), np.full((5, 2), np.nan)])
def test_points_without_a_transform_are_counted(bad):
    with pytest.raises(ValueError, match="2 of 4 faces have no five distinct, finite points, the first is face 1:"):
        similarities(np.stack([TEMPLATE, bad, bad, TEMPLATE]), 112)


@pytest.mark.data
def test_photographs_become_their_aligned_versions(real_data):
    listed = json.loads((real_data / "photos" / "landmarks.json").read_text())
    away = []
    for name, face in list(listed.items())[:20]:
        photo = cv2.imread(str(real_data / "photos" / name))
        aligned = cv2.imread(str(real_data / "lfw" / "images" / name))
        (matrix,) = similarities(np.array(face["points"])[None], 112)
        away.append(np.abs(warp(photo, matrix, 112).astype(int) - aligned).mean())
    assert max(away) < 4  # levels: the aligned ones are JPEG
