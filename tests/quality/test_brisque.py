"""BRISQUE against a slow reading of its formulas, and against the package that carries its regression."""

import math
import pickle

import cv2
import numpy as np
import pytest

from facelab.data.synthetic import render
from facelab.quality import brisque


@pytest.fixture(scope="module")
def faces():
    return np.stack([render(0, person, 0, 64, 1.0) for person in range(3)])


def slow_features(image):
    """The formulas one by one: loops over windows, bisection in place of a table."""
    grey = image.astype(np.float64) @ np.array([0.2125, 0.7154, 0.0721]) / 255
    half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC)
    return np.concatenate([slow_features_of(part) for part in (grey, half)])


def slow_features_of(grey):
    y, x = np.mgrid[-3:4, -3:4]
    window = np.exp(-(x**2 + y**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    padded = np.pad(grey, 3)
    normal = np.empty_like(grey)
    for i, j in np.ndindex(*grey.shape):
        part = padded[i : i + 7, j : j + 7]
        mean, square = (window * part).sum(), (window * part**2).sum()
        normal[i, j] = (grey[i, j] - mean) / (math.sqrt(abs(mean**2 - square)) + 1 / 255)
    shape, _, left, right = slow_fit(normal.ravel())
    found = [shape, (left + right) / 2]
    height, width = grey.shape
    for down, across in ((0, 1), (1, 0), (1, 1), (-1, 1)):
        places = [(i, j) for i, j in np.ndindex(height, width) if 0 <= i + down < height and 0 <= j + across < width]
        found += slow_fit(np.array([normal[i, j] * normal[i + down, j + across] for i, j in places]))
    return np.array(found)


def slow_fit(values):
    left, right = np.mean(values[values < 0] ** 2), np.mean(values[values >= 0] ** 2)
    gamma = math.sqrt(left) / math.sqrt(right)
    ratio = np.mean(np.abs(values)) ** 2 / np.mean(values**2) * (gamma**3 + 1) * (gamma + 1) / (gamma**2 + 1) ** 2
    low, high = 0.05, 10.0
    for _ in range(80):
        alpha = (low + high) / 2
        below = math.gamma(2 / alpha) ** 2 / (math.gamma(1 / alpha) * math.gamma(3 / alpha)) < ratio
        low, high = (alpha, high) if below else (low, alpha)
    spread = math.sqrt(math.gamma(1 / alpha) / math.gamma(3 / alpha))
    mean = (math.sqrt(right) - math.sqrt(left)) * spread * math.gamma(2 / alpha) / math.gamma(1 / alpha)
    return [alpha, mean, left, right]


def test_the_features_are_those_of_the_formulas(faces):
    np.testing.assert_allclose(brisque.features(faces[0]), slow_features(faces[0]), rtol=1e-5, atol=1e-8)


def test_a_flat_image_has_none_and_no_score():
    flat = np.zeros((1, 32, 32, 3), np.uint8)
    assert np.isnan(brisque.features(flat[0])).any()
    assert np.isnan(tiny().predict(np.full((1, 36), np.nan))).all()


def tiny():
    """A regression of two vectors."""
    vectors = np.zeros((2, 36))
    vectors[0, 3], vectors[1, 35] = 0.5, -1.0
    return brisque.Brisque(np.zeros(36), np.full(36, 2.0), vectors, np.array([3.0, -1.0]), 0.05, -7.0)


def test_the_regression_is_a_sum_over_its_vectors():
    model, found = tiny(), np.random.default_rng(0).uniform(0, 2, (4, 36))
    expected = [
        sum(w * math.exp(-0.05 * sum((x - 1 - s) ** 2 for x, s in zip(row, vector, strict=True)))
            for w, vector in zip((3.0, -1.0), model.vectors, strict=True)) + 7
        for row in found
    ]  # fmt: skip
    np.testing.assert_allclose(model.predict(found), expected, rtol=1e-12)


@pytest.fixture(scope="module")
def package():
    pytest.importorskip("libsvm", reason="needs facelab[quality]")
    return pytest.importorskip("brisque", reason="needs facelab[quality]").BRISQUE(url=False)


def test_features_and_scores_are_the_packages(faces, package):
    """All of it but the one call that numpy 2.4 refuses: its features are arrays of one number there."""
    blurred = np.stack([cv2.GaussianBlur(face, (0, 0), 2.0) for face in faces])
    images = np.concatenate([faces, blurred, np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)])
    theirs, scores = [], []
    for image in images:
        grey = image.astype(np.float64) @ np.array([0.2125, 0.7154, 0.0721]) / 255
        sizes = (grey, cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC))
        plain = [np.asarray(value).item() for size in sizes for value in package.calculate_brisque_features(size)]
        theirs.append(plain)
        scores.append(package.calculate_image_quality_score(plain))
    ours = np.stack([brisque.features(image) for image in images])
    shapes = np.minimum(theirs, 10)  # where ours end, as the authors' do
    np.testing.assert_allclose(ours, shapes, rtol=2e-5, atol=1e-7)
    within = (np.array(theirs) < 10).all(1)
    assert within.sum() >= 5
    found = brisque.load()(images)
    np.testing.assert_allclose(found[within], np.array(scores)[within], atol=2e-3)
    np.testing.assert_allclose(brisque.load().predict(np.array(theirs)), scores, rtol=1e-9)
    assert (found[3:6] > found[:3]).all(), "blur is worse, and lower is better"


def test_a_missing_package_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'facelab\[quality\]'"):
        brisque.load()


@pytest.mark.parametrize("text", ["", "svm_type c_svc\nkernel_type rbf\ngamma 1\nrho 0\ntotal_sv 1\nSV\n1 1:2"])
def test_another_regression_is_refused(tmp_path, text):
    (tmp_path / "svm.txt").write_text(text)
    (tmp_path / "n.pickle").write_bytes(pickle.dumps({"min_": [0.0] * 36, "max_": [1.0] * 36}))
    with pytest.raises(ValueError, match=r"svm\.txt: not "):
        brisque.read_model(tmp_path / "svm.txt", tmp_path / "n.pickle")
