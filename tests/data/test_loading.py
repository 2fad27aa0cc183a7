"""What conf/data/loader chooses between, without DALI being there."""

import sys

import numpy as np
import pytest

from facelab.data import loading
from facelab.data.albumentation import Albumentations
from facelab.data.dali_loader import DaliLoader
from facelab.data.loading import Dali, Torch
from facelab.data.plan import Plan
from facelab.data.process_loader import ProcessLoader
from facelab.data.synthetic import SyntheticFaces
from facelab.data.torch_loader import TrainLoader


def what(**changes):
    faces = SyntheticFaces(4, 3, 32, 1, 1, 0)
    known = {"source": faces, "subset": np.arange(12), "labels": faces.labels, "plan": Plan(12, 4, 0), "seed": 0}
    return {**known, "draws": 2, "start": 0, "stop": 1, "rank": 0, "world": 1, "pin": False, **changes}


@pytest.fixture
def _no_dali(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)


@pytest.fixture
def _dali(monkeypatch):
    for module in (loading, sys.modules["facelab.data.dali_loader"]):
        monkeypatch.setattr(module, "check_installed", lambda: None)


def test_threads_or_with_albumentations_processes():
    way = Torch(threads=3, prefetch=5, processes=7)
    made = way.training(None, **what())
    assert type(made) is TrainLoader
    assert (made.threads, made.prefetch) == (3, 5)
    made = way.training(Albumentations(["ToGray"]), **what())
    assert type(made) is ProcessLoader
    assert (made.threads, made.prefetch) == (7, 5)


@pytest.mark.usefixtures("_dali")
def test_an_evaluation_covers_every_image_once_whatever_trains():
    faces = SyntheticFaces(4, 3, 32, 1, 1, 0)
    for way in (Torch(2, 3, 1), Dali(2, 3)):
        ranks = [way.evaluation(faces, batch_size=4, rank=rank, world=2, pin=False) for rank in range(2)]
        assert [(loader.threads, loader.prefetch) for loader in ranks] == [(2, 3)] * 2
        seen = [index for loader in ranks for batch in loader for index in batch.indices.tolist()]
        assert sorted(seen) == list(range(12))


@pytest.mark.usefixtures("_no_dali")
def test_where_dali_is_not_installed_it_is_told_how():
    with pytest.raises(
        ValueError, match=r"needs NVIDIA's DALI.*pip install 'facelab\[dali\]'.*data.loader=torch"
    ) as caught:
        Dali(threads=2, prefetch=4)
    assert caught.value.__cause__ is None, "the door tells the last cause"
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"pip install 'facelab\[dali\]'"):
        DaliLoader(threads=1, prefetch=1, **what())


@pytest.mark.usefixtures("_dali")
def test_what_dali_has_nothing_to_do_with_is_refused():
    with pytest.raises(ValueError, match=r"decodes image files, and SyntheticFaces has none: leave data\.loader=torch"):
        Dali(threads=2, prefetch=4).training(None, **what())
    with pytest.raises(ValueError, match=r"data\.albumentations changes them before"):
        Dali(threads=2, prefetch=4).training(Albumentations(["ToGray"]), **what())
