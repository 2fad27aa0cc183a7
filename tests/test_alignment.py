"""Five points onto the template: the best similarity, to the last digits; and where published sets put faces."""

import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facelab.alignment import TEMPLATE, similarities, warp


def similarity(points, size=112):
    return similarities(points[None], size)[0]


def umeyama(points, target):
    """The paper's own way, for any number of dimensions: by singular values, reflections excluded."""
    x, y = points - points.mean(0), target - target.mean(0)
    u, values, v = np.linalg.svd(y.T @ x)
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v))])
    turn = (values * sign).sum() / (x * x).sum() * (u * sign) @ v
    return np.column_stack([turn, target.mean(0) - turn @ points.mean(0)])


@pytest.mark.parametrize("size", [112, 64])
def test_many_faces_at_once_are_the_papers_one_by_one(size):
    points = TEMPLATE * 2.5 + np.random.default_rng(0).normal(0, 9, (20, 5, 2)) + [300, 40]
    wanted = [umeyama(five, TEMPLATE * size / 112) for five in points]
    np.testing.assert_allclose(similarities(points, size), wanted, atol=1e-9)


@given(
    st.floats(-np.pi, np.pi),
    st.floats(0.02, 100),
    st.tuples(st.floats(-5000, 5000), st.floats(-5000, 5000)),
)
def test_a_similarity_is_recovered(angle, scale, shift):
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    found = similarity(TEMPLATE @ turn.T + shift)
    # The shift's own digits are lost where a small face lies far from the corner.
    tolerance = 1e-10 + 1e-15 * np.abs(shift).max() / scale
    assert np.abs(found[:, :2] @ turn - np.eye(2)).max() < tolerance
    assert np.abs(found[:, :2] @ np.array(shift) + found[:, 2]).max() < 1e3 * tolerance


@given(st.integers(0, 10**6), st.floats(0.1, 100))
def test_no_other_similarity_is_nearer(seed, noise):
    points = TEMPLATE * 3 + np.random.default_rng(seed).normal(0, noise, (5, 2))
    found = similarity(points)
    assert np.abs(found - umeyama(points, TEMPLATE)).max() < 1e-8

    def distance(a, b, shift):
        return ((points @ np.array([[a, -b], [b, a]]).T + shift - TEMPLATE) ** 2).sum()

    best = distance(found[0, 0], found[1, 0], found[:, 2])
    for step in (1e-3, -1e-3):
        assert distance(found[0, 0] + step, found[1, 0], found[:, 2]) > best
        assert distance(found[0, 0], found[1, 0] + step, found[:, 2]) > best
        assert distance(found[0, 0], found[1, 0], found[:, 2] + step) > best


def test_a_mirrored_face_is_not_turned_inside_out():
    assert np.linalg.det(similarity(TEMPLATE * [-1, 1])[:, :2]) > 0


@pytest.mark.parametrize("bad", [np.zeros((5, 2)), np.full((5, 2), np.nan), np.full((5, 2), np.inf)])
def test_points_without_a_transform_are_counted(bad):
    with pytest.raises(ValueError, match="2 of 4 faces have no five distinct, finite points, the first is face 1:"):
        similarities(np.stack([TEMPLATE, bad, bad, TEMPLATE]), 112)


def test_a_face_in_its_place_stays_as_it_is():
    face = np.random.default_rng(1).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    same = similarity(TEMPLATE)
    assert np.array_equal(warp(face, same, 112), face)
    out = np.empty_like(face)
    assert warp(face, same, 112, out) is out
    assert np.array_equal(out, face)


def test_points_lie_on_the_template_and_beyond_the_image_is_black():
    image = np.zeros((300, 400, 3), np.uint8)
    turn = 1.5 * np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    points = TEMPLATE @ turn.T + [120, 30]
    for x, y in points:
        cv2.circle(image, (round(16 * x), round(16 * y)), 16 * 4, (255, 255, 255), -1, cv2.LINE_AA, 4)
    face = warp(image, similarity(points, 224), 224)[..., 0].astype(float)
    rows, columns = np.mgrid[:224, :224]
    for x, y in TEMPLATE * 2:
        near = face * ((columns - x) ** 2 + (rows - y) ** 2 < 12**2)
        assert abs((near * columns).sum() / near.sum() - x) < 0.1
        assert abs((near * rows).sum() / near.sum() - y) < 0.1
    assert warp(np.full((10, 10, 3), 255, np.uint8), similarity(TEMPLATE), 112)[20:, 20:].max() == 0


def offset(one, other):
    """How far two grey images are shifted, in pixels, along x and y."""
    window = cv2.createHanningWindow(one.shape[::-1], cv2.CV_32F)
    return np.array(cv2.phaseCorrelate(one.astype(np.float32), other.astype(np.float32), window)[0])


@pytest.mark.data
def test_faces_lie_within_a_pixel_of_those_that_were_aligned_elsewhere(real_data):
    landmarks = json.loads((real_data / "photos" / "landmarks.json").read_text())
    assert len(landmarks) == 100
    shifts, differences = [], []
    for name, about in landmarks.items():
        photo = cv2.imread(str(real_data / "photos" / name))
        mine = warp(photo, similarity(np.array(about["points"])), 112)
        given_face = cv2.imread(str(real_data / "lfw" / "images" / name))
        differences.append(np.abs(mine.astype(int) - given_face).mean())
        one, other = (cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in (mine, given_face))
        for rows in (slice(0, 64), slice(48, 112)):  # corners too, where a wrong turn or scale would show
            shifts += [
                np.abs(offset(one[rows, cols], other[rows, cols])).max() for cols in (slice(0, 64), slice(48, 112))
            ]
    assert max(shifts) < 1
    assert np.median(shifts) < 0.1
    assert max(differences) < 4  # of 255: JPEG at quality 88
