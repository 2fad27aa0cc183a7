"""A disk that fills up while a run writes its numbers: one line says which file, and none is left half-written."""

import errno
import json

import pytest
from full_disk import room_for
from killing import compose

from facelab.atomic import atomic
from facelab.training import fit
from facelab.training.record import History, RunDirectory, read_history


def test_a_row_is_there_as_a_whole_or_not_at_all(tmp_path):
    history = History(tmp_path / "metrics.csv", -1, -1)
    history.write({"step": 1, "images": 16, "train/loss": 0.123456})
    before = history.path.read_bytes()
    with room_for(len(before) + 5), pytest.raises(OSError, match=r"metrics\.csv cannot be written \(.*free some space"):
        history.write({"step": 2, "images": 32, "train/loss": 0.123456})
    assert history.path.read_bytes() == before
    history.write({"step": 3, "images": 48})
    history.close()
    assert [row["step"] for row in read_history(history.path)] == ["1", "3"]


def test_a_whole_file_is_named_and_keeps_what_it_was(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with room_for(10), pytest.raises(OSError, match="File too large") as caught, atomic(path) as temporary:
        temporary.write_text("x" * 1000)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]


def test_a_run_whose_last_numbers_found_no_room_is_finished_by_the_next_start(tmp_path, monkeypatch):
    config, plain = compose("trainer.max_steps=3", "trainer.validate_every=9")
    finish = RunDirectory.finish

    def full(self, metrics):
        with room_for(20):
            finish(self, metrics)

    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "finish", full)
        with pytest.raises(OSError, match="File too large") as caught:
            fit.train(config, plain, tmp_path / "run", one_process=False)
    assert caught.value.filename == str(tmp_path / "run" / "metrics.json")
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert list((tmp_path / "run").rglob(".unfinished-*")) == []
    rows = (tmp_path / "run" / "metrics.csv").read_bytes()
    metrics = fit.train(config, plain, tmp_path / "run", one_process=False)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == rows
