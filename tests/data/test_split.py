import numpy as np
import pytest

from facelab.data.split import hold_out

LABELS = np.repeat(np.arange(100), np.r_[np.ones(20, int), np.full(80, 3)])  # 20 of 100 people have one image


def test_every_identity_is_on_one_side_and_single_images_are_trained_on():
    train, held = hold_out(LABELS, 0.25, 0)
    assert len(held) == 20
    assert held.min() >= 20
    assert np.array_equal(np.sort(np.r_[train, held]), np.arange(100))
    assert (np.diff(train) > 0).all()
    assert (np.diff(held) > 0).all()


def test_the_seed_alone_decides_and_the_order_of_images_does_not():
    shuffled = np.random.default_rng(0).permutation(LABELS)
    assert np.array_equal(hold_out(LABELS, 0.25, 1)[1], hold_out(shuffled, 0.25, 1)[1])
    assert not np.array_equal(hold_out(LABELS, 0.25, 1)[1], hold_out(LABELS, 0.25, 2)[1])


def test_a_larger_fraction_holds_out_the_same_and_more():
    small, large = hold_out(LABELS, 0.1, 0)[1], hold_out(LABELS, 0.5, 0)[1]
    assert set(small) < set(large)


def test_identities_are_held_out_equally_often():
    counts = sum(np.bincount(hold_out(LABELS, 0.25, seed)[1], minlength=100) for seed in range(400))
    assert (counts[:20] == 0).all()
    assert counts[20:].min() > 60  # 100 expected, standard deviation 8.7
    assert counts[20:].max() < 140


def test_nothing_is_held_out_at_fraction_zero():
    train, held = hold_out(LABELS, 0, 0)
    assert len(train) == 100
    assert len(held) == 0


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
def test_a_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        hold_out(LABELS, fraction, 0)


def test_too_few_identities_on_either_side_are_refused():
    with pytest.raises(ValueError, match="leaves 1 held-out"):
        hold_out(LABELS, 0.01, 0)
    with pytest.raises(ValueError, match="leaves 1 for training"):
        hold_out(np.repeat(np.arange(10), 2), 0.9, 0)
    with pytest.raises(ValueError, match="of 0 identities with two or more images"):
        hold_out(np.arange(10), 0.5, 0)
