import numpy as np
import pytest

from facelab.data import plan
from facelab.data.plan import Plan, step_seed, uniforms


def epoch_order(the_plan: Plan, epoch: int) -> np.ndarray:
    steps = range(epoch * the_plan.steps_per_epoch, (epoch + 1) * the_plan.steps_per_epoch)
    return np.concatenate([the_plan.indices(step) for step in steps])


@pytest.mark.parametrize("length", [1, 2, 3, 5, 1000, 4097])
@pytest.mark.parametrize("seed", [0, 7, -1, 2**70])
def test_every_epoch_is_a_permutation(length, seed):
    for epoch in (0, 1, 1000):
        order = epoch_order(Plan(length, {1000: 50, 4097: 241}.get(length, 1), seed), epoch)
        assert order.dtype == np.int64
        assert np.array_equal(np.sort(order), np.arange(length))


def test_orders_differ_between_epochs_and_seeds():
    orders = [epoch_order(Plan(1000, 100, seed), epoch) for seed in (0, 1, -1) for epoch in (0, 1, 2)]
    for number, order in enumerate(orders):
        for other in orders[:number]:
            assert (order == other).mean() < 0.02  # two random orders agree at one place on average


def test_order_does_not_depend_on_the_batch_size():
    assert np.array_equal(epoch_order(Plan(96, 8, 3), 1), epoch_order(Plan(96, 32, 3), 1))


def test_a_position_holds_every_sample_equally_often():
    length, epochs = 50, 4000
    the_plan = Plan(length, length, 0)
    orders = np.stack([the_plan.indices(epoch) for epoch in range(epochs)])
    expected = epochs / length
    for position in (0, 1, 25, 49):
        counts = np.bincount(orders[:, position], minlength=length)
        # χ² with 49 degrees of freedom: mean 49, standard deviation 9.9
        assert ((counts - expected) ** 2 / expected).sum() < 49 + 6 * 9.9


def test_neighbours_are_unrelated():
    order = epoch_order(Plan(100_000, 1000, 5), 0)
    following = np.mod(np.diff(order), 100_000)
    assert len(np.unique(following)) > 60_000  # 63 % of differences are distinct in a random order
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02


def test_the_rest_of_an_epoch_is_dropped_and_another_one_each_time():
    the_plan = Plan(10, 4, 0)
    assert the_plan.steps_per_epoch == 2
    assert [the_plan.epoch(step) for step in range(5)] == [0, 0, 1, 1, 2]
    left_out = {tuple(np.setdiff1d(np.arange(10), epoch_order(the_plan, epoch))) for epoch in range(20)}
    assert all(len(rest) == 2 for rest in left_out)
    assert len(left_out) > 5


def test_forty_million_samples_need_no_array():
    the_plan = Plan(42_000_000, 256, 0)
    batches = np.concatenate([the_plan.indices(step) for step in (0, 1, the_plan.steps_per_epoch - 1)])
    assert len(np.unique(batches)) == 3 * 256
    assert batches.max() > 30_000_000
    held = [value for value in vars(the_plan).values() if isinstance(value, np.ndarray)]
    assert not held


def test_without_shuffling_positions_come_in_order():
    the_plan = Plan(7, 3, 0, shuffle=False)
    assert [the_plan.indices(step).tolist() for step in range(3)] == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]


@pytest.mark.parametrize(("length", "batch_size"), [(10, 0), (10, 11), (0, 1)])
def test_impossible_batch_sizes_are_refused(length, batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        Plan(length, batch_size, 0)


def test_negative_steps_are_refused():
    with pytest.raises(ValueError, match="step is -1"):
        Plan(10, 2, 0).indices(-1)


def test_draws_are_uniform():
    draws = uniforms(0, 0, np.arange(100_000), 3)
    assert draws.shape == (100_000, 3)
    assert draws.dtype == np.float32
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        counts = np.histogram(column, bins=100, range=(0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 99 + 6 * 14.1  # χ² with 99 degrees of freedom


def test_draws_of_columns_epochs_seeds_and_neighbours_are_unrelated():
    samples = np.arange(50_000)
    draws = uniforms(0, 0, samples, 2)
    others = [
        draws[:, 1],
        uniforms(0, 1, samples, 1)[:, 0],
        uniforms(1, 0, samples, 1)[:, 0],
        uniforms(0, 0, samples + 1, 1)[:, 0],
    ]
    for other in others:
        assert abs(np.corrcoef(draws[:, 0], other)[0, 1]) < 0.03  # standard deviation 0.0045


def test_draws_of_a_sample_do_not_depend_on_its_batch_or_on_the_number_of_columns():
    whole = uniforms(3, 2, np.arange(100), 4)
    some = np.array([7, 99, 0, 7])
    assert np.array_equal(uniforms(3, 2, some, 4), whole[some])
    assert np.array_equal(uniforms(3, 2, some, 2), whole[some, :2])
    assert uniforms(3, 2, some, 0).shape == (4, 0)


def test_draws_are_not_related_to_the_order():
    the_plan = Plan(20_000, 20_000, 0)
    draws = uniforms(0, 0, the_plan.indices(0), 1)[:, 0]
    assert abs(np.corrcoef(draws, np.arange(20_000))[0, 1]) < 0.05


def test_recorded_values_never_change():
    # A resumed run must continue in the order in which it began, whatever the versions of Python, NumPy and facelab.
    assert Plan(1000, 5, 42).indices(3).tolist() == [85, 373, 918, 250, 349]
    assert (uniforms(42, 1, np.array([0, 41_999_999]), 2) * 2**24).tolist() == [
        [1710679, 6869297],
        [11115934, 11518962],
    ]
    assert step_seed(42, 10, 3) == 4352193215758763166


def test_step_seeds_are_all_different_and_have_63_bits():
    seeds = {step_seed(seed, step, rank) for seed in (0, 1) for step in range(500) for rank in range(4)}
    assert len(seeds) == 2 * 500 * 4
    assert min(seeds) >= 0
    assert 2**61 < max(seeds) < 2**63
    assert step_seed(np.int64(1), np.int64(2), np.int64(3)) == step_seed(1, 2, 3)


def test_words_and_arrays_are_mixed_alike():
    words = [0, 1, 2**63, 2**64 - 1, 0x123456789ABCDEF]
    assert plan._mix_array(np.array(words, dtype=np.uint64)).tolist() == [plan._mix(word) for word in words]
