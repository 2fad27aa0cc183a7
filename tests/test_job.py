"""What a job does beside its task."""

import gc

import pytest

from facelab.job import without_collection


def test_garbage_is_collected_again_after_the_imports():
    with without_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), without_collection():
        import facelab.no_such_module  # noqa: F401
    assert gc.isenabled()


def test_who_collects_none_goes_on_so():
    gc.disable()
    try:
        with without_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
