"""A file is complete, or it is not there."""

import os
import stat

import numpy as np
import pytest

from facelab.atomic import atomic, atomic_folder, forget_leftover, held, unfinished


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


def test_a_folder_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "made" / "set"
    unfinished(path).mkdir(parents=True)
    (unfinished(path) / "content").mkdir()
    (unfinished(path) / "content" / "half.txt").write_text("of one that was killed")
    with atomic_folder(path) as temporary:
        (temporary / "a.txt").write_text("new")
        assert not path.exists()
    assert os.listdir(path.parent) == ["set"]
    assert os.listdir(path) == ["a.txt"]


def test_an_exception_leaves_no_folder_and_nothing_is_written_over(tmp_path):
    def write():
        with atomic_folder(tmp_path / "set") as temporary:
            (temporary / "a.txt").write_text("half")
            raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"):
        write()
    assert os.listdir(tmp_path) == []
    (tmp_path / "set").mkdir()
    with atomic_folder(tmp_path / "set") as temporary:  # an empty folder is nobody's work
        (temporary / "a.txt").write_text("first")
    with pytest.raises(FileExistsError, match="is there already"), atomic_folder(tmp_path / "set"):
        pass
    assert (tmp_path / "set" / "a.txt").read_text() == "first"


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path):
    refused = pytest.raises(ValueError, match="another process is at work there")
    with held(tmp_path / "hidden"), refused, held(tmp_path / "hidden"):
        pass
    with held(tmp_path / "hidden"):  # the first has ended
        pass


def test_where_there_are_no_locks_work_goes_on(tmp_path, monkeypatch):
    def refuse(handle, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("facelab.atomic.fcntl.flock", refuse)
    with atomic_folder(tmp_path / "set") as temporary:
        (temporary / "a.txt").write_text("new")
    assert os.listdir(tmp_path) == ["set"]


def test_what_a_kill_left_beside_a_finished_folder_goes(tmp_path):
    path, left = tmp_path / "set", unfinished(tmp_path / "set")
    left.mkdir()
    forget_leftover(path)
    assert left.is_dir(), "nothing is finished: somebody may go on there"
    path.mkdir()
    (path / "a").touch()
    with held(left):
        forget_leftover(path)
        assert left.is_dir(), "somebody is at work there"
    with pytest.raises(FileExistsError), atomic_folder(path):
        pass
    assert os.listdir(tmp_path) == ["set"]
