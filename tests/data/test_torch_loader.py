import gc
import threading
import time

import numpy as np
import pytest
import torch

from facelab.data.plan import Plan, uniforms
from facelab.data.torch_loader import EvalLoader, TrainLoader


class Numbered:
    """A source whose image i is filled with i."""

    identity_names = ("Anna", "Boris")

    def __init__(self, count=60, size=4):
        self.size, self.count = size, count
        self.labels = np.arange(count, dtype=np.int64) % 2
        self.loaded = []

    def __len__(self):
        return self.count

    def load(self, index, out=None):
        self.loaded.append(index)
        return np.full((self.size, self.size, 3), index, np.uint8)


def make(source=None, **changes):
    source = source or Numbered()
    subset = np.arange(5, 55)
    settings = {
        "source": source,
        "subset": subset,
        "labels": subset * 10,
        "plan": Plan(50, 8, seed=3),
        "seed": 7,
        "draws": 3,
        "start": 0,
        "stop": 14,
        "rank": 0,
        "world": 1,
        "threads": 2,
        "prefetch": 2,
        "pin": False,
    }
    return TrainLoader(**{**settings, **changes})


def same(first, second):
    return all(torch.equal(*tensors) for tensors in zip(first, second, strict=True))


def test_batches_follow_the_plan():
    plan = Plan(50, 8, seed=3)
    batches = list(make())
    assert len(batches) == len(make()) == 14  # more than two epochs of 6 steps
    for step, batch in enumerate(batches):
        indices = plan.indices(step) + 5
        assert batch.images.shape == (8, 4, 4, 3)
        assert batch.images.dtype == torch.uint8
        assert (batch.images == torch.from_numpy(indices)[:, None, None, None]).all()
        assert batch.indices.tolist() == indices.tolist()
        assert batch.labels.tolist() == (indices * 10).tolist()
        assert batch.labels.dtype == torch.int64
        assert np.array_equal(batch.draws.numpy(), uniforms(7, step // 6, indices, 3))


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 1), (3, 2), (20, 30)])
def test_threads_and_prefetch_change_nothing(threads, prefetch):
    batches = list(make(threads=threads, prefetch=prefetch))
    assert all(same(*pair) for pair in zip(batches, make(threads=2), strict=True))


@pytest.mark.parametrize("start", [1, 5, 6, 13, 14])
def test_position_is_absolute(start):
    assert all(same(*pair) for pair in zip(make(start=start), list(make())[start:], strict=True))


@pytest.mark.parametrize("world", [2, 4, 8])
def test_the_slices_of_all_ranks_are_the_global_batch(world):
    ranks = [list(make(rank=rank, world=world)) for rank in range(world)]
    for batch, *slices in zip(make(), *ranks, strict=True):
        joined = [torch.cat(tensors) for tensors in zip(*slices, strict=True)]
        assert same(batch, joined)


def test_a_loader_can_be_gone_through_again_and_several_times_at_once():
    loader = make()
    assert all(same(*pair) for pair in zip(loader, loader, strict=True))


def test_batches_that_are_kept_stay_as_they_were():
    batches = list(make(stop=60, prefetch=1))
    views = [batch.images[2:, 1:].permute(0, 3, 1, 2) for batch in batches]
    wanted = [batch.indices[2:].clone() for batch in batches]
    del batches
    gc.collect()
    list(make(stop=60))
    loader = iter(make(stop=60))
    kept = [next(loader).images[0] for _ in range(60)]  # views alone keep their memory
    for view, indices in zip(views, wanted, strict=True):
        assert (view == indices[:, None, None, None]).all()
    assert [int(image[0, 0, 0]) for image in kept] == [int(batch.indices[0]) for batch in make(stop=60)]


def test_memory_of_dropped_batches_is_used_again():
    addresses = {batch.images.data_ptr() for batch in make(stop=200, prefetch=2)}
    assert len(addresses) <= 5  # two ahead, one being started, one with the consumer, one just dropped


def test_prefetch_batches_are_decoded_ahead_and_no_more():
    source = Numbered()
    iterator = iter(make(source, prefetch=3, threads=1))
    assert source.loaded == []
    next(iterator)
    deadline = time.monotonic() + 5
    while len(source.loaded) < 4 * 8 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert len(source.loaded) == 4 * 8
    iterator.close()


def test_threads_end_when_exhausted_closed_or_dropped():
    before = threading.active_count()
    list(make())
    assert threading.active_count() == before
    iterator = iter(make())
    next(iterator)
    assert threading.active_count() > before
    iterator.close()
    assert threading.active_count() == before
    for _ in make():
        break
    gc.collect()
    assert threading.active_count() == before


def test_an_error_while_decoding_names_the_image_and_ends_the_threads():
    class Broken(Numbered):
        def load(self, index, out=None):
            if index == 17:
                raise OSError("disk on fire")
            return super().load(index)

    before = threading.active_count()
    with pytest.raises(ValueError, match=r"image 17 \(identity 'Boris'\) cannot be loaded: disk on fire") as caught:
        list(make(Broken()))
    assert isinstance(caught.value.__cause__, OSError)
    assert threading.active_count() == before


@pytest.mark.parametrize("shape", [(5, 5, 3), (4, 4), (4, 4, 1)])
def test_an_image_of_another_shape_is_named(shape):
    class Mixed(Numbered):
        identity_names = None

        def load(self, index, out=None):
            return np.zeros(shape, np.uint8) if index == 17 else super().load(index)

    with pytest.raises(ValueError, match=r"image 17 \(identity 1\) has shape"):
        list(make(Mixed()))


def test_batches_before_a_broken_one_still_arrive():
    class Broken(Numbered):
        def load(self, index, out=None):
            if index == bad:
                raise OSError("disk on fire")
            return super().load(index)

    bad = int(Plan(50, 8, seed=3).indices(4)[0]) + 5
    iterator = iter(make(Broken(), prefetch=8))
    assert all(same(next(iterator), batch) for batch in list(make(stop=4)))
    with pytest.raises(ValueError, match=f"image {bad} "):
        next(iterator)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world": 3}, "3 ranks cannot share"),
        ({"rank": 2, "world": 2}, "rank is 2 of 2"),
        ({"threads": 0}, "threads is 0"),
        ({"prefetch": 0}, "prefetch is 0"),
        ({"start": 5, "stop": 4}, "start is 5 and stop 4"),
        ({"start": -1}, "start is -1"),
        ({"subset": np.arange(49)}, "plan covers 50 images, but 49 images have 50 labels"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


class Pairs:
    """Images of a benchmark: neither labels nor names."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def load(self, index, out=None):
        if index == 23:
            raise OSError("disk on fire")
        return np.full((3, 5, 3), index, np.uint8)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("count", [0, 1, 8, 21])
def test_evaluation_covers_every_image_once(count, world):
    seen = []
    for rank in range(world):
        loader = EvalLoader(Pairs(count), batch_size=4, rank=rank, world=world, threads=2, prefetch=2, pin=False)
        batches = list(loader)
        assert len(batches) == len(loader)
        own = torch.cat([batch.indices for batch in batches]).tolist() if batches else []
        assert own == list(range(rank, count, world))
        for batch in batches:
            assert (batch.images == batch.indices[:, None, None, None]).all()
            assert batch.images.shape == (len(batch.indices), 3, 5, 3)
            assert batch.labels.tolist() == [-1] * len(batch.indices)
            assert batch.draws.shape == (len(batch.indices), 0)
        seen += own
    assert sorted(seen) == list(range(count))


def test_evaluation_names_an_unreadable_image():
    with pytest.raises(ValueError, match="image 23 cannot be loaded: disk on fire"):
        list(EvalLoader(Pairs(30), batch_size=4, rank=0, world=1, threads=2, prefetch=2, pin=False))
    with pytest.raises(ValueError, match="image 23 cannot be loaded: disk on fire"):
        list(EvalLoader(Pairs(30), batch_size=4, rank=23, world=24, threads=2, prefetch=2, pin=False))
    with pytest.raises(ValueError, match="batch_size is 0"):
        EvalLoader(Pairs(30), batch_size=0, rank=0, world=1, threads=2, prefetch=2, pin=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_batches_are_the_same():
    for pinned, plain in zip(make(pin=True), make(), strict=True):
        assert pinned.images.is_pinned()
        assert same(pinned, plain)
