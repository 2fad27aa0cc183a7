"""A file is complete, or it is not there."""

import os
import stat

import numpy as np
import pytest

from facelab.atomic import atomic


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "made" / "too" / "a.txt"
    with atomic(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["a.txt"]


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write():
        with atomic(path) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("crash", ["fsync", "replace"])
def test_a_crash_after_writing_leaves_the_old_file(tmp_path, monkeypatch, crash):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, crash, fail)
    with pytest.raises(OSError, match="disk full"), atomic(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (events.append(stat.S_IFMT(os.fstat(handle).st_mode)), fsync(handle))
    )
    monkeypatch.setattr(os, "replace", lambda *names: (events.append("rename"), replace(*names)))
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert events == [stat.S_IFREG, "rename", stat.S_IFDIR]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_others_may_read_it_as_the_umask_allows(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic(tmp_path / "a.txt") as temporary:
            temporary.write_text("new")
        assert os.umask(umask) == umask  # and the umask itself is left alone
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~umask


def test_writers_that_look_at_the_suffix_are_content(tmp_path):
    with atomic(str(tmp_path / "scores.npz")) as temporary:
        np.savez(temporary, a=np.arange(3))
    assert os.listdir(tmp_path) == ["scores.npz"]
    assert np.load(tmp_path / "scores.npz")["a"].tolist() == [0, 1, 2]
