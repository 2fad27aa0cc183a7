"""Who comes into a batch: people times images, by weights that adapt, and the promises that all plans keep."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from facelab.data.albumentation import Albumentations
from facelab.data.plan import Plan, permute, permute_each, picture_keys
from facelab.data.process_loader import ProcessLoader
from facelab.data.sampling import Adaptive, ClassBalanced, PeopleTimesImages, Shuffled
from facelab.data.torch_loader import TrainLoader

PK = {"images": 4, "people": None}
ADAPTS = {"up": 2.0, "down": 0.5, "floor": 0.125, "noise_cosine": None, "noise_after": 0.0, "cut": 0.01}


def people(counts, seed=0):
    """Labels of so many images of each person, mixed."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


def pk(labels, batch_size, seed=0, **changes):
    return PeopleTimesImages(labels, batch_size, seed, **{**PK, **changes})


def adaptive(length, batch_size, seed=0, **changes):
    return Adaptive(np.zeros(length, np.int64), batch_size, seed, **{**ADAPTS, **changes})


def of_steps(plan, steps):
    return np.concatenate([plan.indices(step) for step in steps])


# Permutations with a length and a key for each place


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 2**63))
def test_each_length_and_key_has_a_permutation_of_its_own(lengths, seed):
    everyone = np.repeat(np.arange(len(lengths)), lengths)
    places = np.concatenate([np.arange(length) for length in lengths])
    keys = picture_keys(seed, everyone, np.zeros_like(everyone))
    moved = permute_each(places, np.repeat(lengths, lengths), keys)
    for number, length in enumerate(lengths):
        own = moved[everyone == number]
        assert sorted(own) == list(range(length))
        assert own.tolist() == permute(np.arange(length), length, int(keys[everyone == number][0])).tolist()


# People times images


@given(
    counts=st.lists(st.integers(1, 30), min_size=4, max_size=40),
    images=st.integers(2, 5),
    share=st.floats(0.01, 1),
    seed=st.integers(-(2**40), 2**70),
    step=st.integers(0, 10_000),
)
def test_a_batch_holds_distinct_people_with_distinct_images(counts, images, share, seed, step):
    counts = np.array([*counts, *[images] * len(counts)])  # at most half of them are short
    batch = images * max(2, int(share * len(counts)))
    if batch > counts.sum():
        return
    labels = people(counts)
    plan = pk(labels, batch, seed, images=images)
    positions = plan.indices(step)
    assert positions.dtype == np.int64
    assert positions.shape == (batch,)
    who = labels[positions].reshape(-1, images)
    assert (who == who[:, :1]).all(), "one person behind the other"
    assert len(set(who[:, 0])) == batch // images
    for person, own in zip(who[:, 0], positions.reshape(-1, images), strict=True):
        assert len(set(own)) == min(images, counts[person])
        assert np.unique(own, return_counts=True)[1].max() == -(-images // min(images, counts[person]))


def test_everybody_comes_once_in_a_round_and_another_rest_is_dropped_each_time():
    labels = people([6] * 23)
    plan = pk(labels, 5 * 4)
    rounds = [labels[of_steps(plan, range(start, start + 4))].reshape(-1, 4)[:, 0] for start in range(0, 400, 4)]
    assert all(len(set(found)) == 20 for found in rounds)
    assert len({tuple(found) for found in rounds}) == 100
    times = np.bincount(np.concatenate(rounds), minlength=23)
    # Each of 100 times dropped with probability 3/23: mean 87, standard deviation 3.4.
    assert times.min() > 87 - 5 * 3.4
    assert times.max() < 87 + 5 * 3.4


def test_a_persons_images_are_all_seen_before_one_comes_again():
    labels = people([12, 8, 4, 4])
    plan = pk(labels, 4 * 4)  # everybody in every batch: 3, 2 and 1 batches are a cycle of theirs
    batches = np.stack([plan.indices(step) for step in range(60)]).reshape(60, 4, 4)
    for person, length in enumerate([3, 2, 1, 1]):
        own = np.stack([batch[labels[batch[:, 0]] == person].ravel() for batch in batches])
        cycles = own.reshape(60 // length, -1)
        assert all(len(set(cycle)) == 4 * length for cycle in cycles)
        assert len({tuple(cycle) for cycle in cycles}) > 10, "in a new order each time"


def test_images_of_odd_numbers_are_drawn_evenly():
    labels = people([7, 5, 9, 6])
    plan = pk(labels, 16)
    times = np.bincount(of_steps(plan, range(1000)), minlength=len(labels))
    for person, count in enumerate([7, 5, 9, 6]):
        expected = 1000 * 4 / count
        assert np.abs(times[labels == person] - expected).max() < 6 * np.sqrt(expected)


def test_an_epoch_is_as_many_steps_as_there_are_batches_of_images():
    plan = pk(people([10] * 13), 8)
    assert plan.steps_per_epoch == 130 // 8
    assert [plan.epoch(step) for step in (0, 15, 16)] == [0, 0, 1]


def test_steps_asked_at_once_or_alone_are_the_same():
    for plan in (pk(people([5, 9, 4, 4, 30, 6, 12]), 12), adaptive(70, 12)):
        steps = plan.steps_per_epoch
        assert steps >= 5
        at_once = [plan.picks(epoch * steps, steps) for epoch in range(3)] if not plan.adapts else [plan.picks(0, 5)]
        for epoch, (positions, turns) in enumerate(at_once):
            alone = [plan.picks(epoch * steps + number) for number in range(steps)]
            assert positions.tolist() == np.concatenate([found for found, _ in alone]).tolist()
            assert turns.tolist() == np.concatenate([found for _, found in alone]).tolist()


def test_seeds_differ_and_recorded_values_never_change():
    labels = np.repeat(np.arange(50), 20)
    assert pk(labels, 12, 1).indices(7).tolist() != pk(labels, 12, 2).indices(7).tolist()
    # A resumed run must go on as it began, whatever the versions of Python, NumPy and facelab.
    assert pk(labels, 12, 42).indices(30).tolist() == [215, 203, 205, 204, 174, 165, 177, 167, 269, 262, 272, 266]
    plan = adaptive(1000, 5, 42)
    plan.learn(0, np.arange(500), np.ones(500, bool), None)
    assert plan.indices(3).tolist() == [127, 529, 939, 376, 512]


def test_forty_million_images_cost_no_more_a_batch():
    """Not the time is tested, but that nothing of the set's size is touched: the arrays may not even be read whole."""
    plan = pk(np.repeat(np.arange(1000), 4), 64)
    plan.counts = np.broadcast_to(np.int64(20), (2_000_000,))  # of 40 million images
    plan.starts = Multiples(20)
    plan.sorted = Multiples(1)
    plan.steps_per_round = 2_000_000 // 16
    found = plan.indices(61)
    assert len(np.unique(found)) == 64
    assert found.max() > 20_000_000
    assert len(np.unique(found // 20)) == 16


class Multiples:
    """An array of 0, n, 2n, … that is never made."""

    def __init__(self, factor):
        self.factor = factor

    def __getitem__(self, where):
        return where * self.factor


@pytest.mark.parametrize(
    ("counts", "batch", "changes", "line"),
    [
        ([8] * 6, 16, {"images": 1}, "data.sampler.images is 1: a pair needs 2"),
        ([8] * 6, 16, {"images": 3}, r"images is 3, which does not divide trainer.batch_size=16"),
        ([8] * 6, 16, {"people": 5}, r"people × images is 5 × 4 = 20, but trainer.batch_size is 16"),
        ([8] * 6, 32, {}, r"batch_size=32 in parts of 4 images takes 8 people, and there are 6 to train on"),
        ([8] * 6, 4, {}, r"takes 1 people"),
        ([1, 2, 3, 3, 1, 9, 9], 8, {}, r"^data/sampler=pk: 5 of 7 people have fewer than 4 images, 2 of them only one"),
        ([8], 16, {}, "batch_size is 16, but there are only 8"),
    ],
)
def test_what_cannot_make_a_batch_is_refused(counts, batch, changes, line):
    with pytest.raises(ValueError, match=line):
        pk(people(counts), batch, **changes)


def test_a_few_people_with_fewer_images_come_with_repetition_and_are_told():
    assert pk(people([8] * 6), 8, people=2).about == "2 people × 4 images a batch"
    plan = pk(people([8, 8, 2, 1]), 16)
    assert plan.about.endswith("; 2 of 4 people have fewer, and some of their images come again")


# By weights


def test_while_all_weights_are_equal_it_is_the_shuffled_plan():
    plan, shuffled = adaptive(1003, 17, 5), Shuffled(np.zeros(1003, int), 17, 5)
    for step in range(130):
        for own, other in zip(plan.picks(step), shuffled.picks(step), strict=True):
            assert own.tolist() == other.tolist()
    assert shuffled.indices(7).tolist() == Plan(1003, 17, 5).indices(7).tolist()


@given(
    st.lists(st.sampled_from([0.01, 0.125, 0.3, 0.5, 1.0]), min_size=8, max_size=60),
    st.integers(0, 2**64),
    st.integers(0, 50),
)
def test_an_epoch_draws_each_image_as_often_as_its_share_of_the_weight(weights, seed, epoch):
    plan = adaptive(len(weights), 1, seed)
    plan.weights[:] = weights
    positions, turns = plan.picks(epoch * len(weights), len(weights))
    expected = plan.weights / plan.weights.sum() * len(weights)
    times = np.bincount(positions, minlength=len(weights))
    assert (np.abs(times - expected) < 2).all()
    assert len(set(zip(positions.tolist(), turns.tolist(), strict=True))) == len(weights), "each draw has its own name"


def test_over_many_epochs_the_shares_are_exact():
    plan = adaptive(40, 40, 1)
    plan.weights[:] = np.tile(np.float32([0.01, 0.125, 0.5, 1]), 10)
    times = np.bincount(of_steps(plan, range(1500)), minlength=40)
    expected = 1500 * 40 * plan.weights / plan.weights.sum()
    assert np.abs(times - expected).max() < 6 * np.sqrt(1500 * 0.25)  # at most one draw an epoch is left to chance


def test_weights_fall_and_rise_between_floor_and_one():
    plan = adaptive(4, 2)
    told = partial(plan.learn, 0, np.array([0, 1]))
    right, wrong = np.array([True, True]), np.array([False, True])
    told(wrong, None)
    assert plan.weights.tolist() == [1, 0.5, 1, 1]
    told(right, None)
    assert plan.weights.tolist() == [0.5, 0.25, 1, 1]
    for _ in range(4):
        told(wrong, None)
    assert plan.weights.tolist() == [1, 0.125, 1, 1]
    plan.learn(1, np.array([1, 2, 3]), np.array([False, False, True]), None)
    assert plan.weights.tolist() == [1, 0.25, 1, 0.5]


def test_an_image_that_comes_twice_in_a_batch_learns_twice_and_in_order():
    plan = adaptive(3, 3)
    plan.learn(0, np.array([2, 0, 2, 2]), np.array([True, True, True, False]), None)
    assert plan.weights.tolist() == [0.5, 1, 0.5]
    plan.learn(0, np.array([1, 1]), np.array([False, True]), None)
    assert plan.weights[1] == 0.5


def test_noise_is_cut_from_its_epoch_on_and_may_come_back():
    plan = adaptive(8, 4, noise_cosine=0.1, noise_after=1.5)
    assert plan.steps_per_epoch == 2
    three = np.arange(3)
    right, cosines = np.array([True, False, False]), np.float32([0.05, 0.05, 0.5])
    plan.learn(2, three, right, cosines)
    assert plan.weights[:3].tolist() == [0.5, 1, 1]
    plan.learn(3, three, right, cosines)
    assert plan.weights[:3].tolist() == [np.float32(0.01), np.float32(0.01), 1]
    plan.learn(4, three, right, np.float32([0.1, 0.1, 0.1]))  # not below: right → the floor, wrong → above it
    assert plan.weights[:3].tolist() == [0.125, 0.25, 1]


def test_an_epoch_draws_by_the_weights_of_its_beginning():
    plan, other = adaptive(60, 10, 3), adaptive(60, 10, 3)
    whole = of_steps(other, range(6))
    for step in range(6):
        found = plan.indices(step)
        assert found.tolist() == whole[step * 10 : step * 10 + 10].tolist()
        plan.learn(step, found, found < 30, None)
    second = of_steps(plan, range(6, 12))
    assert (second < 30).mean() == pytest.approx(1 / 3, abs=0.05)  # weights 0.5 and 1
    assert plan.indices(8).tolist() == second[20:30].tolist()
    with pytest.raises(ValueError, match="step 5 is of epoch 0, and epoch 1 has begun"):
        plan.indices(5)


@pytest.mark.parametrize("stop", [0, 4, 6, 9, 17])
def test_it_goes_on_from_its_state_bit_by_bit(stop):
    def train(plan, steps):
        batches = []
        for step in steps:
            batches.append(plan.indices(step))
            cosines = np.float32((batches[-1] * 7 + step) % 11 / 11)
            plan.learn(step, batches[-1], cosines > 0.4, cosines)
        return [batch.tolist() for batch in batches]

    def made():
        return adaptive(60, 10, 3, noise_cosine=0.1, noise_after=0.5)

    alone, first = made(), made()
    expected = train(alone, range(24))
    train(first, range(stop))
    kept = copy.deepcopy(first.state())
    train(first, range(stop, stop + 3))  # what is trained after a checkpoint and lost does not matter
    resumed = made()
    resumed.restore(kept)
    assert train(resumed, range(stop, 24)) == expected[stop:]
    for name, value in alone.state().items():
        assert value.tobytes() == resumed.state()[name].tobytes()


def test_a_state_of_other_data_is_refused():
    with pytest.raises(ValueError, match="how often to draw 50 images, and there are 60"):
        adaptive(60, 10).restore(adaptive(50, 10).state())
    with pytest.raises(ValueError, match="how often to draw 0 images"):
        adaptive(60, 10).restore({})


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"up": 0.9}, "data.sampler.up is 0.9: give a factor of at least 1"),
        ({"down": 0}, "data.sampler.down is 0: "),
        ({"down": 1.5}, "data.sampler.down is 1.5: "),
        ({"floor": 0}, "data.sampler.floor is 0: "),
        ({"cut": 0.5}, "data.sampler.cut is 0.5: give a weight above 0 and up to data.sampler.floor=0.125"),
        ({"noise_cosine": 1.5}, "data.sampler.noise_cosine is 1.5: "),
        ({"noise_cosine": float("nan")}, "data.sampler.noise_cosine is nan: "),
        ({"noise_after": -1}, "data.sampler.noise_after is -1: "),
    ],
)
def test_values_out_of_range_are_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        adaptive(60, 10, **changes)


# In the loaders


class Numbered:
    """A source whose image i is filled with i."""

    size = 8

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def load(self, index, out=None):
        return np.full((8, 8, 3), index, np.uint8)


LABELS = people([9, 5, 4, 12, 3, 7, 8])


threaded = partial(TrainLoader, threads=2)


def loader(plan, start=0, stop=7, made=threaded, **changes):
    subset = np.arange(100, 100 + len(LABELS))
    known = {"source": Numbered(np.zeros(200)), "subset": subset, "labels": LABELS, "plan": plan, "seed": 7}
    known |= {"draws": 3, "rank": 0, "world": 1, "prefetch": 3, "pin": False, "start": start, "stop": stop}
    return made(**{**known, **changes})


def plan_of(kind):
    if kind == "balanced":
        return ClassBalanced(LABELS, 12, 3, 0.0)
    plan = pk(LABELS, 12, 3, images=2) if kind == "pk" else adaptive(len(LABELS), 12, 3)
    if kind == "adaptive":  # with images that come again
        plan.learn(0, np.arange(30), np.ones(30, bool), None)
        plan.learn(0, np.arange(20), np.ones(20, bool), None)
    return plan


def same(first, second):
    return all(torch.equal(*tensors) for tensors in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", ["pk", "adaptive", "balanced"])
@pytest.mark.parametrize("world", [2, 3])
def test_the_slices_of_all_ranks_are_the_global_batch(kind, world):
    whole = list(loader(plan_of(kind)))
    ranks = [list(loader(plan_of(kind), rank=rank, world=world)) for rank in range(world)]
    for step, (batch, *slices) in enumerate(zip(whole, *ranks, strict=True)):
        assert same(batch, [torch.cat(tensors) for tensors in zip(*slices, strict=True)])
        assert batch.indices.tolist() == (100 + plan_of(kind).indices(step)).tolist()
        assert batch.labels.tolist() == LABELS[batch.indices - 100].tolist()


@pytest.mark.parametrize("kind", ["pk", "adaptive", "balanced"])
def test_position_is_absolute_and_prefetching_changes_nothing(kind):
    whole = list(loader(plan_of(kind)))
    for start in range(7):
        assert all(map(same, loader(plan_of(kind), start=start, prefetch=1 + start), whole[start:]))


@pytest.mark.parametrize("kind", ["pk", "adaptive", "balanced"])
def test_an_image_that_comes_again_is_augmented_otherwise(kind):
    plan = plan_of(kind)
    batches = list(loader(plan, stop=plan.steps_per_epoch))
    indices, draws = torch.cat([b.indices for b in batches]), torch.cat([b.draws for b in batches])
    again = len(indices) - len(set(indices.tolist()))
    assert again > 3, "or the test says nothing"
    assert len({tuple(row) for row in draws.tolist()}) == len(draws)


def test_of_a_plan_that_adapts_no_epoch_is_asked_before_the_one_before_is_trained():
    plan = adaptive(len(LABELS), 12, 3)
    for step, batch in enumerate(loader(plan, prefetch=5, stop=3 * plan.steps_per_epoch)):
        assert plan.frozen == plan.epoch(step)
        plan.learn(step, batch.indices.numpy() - 100, batch.labels.numpy() < 4, None)
    assert step == 3 * plan.steps_per_epoch - 1
    assert set(plan.weights[LABELS < 4]) <= {0.125, 0.25, 0.5}
    assert (plan.weights[LABELS >= 4] == 1).all()


@pytest.mark.parametrize("kind", ["pk", "adaptive"])
def test_processes_bring_the_same_batches_augmented(kind):
    made = partial(ProcessLoader, Albumentations([{"RandomBrightnessContrast": {"p": 1}}]), 1)
    stop = plan_of(kind).steps_per_epoch + 1
    batches, expected = (list(loader(plan_of(kind), made=how, stop=stop)) for how in (made, threaded))
    for batch, plain in zip(batches, expected, strict=True):
        assert same(batch[1:], plain[1:])
    assert all(map(same, loader(plan_of(kind), made=made, start=2, stop=stop), batches[2:]))
    rows = [row for batch in batches[:-1] for row in zip(batch.indices.tolist(), batch.images, strict=True)]
    shown = {(index, image.numpy().tobytes()) for index, image in rows}
    assert len(shown) > len({index for index, _ in rows}) + 2, "an image that comes again looks otherwise"
