"""Correlations with intervals over classes, against their definition with images that are really repeated."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facelab.quality.correlation import _draws, pearson, spearman


def ranks(values):
    """Mean ranks by counting."""
    return np.array([(values < value).sum() + ((values == value).sum() + 1) / 2 for value in values])


def plain(x, y):
    return np.corrcoef(x, y)[0, 1]


def ranked(x, y):
    return plain(ranks(x), ranks(y))


def sample(seed=0, n=60, classes=9):
    rng = np.random.default_rng(seed)
    who = rng.integers(classes, size=n)
    x = rng.normal(size=n) + who
    return np.round(x, 1), np.round(x + 3 * rng.normal(size=n)), 7 * who - 3  # ties in both, odd class numbers


@pytest.mark.parametrize(("measure", "reference"), [(pearson, plain), (spearman, ranked)])
def test_value_and_interval_are_those_of_repeated_images(measure, reference):
    x, y, classes = sample()
    found = measure(x, y, classes, replicates=40, seed=3)
    assert found.value == pytest.approx(reference(x, y), abs=1e-12)
    numbers = np.unique(classes)
    drawn = []
    for weights in np.concatenate(list(_draws(len(numbers), 40, 3))):
        rows = np.concatenate([
            np.flatnonzero(classes == number) for number, times in zip(numbers, weights, strict=True)
            for _ in range(times)
        ])  # fmt: skip
        drawn.append(reference(x[rows], y[rows]))
    np.testing.assert_allclose(found[1:], np.quantile(drawn, (0.025, 0.975)), atol=1e-12)


def test_draws_are_of_as_many_classes():
    drawn = np.concatenate(list(_draws(5, 200, 0)))
    assert drawn.shape == (200, 5)
    assert (drawn.sum(1) == 5).all()
    assert (drawn == 0).any()


def test_images_of_one_class_do_not_count_as_independent():
    """A copy of every image tells nothing new, and leaves value and interval as they were."""
    x, y, classes = sample(1)
    once = spearman(x, y, classes, replicates=60, seed=0)
    twice = spearman(np.tile(x, 2), np.tile(y, 2), np.tile(classes, 2), replicates=60, seed=0)
    np.testing.assert_allclose(once, twice, atol=1e-12)


@given(st.integers(0, 2**32 - 1))
def test_spearman_knows_the_order_alone(seed):
    x, y, classes = sample(seed, 25, 4)
    one = spearman(x, y, classes, replicates=3, seed=0)
    other = spearman(np.exp(x / 3), y**3, classes, replicates=3, seed=0)
    np.testing.assert_allclose(one, other, atol=1e-12)
    np.testing.assert_allclose(np.negative(one.value), spearman(-x, y, classes, replicates=3, seed=0).value, atol=1e-12)


def test_large_numbers_keep_their_digits():
    x, y, classes = sample()
    one, other = (pearson(x + shift, y, classes, replicates=5, seed=0) for shift in (0, 1e8))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_what_does_not_vary_has_none():
    found = pearson(np.ones(4), np.arange(4.0), np.arange(4), replicates=5, seed=0)
    assert np.isnan(found).all()


def test_numbers_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"1 of 3 numbers y are not finite"):
        pearson(np.ones(3), np.array([1, np.nan, 2]), np.arange(3), replicates=5, seed=0)
    with pytest.raises(ValueError, match=r"replicates is 0"):
        pearson(np.ones(3), np.ones(3), np.arange(3), replicates=0, seed=0)
    with pytest.raises(ValueError, match="no image is left"):
        pearson(np.ones(0), np.ones(0), np.ones(0), replicates=5, seed=0)
