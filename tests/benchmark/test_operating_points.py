"""Every number against a slow count that is written as the definition reads, on data with ties."""

import itertools
import math

import numpy as np
import pytest

from facelab.benchmark import operating_points as op


def scores(seed, genuine=157, impostor=203, grid=40):
    """Scores on a coarse grid, so that genuine and impostor scores tie with each other and among themselves."""
    rng = np.random.default_rng(seed)
    return np.round(rng.normal(0.8, 1, genuine) * grid) / grid, np.round(rng.normal(-0.8, 1, impostor) * grid) / grid


def rates(genuine, impostor, threshold):
    return sum(s >= threshold for s in impostor) / len(impostor), sum(s >= threshold for s in genuine) / len(genuine)


def candidates(genuine, impostor):
    """Every threshold that can matter: each score, and just above each score."""
    return sorted({t for s in [*genuine, *impostor] for t in (s, np.nextafter(s, math.inf))} | {-math.inf})


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("far", [0, 1e-4, 1e-3, 1 / 203, 0.01, 0.05, 0.2, 0.999, 1])
@pytest.mark.parametrize("grid", [2, 40])
def test_tar_at_most_is_the_lowest_threshold_that_keeps_the_target(seed, far, grid):
    genuine, impostor = scores(seed, grid=grid)
    allowed = op.allowed_false_accepts(far, len(impostor))
    best = min(t for t in candidates(genuine, impostor) if sum(s >= t for s in impostor) <= allowed)
    point = op.tar_at_far(genuine, impostor, far, "at_most")
    assert point == (point.threshold, *rates(genuine, impostor, point.threshold))
    assert (point.far, point.tar) == rates(genuine, impostor, best)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("far", [0, 1e-3, 0.0123, 0.05, 0.2, 1])
def test_tar_nearest_takes_the_nearest_far_and_there_the_larger_tar(seed, far):
    genuine, impostor = scores(seed, grid=4)
    points = [rates(genuine, impostor, t) for t in [*candidates(genuine, impostor), math.inf]]
    nearest = min(points, key=lambda point: (abs(point[0] - far), -point[0], -point[1]))
    point = op.tar_at_far(genuine, impostor, far, "nearest")
    assert (point.far, point.tar) == nearest
    assert rates(genuine, impostor, point.threshold) == nearest


def test_the_two_rules_differ_where_the_nearest_far_lies_above_the_target():
    genuine, impostor = np.array([3.0, 2.0, 1.0]), np.array([2.5, 1.5, 0.5, 0.0])
    assert op.tar_at_far(genuine, impostor, 0.2, "at_most").tar == 1 / 3
    assert op.tar_at_far(genuine, impostor, 0.2, "nearest")[1:] == (0.25, 2 / 3)


def test_false_accepts_are_counted_as_the_decimal_was_written():
    assert 0.29 * 100 < 29  # what floating point makes of it
    assert op.allowed_false_accepts(0.29, 100) == 29
    assert op.allowed_false_accepts(1e-3, 3000) == 3
    assert op.allowed_false_accepts(1e-4, 3000) == 0
    assert op.allowed_false_accepts(1e-6, 10**10) == 10**4


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("grid", [1, 3, 1000])
def test_auc_is_the_count_over_all_pairs(seed, grid):
    genuine, impostor = scores(seed, grid=grid)
    counted = sum((g > i) + 0.5 * (g == i) for g in genuine for i in impostor) / (len(genuine) * len(impostor))
    assert op.auc(genuine, impostor) == counted


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("grid", [1, 3, 1000])
def test_eer_lies_on_the_roc_where_both_errors_are_equal(seed, grid):
    genuine, impostor = scores(seed, grid=grid)
    roc = sorted({rates(genuine, impostor, t) for t in [*candidates(genuine, impostor), math.inf]})
    found = []
    for (x0, y0), (x1, y1) in itertools.pairwise(roc):  # intersect each segment with tar = 1 - far
        if (y0 + x0 - 1) * (y1 + x1 - 1) <= 0 and (x0, y0) != (x1, y1):
            part = (1 - x0 - y0) / (x1 - x0 + y1 - y0)
            found.append(x0 + part * (x1 - x0))
    assert found
    np.testing.assert_allclose(found, op.eer(genuine, impostor), atol=1e-12)


@pytest.mark.parametrize(
    ("genuine", "impostor", "eer", "auc"),
    [([2, 3], [0, 1], 0, 1), ([0, 1], [2, 3], 1, 0), ([1, 1], [1], 0.5, 0.5), ([5], [5], 0.5, 0.5)],
)
def test_extremes(genuine, impostor, eer, auc):
    assert op.eer(genuine, impostor) == eer
    assert op.auc(genuine, impostor) == auc


@pytest.mark.parametrize("grid", [2, 10_000])
def test_det_points_are_exact_ordered_and_reach_both_ends(grid):
    genuine, impostor = scores(7, 900, 4000, grid)
    curve = op.det(genuine, impostor, points=60)
    assert 2 < len(curve.fmr) <= 60
    for threshold, fmr, fnmr in zip(*curve, strict=True):
        far, tar = rates(genuine, impostor, threshold)
        assert fmr == far
        assert fnmr == pytest.approx(1 - tar, abs=1e-15)
        assert op.tar_at_far(genuine, impostor, fmr, "at_most")[1:] == (far, tar)
    assert np.all(np.diff(curve.fmr) > 0)
    assert np.all(np.diff(curve.fnmr) <= 0)
    assert curve.fmr[0] == 0
    assert curve.fmr[-1] == 1
    if grid > 100:  # without ties, the first few false accepts are all there
        np.testing.assert_allclose(curve.fmr[:6] * 4000, range(6))


def slow_fold_accuracy(distance, same, fold):
    accuracies, chosen = [], []
    for k in range(fold.max() + 1):
        rest = [((distance[fold != k] < t) == same[fold != k]).mean() for t in np.arange(0, 4, 0.01)]
        chosen.append(np.arange(0, 4, 0.01)[np.argmax(rest)])
        accuracies.append(((distance[fold == k] < chosen[-1]) == same[fold == k]).mean())
    return accuracies, chosen


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("on_thresholds", [False, True])
def test_fold_accuracy_equals_the_loop_over_thresholds(seed, on_thresholds):
    rng = np.random.default_rng(seed)
    same, fold = rng.random(331) < 0.5, rng.permutation(np.arange(331) % 7)
    distance = np.clip(rng.normal(np.where(same, 1.2, 1.6), 0.4), 0, 4)
    if on_thresholds:  # the strict < decides
        distance = np.arange(0, 4, 0.01)[np.minimum(np.rint(distance * 100).astype(int), 399)]
    accuracy, threshold = op.fold_accuracy(distance, same, fold)
    slow_accuracy, slow_threshold = slow_fold_accuracy(distance, same, fold)
    assert accuracy.tolist() == slow_accuracy
    assert threshold.tolist() == slow_threshold


def test_fold_accuracy_at_the_edges_of_the_threshold_range():
    distance, same = np.array([4.0, 3.995, 0.0, 4.0]), np.array([True, False, False, True])
    accuracy, threshold = op.fold_accuracy(distance, same, np.array([0, 0, 1, 1]))
    assert (accuracy.tolist(), threshold.tolist()) == slow_fold_accuracy(distance, same, np.array([0, 0, 1, 1]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: op.auc([], [1.0]), "no genuine scores"),
        (lambda: op.eer([1.0], []), "no impostor scores"),
        (lambda: op.det([1.0, np.nan], [1.0]), "1 of 2 genuine scores are NaN"),
        (lambda: op.tar_at_far([1.0], [0.0], 1.5, "at_most"), "between 0 and 1"),
        (lambda: op.tar_at_far([1.0], [0.0], 0.5, "closest"), "far_rule='closest'"),
        (lambda: op.fold_accuracy([1.0], [True], [0]), "folds of"),
        (lambda: op.fold_accuracy([1.0, 2.0], [True, False], [0, 2]), "folds of"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
