"""The table's statistics equal scipy's and a brute-force bootstrap; false alarms are as many as promised."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from facelab.compare.statistics import (
    holm,
    needed,
    over_seeds,
    percentiles,
    quantile,
    replicate,
    resampled_p,
    two_sided,
    visible,
)


@given(st.floats(0, 60), st.integers(1, 300))
def test_students_p_is_scipys(t, freedom):
    assert two_sided(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), rel=1e-8, abs=1e-14)
    assert two_sided(-t, freedom) == two_sided(t, freedom)


@given(st.floats(1e-6, 1 - 1e-6), st.integers(1, 300))
def test_students_quantile_is_scipys(share, freedom):
    assert quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=1e-6, abs=1e-9)


@given(st.lists(st.floats(0.5, 1), min_size=2, max_size=8), st.floats(0.5, 0.999), st.data())
def test_paired_seeds_are_scipys_paired_test(one, level, data):
    other = data.draw(st.lists(st.floats(0.5, 1), min_size=len(one), max_size=len(one)))
    difference = np.array(one) - other
    if difference.std() < 1e-6:
        return
    found, expected = over_seeds(difference, level), stats.ttest_rel(one, other)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-7, abs=1e-14)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(level)), rel=1e-6, abs=1e-12)
    assert found.std == pytest.approx(np.std(difference, ddof=1))


def test_a_single_seed_tells_no_spread():
    found = over_seeds([0.9], 0.95)
    assert found.mean == 0.9
    assert np.isnan([found.std, *found.interval, found.p]).all()


def test_seeds_that_agree_to_the_last_digit_are_no_proof():
    grain = 1 / 6000 / np.sqrt(6)
    assert over_seeds([1 / 6000] * 2, 0.95).p == 0
    assert over_seeds([1 / 6000] * 2, 0.95, grain).p > 0.05
    assert over_seeds([0.0, 0.0], 0.95, 0).p == 1


def test_holm_by_hand_and_by_brute_force():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, np.nan, 0.5])[[0, 2]] == pytest.approx([0.02, 0.5])
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = rng.random(6) ** 3
        # Rejected at α: by the step-down rule itself.
        for alpha in (0.01, 0.05, 0.2):
            rejected = []
            for k, value in enumerate(sorted(p)):
                if value > alpha / (len(p) - k):
                    break
                rejected.append(value)
            assert sorted(p[holm(p) <= alpha]) == rejected


@pytest.mark.parametrize("effect", [0.7, 1.0, 2.5])
def test_needed_seeds_have_the_power_that_is_promised(effect):
    def power(n):
        bound = stats.t.ppf(0.975, n - 1)
        return stats.nct.sf(bound, n - 1, effect * np.sqrt(n)) + stats.nct.cdf(-bound, n - 1, effect * np.sqrt(n))

    exact = next(n for n in itertools.count(2) if power(n) >= 0.8)
    assert abs(needed(1.0, effect, 0.95) - exact) <= 1
    found = int(needed(1.0, -effect, 0.95))
    assert visible(1.0, found, 0.95) <= effect < visible(1.0, found - 1, 0.95) if found > 2 else True


def test_needed_seeds_at_the_ends():
    assert needed(0.1, 0.0, 0.95) == np.inf
    assert needed(0.1, 1e-9, 0.95) == np.inf
    assert needed(0.0, 0.1, 0.95) == 2
    assert np.isnan(needed(np.nan, 0.1, 0.95))
    assert np.isnan(visible(0.1, 1, 0.95))


def trials(seed, pairs=40, people=12, rows=3):
    rng = np.random.default_rng(seed)
    genuine = np.arange(pairs) % 2
    one = rng.integers(people, size=pairs)
    other = np.where(genuine == 1, one, (one + rng.integers(1, people, size=pairs)) % people)
    return rng.random((pairs, rows)), rng.random(pairs) + 0.5, one, other, genuine


def test_the_bootstrap_is_a_loop_over_copies_of_people():
    values, weight, one, other, stratum = trials(1)
    found = replicate(values, weight, one, other, stratum, replicates=50, seed=3)
    people = np.unique([one, other])
    rng, shares = np.random.default_rng(3), [weight[stratum == s].sum() / weight.sum() for s in (0, 1)]
    for row in found:
        drawn = rng.integers(len(people), size=len(people))  # the very draws, one replicate after the other
        hits, total = np.zeros((2, 3)), np.zeros((2, 1))
        for i in range(len(one)):
            # Every copy of the first person meets every copy of the second; a copy meets itself, and no other copy.
            for a in drawn:
                if people[a] != one[i]:
                    continue
                times = 1 if one[i] == other[i] else sum(people[b] == other[i] for b in drawn)
                hits[stratum[i]] += times * weight[i] * values[i]
                total[stratum[i]] += times * weight[i]
        assert row == pytest.approx(shares @ (hits / total), rel=1e-5)


def test_chunks_do_not_change_the_draws(monkeypatch):
    whole = replicate(*trials(2), replicates=30, seed=0)
    monkeypatch.setattr("facelab.compare.statistics.AT_ONCE", 100)
    assert np.allclose(replicate(*trials(2), replicates=30, seed=0), whole, rtol=1e-6)


def test_replicates_of_one_person_each_have_the_standard_error():
    rng = np.random.default_rng(4)
    values, n = rng.random((400, 1)) < 0.9, 400
    alone = np.arange(n)
    drawn = replicate(values, np.ones(n), alone, alone, np.zeros(n), replicates=4000, seed=0)[:, 0]
    error = np.sqrt(values.var() / n)
    assert drawn.std() == pytest.approx(error, rel=0.05)
    low, high = percentiles(drawn, 0.95)
    assert (high - low) == pytest.approx(2 * 1.96 * error, rel=0.07)
    assert resampled_p(2 * error, drawn) == pytest.approx(2 * stats.norm.sf(2), rel=0.3)
    assert np.isnan(percentiles(np.full(3, np.nan), 0.95)).all()


def test_two_thousand_comparisons_of_equals_and_of_a_planted_difference():
    """Accuracies of three seeds on 6,000 pairs: what the two share, what they do not, and counting of right answers."""
    rng = np.random.default_rng(5)
    alarms, found = 0, 0
    for _ in range(2000):
        shared = 0.002 * rng.normal(size=3)  # the seed's order of images, the same for both
        one, other, better = (
            rng.binomial(6000, 0.97 + more + shared + 0.001 * rng.normal(size=3)) / 6000 for more in (0, 0, 0.02)
        )
        alarms += over_seeds(one - other, 0.95, 1 / 6000 / np.sqrt(6)).p < 0.05
        found += over_seeds(better - other, 0.95, 1 / 6000 / np.sqrt(6)).p < 0.05
    assert abs(alarms / 2000 - 0.05) <= 0.015
    assert found / 2000 > 0.9


def test_two_thousand_comparisons_of_single_runs_over_people():
    """Of runs that differ by their own noise alone: no more alarms than promised.

    Where every trial is of one person the rate is the promised one; w_i·w_j counts what two people have in common
    several times, which is cautious (Owen, 2007).
    """
    rng = np.random.default_rng(6)
    n, alarms = 150, {"one": 0, "two": 0}
    alone, ones = np.arange(n), np.ones(n)
    one = rng.integers(60, size=n)
    other = (one + rng.integers(1, 60, size=n)) % 60
    for i in range(0, 2000, 50):  # fifty comparisons share draws of people, and have runs of their own
        right = (rng.random((n, 100)) < rng.beta(9, 1, size=(n, 1))).astype(float)
        for kind, sides in (("one", (alone, alone)), ("two", (one, other))):
            drawn = replicate(right, ones, *sides, np.zeros(n), replicates=200, seed=i)
            for k in range(50):
                difference = right[:, k].mean() - right[:, k + 50].mean()
                alarms[kind] += resampled_p(difference, drawn[:, k] - drawn[:, k + 50]) < 0.05
    assert abs(alarms["one"] / 2000 - 0.05) <= 0.015
    assert alarms["two"] / 2000 <= 0.065
