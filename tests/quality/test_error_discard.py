"""Error-versus-discard curves, against pairs that are really taken away one quality after another."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facelab.quality.error_discard import Curve, fixed, flat, oracle, pair_quality, rederived, threshold_at


def slow_fixed(genuine, quality, threshold, share):
    """The error when at most so many pairs may leave: one quality after another, all of its pairs together."""
    left = list(zip(quality.tolist(), genuine.tolist(), strict=True))
    while True:
        worst = min(q for q, _ in left)
        fewer = [pair for pair in left if pair[0] > worst]
        if not fewer or len(genuine) - len(fewer) > share * len(genuine) + 1e-9:
            return sum(score < threshold for _, score in left) / len(left)
        left = fewer


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 30))
def test_a_fixed_threshold_by_taking_away(seed, levels, count):
    rng = np.random.default_rng(seed)
    genuine, quality = rng.normal(size=count).round(1), rng.integers(levels, size=count).astype(float)
    curve = fixed(genuine, quality, 0.2)
    shares = np.arange(21) / 20
    np.testing.assert_allclose(curve.at(shares), [slow_fixed(genuine, quality, 0.2, share) for share in shares])
    fine = (np.arange(20000) + 0.5) / 20000 * 0.2
    assert curve.area(0.2) == pytest.approx(curve.at(fine).mean() * 0.2, abs=1e-4)
    assert (oracle(genuine, 0.2).at(shares) <= curve.at(shares) + 1e-12).all()


@given(st.integers(0, 2**32 - 1))
def test_the_order_of_qualities_is_all_that_counts(seed):
    rng = np.random.default_rng(seed)
    genuine, quality = rng.normal(size=30), rng.integers(8, size=30).astype(float)
    order = rng.permutation(30)
    one, other = fixed(genuine, quality, 0.0), fixed(genuine[order], np.exp(quality[order]), 0.0)
    np.testing.assert_array_equal(one.share, other.share)
    np.testing.assert_array_equal(one.fnmr, other.fnmr)


def test_oracle_and_random_are_what_they_are_called():
    genuine = np.arange(100) / 100
    best = oracle(genuine, 0.05)
    assert best.fnmr[0] == 0.05
    assert best.at(np.array([0.049])) == pytest.approx(1 / 96)
    assert best.at(np.array([0.05])) == 0
    level = flat(best)
    assert level.area(0.2) == pytest.approx(0.05 * 0.2)
    rng = np.random.default_rng(0)
    drawn = [fixed(genuine, rng.permutation(100), 0.05).area(0.2) for _ in range(2000)]
    assert np.mean(drawn) == pytest.approx(level.area(0.2), rel=0.03)


def test_the_threshold_rejects_at_most_the_share():
    scores = np.array([0.1, 0.2, 0.2, 0.3] + [0.5] * 36)
    for start, rejected in ((0.05, 1), (0.075, 3), (0.1, 4), (0.025, 1)):
        threshold = threshold_at(scores, start)
        assert (scores < threshold).sum() == rejected
        assert rejected <= start * 40 + 1e-9
    with pytest.raises(ValueError, match="none of 19 genuine pairs"):
        threshold_at(np.arange(19.0), 0.05)
    with pytest.raises(ValueError, match="none of 40 genuine pairs"):
        threshold_at(np.ones(40), 0.05)
    with pytest.raises(ValueError, match=r"far=1\.5|between 0 and 1"):
        threshold_at(np.arange(40.0), 1.5)


def slow_rederived(scores, same, quality, far, share):
    """Thresholds tried one by one on what is left."""
    order = np.sort(quality)
    kept = quality >= order[min(int(share * len(order) + 1e-9), len(order) - 1)]
    genuine, impostor = scores[kept & same], scores[kept & ~same]
    best = 1.0
    for threshold in np.concatenate([scores[kept], [np.inf]]):
        if (impostor >= threshold).mean() <= far:
            best = min(best, (genuine < threshold).mean())
    return best


@pytest.mark.parametrize("levels", [3, 1000])
def test_a_threshold_set_anew_by_trying_all(levels):
    rng = np.random.default_rng(levels)
    same = rng.random(200) < 0.5
    scores = (rng.normal(size=200) + same).round(2)
    quality = rng.integers(levels, size=200)
    curve = rederived(scores, same, quality, 0.1, 0.4, 10)
    shares = np.arange(11) / 10 * 0.4
    expected = [slow_rederived(scores, same, quality, 0.1, share) for share in shares]
    np.testing.assert_allclose(curve.at(shares + 1e-9), expected)
    assert len(curve.share) == (11 if levels > 3 else len(np.unique(curve.share)))


def test_a_pair_is_as_good_as_its_worse_image():
    pairs = np.array([[0, 1], [1, 2], [2, 0]])
    assert pair_quality(np.array([3.0, 1.0, 2.0]), pairs).tolist() == [1, 1, 2]
    with pytest.raises(ValueError, match="1 of 3 images have no quality, the first is image 1"):
        pair_quality(np.array([3.0, np.nan, 2.0]), pairs)


def test_a_staircase_holds_up_to_its_next_step():
    curve = Curve(np.array([0.0, 0.5]), np.array([0.4, 0.1]))
    assert curve.at(np.array([0, 0.49, 0.5, 1])).tolist() == [0.4, 0.4, 0.1, 0.1]
    assert curve.area(0.25) == pytest.approx(0.1)
    assert curve.area(1.0) == pytest.approx(0.25)
