"""Drawn pairs: balanced, distinct, true to the labels, the same every time, folds without a common person."""

import numpy as np
import pytest

from facelab.benchmark.pair_sampling import sample_pairs

RAGGED = np.random.default_rng(3).permutation(np.repeat(np.arange(60), np.random.default_rng(4).integers(1, 20, 60)))


def check(labels, pairs, same, fold, folds):
    quota = len(pairs) // (2 * folds)
    assert same.tolist() == ([True] * quota + [False] * quota) * folds
    assert fold.tolist() == np.repeat(np.arange(folds), 2 * quota).tolist()
    np.testing.assert_array_equal(labels[pairs[:, 0]] == labels[pairs[:, 1]], same)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert len(np.unique(np.sort(pairs, axis=1), axis=0)) == len(pairs)


@pytest.mark.parametrize("folds", [2, 5, 10])
@pytest.mark.parametrize("count", [20, 399, 100_000])
def test_pairs_are_distinct_balanced_and_no_person_is_in_two_folds(folds, count):
    pairs, same, fold = sample_pairs(RAGGED, count, folds, 0)
    check(RAGGED, pairs, same, fold, folds)
    assert len(pairs) <= count
    if count < 1000:
        assert len(pairs) == count // (2 * folds) * 2 * folds
    people = [set(RAGGED[pairs[fold == k]].ravel().tolist()) for k in range(folds)]
    assert sum(map(len, people)) == len(set.union(*people))


def test_the_draw_is_a_function_of_its_arguments():
    first, again, other = (sample_pairs(RAGGED, 200, 5, seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_person_with_many_images_does_not_outvote_the_rest():
    labels = np.concatenate([np.repeat(np.arange(20), 4), np.full(200, 20)])
    pairs, same, _ = sample_pairs(labels, 84, 2, 0)
    share = np.bincount(labels[pairs[same][:, 0]], minlength=21)
    assert share.sum() == 42
    assert share.max() <= 3


def test_too_few_people_for_disjoint_folds_share_them():
    labels = np.repeat(np.arange(3), 10)
    pairs, same, fold = sample_pairs(labels, 60, 5, 0)
    check(labels, pairs, same, fold, 5)
    assert len(pairs) == 60


def test_every_genuine_pair_can_be_drawn():
    labels = np.repeat(np.arange(8), 4)
    pairs, same, fold = sample_pairs(labels, 10_000, 2, 0)
    check(labels, pairs, same, fold, 2)
    assert same.sum() == 8 * 6


@pytest.mark.parametrize(
    ("labels", "count", "folds", "message"),
    [
        (np.arange(50), 20, 10, "50 images of 50 identities give too few pairs"),
        (np.zeros(50, int), 20, 10, "50 images of 1 identities"),
        (np.array([], int), 20, 10, "0 images"),
        (RAGGED, 19, 10, "raise count"),
        (RAGGED, 20, 1, "two folds at least"),
    ],
)
def test_refusals(labels, count, folds, message):
    with pytest.raises(ValueError, match=message):
        sample_pairs(labels, count, folds, 0)
