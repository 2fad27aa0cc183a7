"""The numbers of a study that need no model: which are there, which are left out, and on which side they lie."""

import csv

import numpy as np
import pytest

from facelab.quality.findings import Samples, correlations, curves, qualities_of, relative_areas, write_samples
from facelab.quality.options import DiscardOptions
from facelab.quality.standardised import fit


def samples(sizes=(9, 5, 3), seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    brisque = rng.uniform(0, 100, len(labels))
    norms = 20 + np.array(sizes)[labels] - 0.01 * brisque  # frequency hides what the image says
    made = fit(norms, labels, rng.normal(size=(len(sizes), 4)), 2)
    return Samples(labels, np.array(sizes), norms, made.own(norms, labels), brisque), made


def test_standardising_brings_out_what_frequency_hides():
    given, _ = samples()
    found = correlations(given, replicates=20, seed=0)
    assert found["norm_size/pearson"].value > 0.99
    assert abs(found["norm_brisque/pearson"].value) < 0.5
    assert found["standardised_brisque/pearson"].value < -0.9


def test_what_is_undefined_is_left_out():
    given, _ = samples((4, 4, 4))
    assert set(correlations(given, replicates=5, seed=0)) == {
        f"{name}_brisque/{kind}" for name in ("norm", "standardised") for kind in ("pearson", "spearman")
    }
    none = Samples(given.labels, np.array([9, 5, 3]), given.norms, given.standardised, np.full(12, np.nan))
    assert all(name.startswith("norm_size/") for name in correlations(none, replicates=5, seed=0))
    assert not none.judged.any()


@pytest.mark.parametrize("threshold", ["fixed", "rederived"])
def test_curves_of_both_definitions(threshold):
    rng = np.random.default_rng(0)
    images, pairs = rng.normal(size=60), rng.integers(60, size=(400, 2))
    same = rng.random(400) < 0.5
    scores = 0.6 * rng.normal(size=400) + same * (2 + images[pairs].min(1))
    given = {"good": images, "bad": -images, "none": np.ones(60)}
    options = DiscardOptions(threshold, 0.05, 0.05, 0.2, 20)
    found = curves(scores, same, pairs, given, options)
    assert set(found) == {*given, "random", *(["oracle"] if threshold == "fixed" else [])}
    areas = relative_areas(found, options.limit)
    assert areas["good"] < areas["random"] == 1 < areas["bad"]
    assert areas["none"] == 1
    assert threshold == "rederived" or areas["oracle"] <= areas["good"]


def test_brisque_becomes_a_quality_by_its_negative():
    _, made = samples()
    norms, vectors = np.ones(3), np.ones((3, 4))
    found = qualities_of(norms, vectors, np.array([10.0, np.nan, 5.0]), made, 1)
    assert found["brisque"].tolist() == [-10, -np.inf, -5]
    assert set(qualities_of(norms, vectors, np.full(3, np.nan), made, 1)) == {"norm", "standardised"}


def test_a_row_for_each_image(tmp_path):
    given, _ = samples()
    given.brisque[1] = np.nan
    path = write_samples(tmp_path / "samples.csv", given, lambda i: f"김/{i}.jpg", ["a", "b", "c"])
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["class_size"] for row in rows] == ["9"] * 9 + ["5"] * 5 + ["3"] * 3
    assert (rows[1]["image"], rows[1]["identity"], rows[1]["brisque"]) == ("김/1.jpg", "a", "")
    np.testing.assert_allclose([float(row["norm"]) for row in rows], given.norms, rtol=1e-5)


def test_classes_from_the_largest_on():
    given = Samples(np.array([0, 2, 2, 0]), np.array([3, 7, 5]), np.array([1.0, 2, 4, 3]), np.zeros(4), np.zeros(4))
    sizes, means = given.class_means()
    assert (sizes.tolist(), means.tolist()) == ([5, 3], [3.0, 2.0])
