"""Distances, error rates and the layer that is named, against numbers by hand."""

import numpy as np
import pytest

from facelab.benchmark.operating_points import tar_at_far
from facelab.export.faces import calibration_faces, compared_faces
from facelab.export.parity import Layer, Tolerance, as_seen, compare, parts_at

LOOSE = Tolerance(max=1.0, mean=1.0, accuracy=1.0, fnmr=1.0)


def rows(count, size, seed):
    found = np.random.default_rng(seed).normal(size=(count, size))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def test_distances_and_rates_are_those_of_a_loop():
    labels = np.repeat(np.arange(6), 4)
    before, after = rows(24, 8, 0), rows(24, 8, 1)
    found = compare(before, after, labels, fmr=0.1)
    cosines = [float(a.astype(np.float64) @ b) for a, b in zip(before, after, strict=True)]
    assert found.max == pytest.approx(1 - min(cosines), abs=1e-6)
    assert found.mean == pytest.approx(1 - np.mean(cosines), abs=1e-6)
    assert found.worst == int(np.argmin(cosines))
    for when, vectors in (("before", before), ("after", after)):
        pairs = [(i, j) for i in range(24) for j in range(i)]
        scores = {same: [float(vectors[i].astype(np.float64) @ vectors[j]) for i, j in pairs
                         if (labels[i] == labels[j]) == same] for same in (True, False)}  # fmt: skip
        expected = 1 - tar_at_far(np.array(scores[True]), np.array(scores[False]), 0.1, "at_most").tar
        assert getattr(found, f"fnmr_{when}") == pytest.approx(expected)
    assert found.complaints(LOOSE)[:1] == [f"largest cosine distance {found.max:.2g}, 1 allowed"]


def test_small_distances_keep_their_digits_and_the_same_is_the_same():
    labels, before = np.repeat(np.arange(4), 3), rows(12, 8, 0)
    same = compare(before, before, labels, 0.1)
    assert (same.max, same.mean) == (0.0, 0.0)
    assert same.complaints(Tolerance(0.0, 0.0, 0.0, 0.0)) == []
    after = before.copy()
    after[7, 0] += 1e-5
    assert compare(before, after, labels, 0.1).max == pytest.approx(0.5e-10, rel=0.02)
    assert compare(before, after, labels, 0.1).worst == 7


def test_what_is_no_number_is_beyond_any_tolerance():
    labels, before = np.repeat(np.arange(4), 3), rows(12, 8, 0)
    found = compare(before, before, labels, 0.1)
    broken = type(found)(**{**found.as_dict(), "max": float("nan")})
    assert len(broken.complaints(LOOSE)) == 1
    with pytest.raises(ValueError, match="gives embeddings of shape"):
        compare(before, before[:, :4], labels, 0.1)
    with pytest.raises(ValueError, match=r"parity.tolerance…mean is nan: give a number from 0 on"):
        Tolerance(0.1, float("nan"), 0.1, 0.1)


def test_the_first_layer_that_is_far_away_is_named():
    found = [Layer("a", 1e-6), Layer("b", 0.3), Layer("c", 0.9)]
    tight = Tolerance(1e-7, 1e-8, 0.0, 0.0)
    assert "they first part in the layer b (0.3 of its length)" in parts_at(found, tight)
    assert "the farthest is c" in parts_at(found, LOOSE)
    assert "format=onnx" in parts_at([], LOOSE)
    seen = as_seen({"conv": 1, "norm": 2}, {"conv": 3, "norm": 4}, np.zeros(1), {"conv": "norm"})
    assert (seen.inputs, seen.outputs) == ({"conv": 1}, {"conv": 4})


def test_faces_are_taken_evenly_and_too_few_are_told(tmp_path):
    faces = compared_faces("parity.faces", None, 3, 2, 32)
    assert faces.images.shape == (6, 32, 32, 3)
    assert faces.labels.tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="learns the range of every layer from faces"):
        calibration_faces(None, 300, 1, 32)
    with pytest.raises(ValueError, match=r"calibration\.images is 2: give at least 4"):
        calibration_faces(str(tmp_path), 2, 4, 32)
    with pytest.raises(FileNotFoundError, match=r"calibration\.faces=.*nowhere: no such folder"):
        calibration_faces(str(tmp_path / "nowhere"), 4, 4, 32)
