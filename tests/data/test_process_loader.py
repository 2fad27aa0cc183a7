import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from functools import lru_cache

import numpy as np
import pytest
import torch

from facelab.data.albumentation import Albumentations
from facelab.data.plan import Plan
from facelab.data.process_loader import ProcessLoader
from facelab.data.synthetic import SyntheticFaces
from facelab.data.torch_loader import TrainLoader

LIST = [{"GaussNoise": {"p": 0.5}}, {"OneOf": {"transforms": ["ToGray", "InvertImg", "Blur"], "p": 0.7}}]


class Numbered:
    """A source whose image i is filled with i, and in which an image may be broken or end its process."""

    identity_names = ("Anna", "Boris")

    def __init__(self, broken=None, deadly=None, size=8):
        self.size, self.broken, self.deadly = size, broken, deadly
        self.labels = np.arange(60, dtype=np.int64) % 2

    def __len__(self):
        return 60

    def load(self, index, out=None):
        if index == self.broken:
            raise OSError("disk on fire")
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.full((self.size, self.size, 3), index, np.uint8)


class Together(Numbered):
    """Gives its even images many at a time."""

    def load_plain(self, indices, target):
        target[:] = (indices * (1 - indices % 2)).astype(np.uint8)[:, None, None, None]
        return np.flatnonzero(indices % 2).tolist()


def settings(**changes):
    subset = np.arange(5, 55)
    known = {"source": Numbered(), "subset": subset, "labels": subset * 10, "plan": Plan(50, 8, seed=3), "seed": 7}
    known |= {"draws": 3, "start": 0, "stop": 9, "rank": 0, "world": 1, "prefetch": 3, "pin": False}
    return {**known, **changes}


def make(processes=2, transforms=LIST, **changes):
    return ProcessLoader(Albumentations(transforms), processes, **settings(**changes))


@lru_cache(None)
def usual():
    return list(make())


def same(first, second):
    return all(torch.equal(*tensors) for tensors in zip(first, second, strict=True))


def test_all_but_the_pixels_is_the_thread_loaders():
    plain = list(TrainLoader(threads=2, **settings()))
    assert len(usual()) == len(plain) == len(make()) == 9  # an epoch and a half
    for batch, expected in zip(usual(), plain, strict=True):
        assert same(batch[1:], expected[1:])
        assert batch.images.shape == expected.images.shape
        assert batch.images.dtype == torch.uint8
        assert not torch.equal(batch.images, expected.images)


def test_a_source_that_gives_many_images_at_a_time_gives_the_same():
    assert all(same(*pair) for pair in zip(make(source=Together()), usual(), strict=True))
    loaders = [TrainLoader(threads=2, **settings(source=source)) for source in (Numbered(), Together())]
    assert all(same(*pair) for pair in zip(*loaders, strict=True))


def test_each_image_is_augmented_by_seed_epoch_and_index_alone():
    images = {}
    for step, batch in enumerate(usual()):
        for index, image in zip(batch.indices.tolist(), batch.images, strict=True):
            images[step // 6, index] = image
    other_order = [make(plan=Plan(50, 5, seed=1), stop=12), make(plan=Plan(50, 10, seed=8), start=2, stop=6)]
    for loader in other_order:
        for step, batch in enumerate(loader, start=loader.start):
            for index, image in zip(batch.indices.tolist(), batch.images, strict=True):
                known = images.get((loader.plan.epoch(step), index))
                assert known is None or torch.equal(known, image)
    again = [index for epoch, index in images if epoch == 1 and (0, index) in images]
    assert len(again) > 10
    assert sum(torch.equal(images[0, index], images[1, index]) for index in again) < len(again) / 2, "another epoch"


@pytest.mark.parametrize(("processes", "prefetch"), [(1, 1), (3, 5)])
def test_processes_and_prefetch_change_nothing(processes, prefetch):
    batches = list(make(processes, prefetch=prefetch))
    assert all(same(*pair) for pair in zip(batches, usual(), strict=True))


@pytest.mark.parametrize("start", [4, 6, 9])
def test_position_is_absolute(start):
    assert all(same(*pair) for pair in zip(make(start=start), usual()[start:], strict=True))


def test_the_slices_of_all_ranks_are_the_global_batch():
    ranks = [list(make(1, rank=rank, world=2, stop=3)) for rank in range(2)]
    for batch, *slices in zip(usual()[:3], *ranks, strict=True):
        assert same(batch, [torch.cat(tensors) for tensors in zip(*slices, strict=True)])


_others: set = set()  # that were there before the test, of other tests


@pytest.fixture(autouse=True)
def _only_own():
    _others.update(multiprocessing.active_children())


def children():
    """The loader's processes."""
    return [process for process in multiprocessing.active_children() if process not in _others]


def none_left(seconds=10):
    """Whether all processes are gone; a killed one takes a moment."""
    deadline = time.monotonic() + seconds
    while children() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not children()


def test_processes_end_when_exhausted_closed_or_dropped():
    list(make(stop=1))
    assert children() == []
    iterator = iter(make())
    assert children() == [], "they start with the first batch that is asked for"
    next(iterator)
    assert len(children()) == 2
    iterator.close()
    assert children() == []
    for _ in make():
        break
    gc.collect()
    assert children() == []


def test_an_image_that_cannot_be_loaded_is_named():
    with pytest.raises(ValueError, match=r"^image 17 \(identity 'Boris'\) cannot be loaded: disk on fire$"):
        list(make(source=Numbered(broken=17)))
    assert none_left()


def test_an_image_that_cannot_be_augmented_is_named():
    shrinks = [{"CenterCrop": {"height": 4, "width": 4, "p": 1}}]
    with pytest.raises(ValueError, match=r"^image \d+ \(identity '(Anna|Boris)'\): data.albumentations makes shape"):
        list(make(transforms=shrinks))
    assert none_left()


def test_a_process_that_dies_is_no_reason_to_wait_forever():
    with pytest.raises(ValueError, match=r"ended unasked \(exit code -9\): where memory is short, lower data.loader"):
        list(make(source=Numbered(deadly=17)))
    assert none_left()


def test_signals_to_all_processes_are_the_training_process_affair():
    iterator = iter(make())
    batches = [next(iterator)]
    for process in children():
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGTERM)
    batches += list(iterator)
    assert all(same(*pair) for pair in zip(batches, usual(), strict=True))


SCRIPT = """
import sys, multiprocessing
sys.path.insert(0, {folder!r})
from test_process_loader import make
if __name__ == "__main__":
    iterator = iter(make(stop=1000))
    next(iterator)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    if {waits}:
        sys.stdin.read()
"""


@pytest.mark.parametrize("ending", ["in the middle", "killed"])
def test_no_process_outlives_the_training_process(tmp_path, ending):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=os.path.dirname(__file__), waits=ending == "killed"))
    with subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        pids = [int(word) for word in run.stdout.readline().split()]
        assert len(pids) == 2
        if ending == "killed":
            run.kill()
        run.communicate(timeout=60)
    assert run.returncode == (-signal.SIGKILL if ending == "killed" else 0)
    deadline = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, pids))


def alive(pid):
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize("processes", [0, "2", 1.0, True])
def test_a_number_of_processes_that_is_none_is_refused(processes):
    with pytest.raises(ValueError, match="processes is"):
        make(processes)


def test_what_the_thread_loader_refuses_is_refused():
    with pytest.raises(ValueError, match="3 ranks cannot share"):
        make(world=3)


def test_a_source_that_cannot_be_sent_is_named():
    source = Numbered()
    source.load = lambda index, out=None: None
    with pytest.raises(ValueError, match="Numbered cannot be sent to another process"):
        list(make(source=source))
    assert none_left()


def test_rendered_faces_travel_without_their_pixels():
    faces = SyntheticFaces(20, 10, 112, 3, 1, 5)
    sent = pickle.dumps(faces)
    assert len(sent) < 1000
    again = pickle.loads(sent)
    assert np.array_equal(again.labels, faces.labels)
    assert np.array_equal(again.load(3), faces.load(3))
