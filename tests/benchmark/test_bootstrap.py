"""Intervals over people: known distributions, the same draws whatever the order, and no false certainty."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelab.benchmark import bootstrap
from facelab.benchmark.bootstrap import per_subject, share_intervals, two_way_interval


def plain(errors, trials, replicates, seed):
    """People drawn one by one."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(errors), size=(replicates, len(errors)))
    return np.quantile(errors[drawn].sum(axis=1) / trials[drawn].sum(axis=1), [0.025, 0.975])


def test_it_is_the_bootstrap_of_people_drawn_one_by_one():
    rng = np.random.default_rng(0)
    trials = rng.integers(1, 6, 200)
    errors = rng.binomial(trials, rng.beta(0.5, 3, 200))
    ours = share_intervals(errors, trials, replicates=20_000, seed=1)
    np.testing.assert_allclose(ours, plain(errors, trials, 20_000, 2), atol=2e-3)


def test_one_trial_a_person_is_a_binomial():
    errors = np.zeros(1000)
    errors[:100] = 1
    low, high = share_intervals(errors, np.ones(1000), replicates=20_000, seed=0)
    half = 1.96 * np.sqrt(0.1 * 0.9 / 1000)
    assert low == pytest.approx(0.1 - half, abs=1.5e-3)
    assert high == pytest.approx(0.1 + half, abs=1.5e-3)


def test_it_is_over_people_and_not_over_comparisons():
    """Ten comparisons of a person that all go wrong together tell no more than one does."""
    errors = np.repeat([1.0, 0.0], [10, 90])
    alone = share_intervals(errors, np.ones(100), replicates=4000, seed=0)
    tenfold = share_intervals(10 * errors, np.full(100, 10), replicates=4000, seed=0)
    np.testing.assert_allclose(alone, tenfold)
    assert np.ptp(share_intervals(np.repeat(errors, 10), np.ones(1000), replicates=4000, seed=0)) < 0.5 * np.ptp(alone)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 3))
def test_order_and_pieces_change_nothing(seed, people, rates):
    rng = np.random.default_rng(seed)
    trials = rng.integers(0, 4, (people, rates))
    errors = rng.binomial(trials, 0.4)
    whole = share_intervals(errors, trials, replicates=50, seed=3)
    shuffled = rng.permutation(people)
    np.testing.assert_array_equal(whole, share_intervals(errors[shuffled], trials[shuffled], replicates=50, seed=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "AT_ONCE", 7)
        np.testing.assert_array_equal(whole, share_intervals(errors, trials, replicates=50, seed=3))
    absent = np.zeros((5, rates), int)
    more = share_intervals(np.concatenate([errors, absent]), np.concatenate([trials, absent]), replicates=50, seed=3)
    np.testing.assert_array_equal(whole, more)
    inside = ~np.isnan(whole[0])
    assert (whole[0, inside] <= whole[1, inside]).all()


def test_nobody_has_a_trial():
    assert np.isnan(share_intervals(np.zeros((3, 2)), np.zeros((3, 2)), replicates=10, seed=0)).all()
    assert np.isnan(share_intervals(np.zeros(0), np.zeros(0), replicates=10, seed=0)).all()
    half = share_intervals(np.array([[0.0, 1]] * 4), np.array([[0.0, 2]] * 4), replicates=10, seed=0)
    assert np.isnan(half[:, 0]).all()
    assert half[:, 1].tolist() == [0.5, 0.5]


def test_impostors_of_two_sides():
    """Against weights written out as a matrix."""
    rng = np.random.default_rng(5)
    people = 12
    errors = np.triu(rng.integers(0, 3, (people, people)), 1)
    one, other = rng.integers(1, 4, people), rng.integers(1, 4, people)
    pairs = np.argwhere(errors)
    bounds = two_way_interval(pairs, errors[tuple(pairs.T)], one, other, replicates=300, seed=9)
    draws, found = np.random.default_rng(9), []
    for _ in range(300):
        weight = np.bincount(draws.integers(people, size=people), minlength=people)
        product = np.outer(weight, weight) * (1 - np.eye(people))
        found.append((product * errors).sum() / (product * np.outer(one, other)).sum())
    np.testing.assert_allclose(bounds, np.quantile(found, [0.025, 0.975]))
    # One person whom everybody resembles makes the rate uncertain, however many comparisons there are.
    star = np.stack([np.zeros(399, int), np.arange(1, 400)], axis=1)
    spread = np.random.default_rng(1).permutation(400).reshape(-1, 2)[:199]
    shares = [
        two_way_interval(chosen, np.ones(len(chosen)), np.ones(400), np.ones(400), replicates=300, seed=0)
        for chosen in (star, spread)
    ]
    assert shares[0][0] == 0
    assert shares[1][0] > 0


def test_sums_of_people():
    found = per_subject(np.array([2, 0, 2]), np.array([[1, 10], [2, 20], [4, 40]]), 4)
    assert found.tolist() == [[2, 20], [0, 0], [5, 50], [0, 0]]


def test_settings_out_of_range():
    with pytest.raises(ValueError, match=r"\(S,\) or \(S,T\) of both"):
        share_intervals(np.zeros(3), np.zeros(4), replicates=10, seed=0)
    with pytest.raises(ValueError, match="0 replicates"):
        share_intervals(np.zeros(3), np.ones(3), replicates=0, seed=0)
    with pytest.raises(ValueError, match="level 1"):
        two_way_interval(np.zeros((0, 2), int), np.zeros(0), np.ones(3), np.ones(3), replicates=10, seed=0, level=1)
