"""Everybody comes equally often: how often, in which order, and at what cost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facelab.data.plan import Plan
from facelab.data.sampling import ClassBalanced


def people(counts, seed=0):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


def epochs(plan, number):
    """Positions and turns of `number` epochs (E,N')."""
    steps = plan.steps_per_epoch
    both = [plan.picks(epoch * steps, steps) for epoch in range(number)]
    return tuple(np.stack(rows) for rows in zip(*both, strict=True))


@given(
    counts=st.lists(st.integers(1, 60), min_size=2, max_size=20),
    power=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    seed=st.integers(-(2**40), 2**70),
    first=st.integers(0, 5000),
)
def test_people_come_in_their_share_and_images_go_round(counts, power, seed, first):
    labels = people(counts)
    plan = ClassBalanced(labels, 1, seed, power)  # batches of one: nothing is dropped at the end of an epoch
    counts = np.array(counts)
    expected = counts**power / (counts**power).sum() * len(labels)
    for epoch in range(first, first + 2):
        positions, turns = plan.picks(epoch * len(labels), len(labels))
        assert positions.dtype == np.int64
        times = np.bincount(labels[positions], minlength=len(counts))
        assert (np.abs(times - expected) < 2).all()
        assert turns.min() >= 0
        assert len(set(zip(positions.tolist(), turns.tolist(), strict=True))) == len(labels), "each draw has its name"
        # Whoever comes m times an epoch has no image more often than the cycles that these touch.
        most = np.bincount(positions, minlength=len(labels))
        assert (most <= np.ceil((expected + 2) / counts)[labels] + 1).all()


def test_on_average_the_shares_are_exact():
    counts = np.array([1, 2, 3, 7, 40, 100])
    labels = people(counts)
    for power in (0.0, 0.5):
        positions, _ = epochs(ClassBalanced(labels, 1, 3, power), 800)
        times = np.bincount(labels[positions.ravel()], minlength=6) / 800
        expected = counts**power / (counts**power).sum() * len(labels)
        # The two strata at the ends of an interval alone are left to chance: deviation at most 0.71 an epoch.
        assert np.abs(times - expected).max() < 5 * 0.71 / np.sqrt(800)


def test_with_power_one_every_image_comes_once_an_epoch():
    labels = people([3, 1, 12, 7, 30])
    positions, turns = epochs(ClassBalanced(labels, 1, 5, 1.0), 20)
    assert (np.sort(positions, axis=1) == np.arange(53)).all()
    assert (turns == 0).all()
    assert len({tuple(row) for row in positions.tolist()}) == 20


def test_a_persons_images_all_have_their_turn_before_one_comes_again_and_in_a_new_order():
    """Four people with 12 places of 48 each: a cycle of the first is three epochs, of the last a third of one."""
    labels = people([36, 6, 4, 2])
    positions, turns = epochs(ClassBalanced(labels, 1, 2, 0.0), 60)
    for person, count in enumerate([36, 6, 4, 2]):
        times = np.stack([np.bincount(row[labels[row] == person], minlength=48) for row in positions])
        times = times[:, labels == person]
        assert (times.sum(axis=1) == 12).all(), "the numbers divide: nothing is left to chance"
        if count == 36:
            cycles = times.reshape(20, 3, 36)
            assert (cycles.sum(axis=1) == 1).all(), "everything once in three epochs"
            assert len({tuple(np.flatnonzero(cycle[0])) for cycle in cycles}) == 20
        else:
            assert (times == 12 // count).all()
    assert turns.max() == 5  # the person with two images


def test_nearly_all_of_somebody_is_seen_before_one_comes_again_where_numbers_do_not_divide():
    labels = people([90, 7, 7])  # 34.67 places an epoch each: 90 images are gone round in 2.6 epochs
    positions, _ = epochs(ClassBalanced(labels, 1, 0, 0.0), 26)
    own = labels == 0
    times = np.bincount(positions.ravel(), minlength=len(labels))[own]
    assert times.sum() == pytest.approx(26 * 104 / 3, abs=4)
    assert times.min() >= 8  # drawn blindly: mean 10, deviation 3.2, the rarest of ninety about 3
    assert times.max() <= 11


def test_batches_of_a_long_tail_are_balanced():
    labels = people(np.r_[[300] * 2, [3] * 38])
    plan = ClassBalanced(labels, 64, 1, 0.0)
    assert plan.steps_per_epoch == 714 // 64
    head = [np.isin(labels[plan.indices(step)], (0, 1)).mean() for step in range(200)]
    assert np.mean(head) == pytest.approx(2 / 40, abs=0.01)  # 0.84 in the data
    assert plan.about == ("everybody equally often: an image comes 0.06 to 6 times an epoch, a person 17.8")


def test_steps_asked_at_once_or_alone_are_the_same():
    plan = ClassBalanced(people([5, 9, 4, 4, 30, 6, 12]), 12, 0, 0.5)
    for epoch in (0, 7):
        positions, turns = plan.picks(epoch * 5, 5)
        alone = [plan.picks(epoch * 5 + number) for number in range(5)]
        assert positions.tolist() == np.concatenate([found for found, _ in alone]).tolist()
        assert turns.tolist() == np.concatenate([found for _, found in alone]).tolist()


def test_seeds_differ_and_recorded_values_never_change():
    labels = np.repeat(np.arange(5), [1, 2, 10, 50, 137])
    one, other = (ClassBalanced(labels, 12, seed, 0.0).indices(7).tolist() for seed in (1, 2))
    assert one != other
    plan = ClassBalanced(labels, 12, 42, 0.0)
    assert plan.indices(30).tolist() == RECORDED


RECORDED = [2, 0, 1, 1, 9, 109, 6, 6, 0, 0, 2, 0]


def test_forty_million_images_cost_no_more_a_batch():
    """Not the time is tested, but that nothing of the set's size is touched: the arrays may not even be read whole."""
    plan = ClassBalanced(np.repeat(np.arange(10), 4), 8, 0, 0.0)
    images = 2_000_000 * 20
    Plan.__init__(plan, images, 512, 0)
    plan.counts, plan.starts, plan.sorted = np.broadcast_to(np.int64(20), (2_000_000,)), Multiples(20), Multiples(1)
    plan.bounds = np.arange(20.0, images + 1, 20)
    found = plan.indices(61)
    assert len(np.unique(found)) == 512
    assert found.max() > 30_000_000


class Multiples:
    """An array of 0, n, 2n, … that is never made."""

    def __init__(self, factor):
        self.factor = factor

    def __getitem__(self, where):
        return where * self.factor


@pytest.mark.parametrize("power", [-0.1, 1.1, float("nan")])
def test_a_power_out_of_range_is_refused(power):
    with pytest.raises(ValueError, match=r"^data\.sampler\.power is .*: give a power from 0 \(everybody alike\) to 1"):
        ClassBalanced(people([4, 4]), 4, 0, power)


def test_a_person_who_lost_all_images_does_not_come():
    labels = np.array([0, 0, 3, 3, 3, 7])
    positions, _ = epochs(ClassBalanced(labels, 1, 0, 0.0), 5)
    assert (np.bincount(labels[positions.ravel()])[[0, 3, 7]] == 10).all()
