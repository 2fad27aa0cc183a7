"""A score file holds the whole result, is written whole or not at all, and runs nothing when read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from facelab.benchmark.operating_points import Det
from facelab.benchmark.scores import PairResult, compare_stamps, load_scores, save_scores


def result():
    rng = np.random.default_rng(0)
    return PairResult(
        name="lfw",
        metrics={"lfw/accuracy": 0.1 + 0.2, "lfw/tar@far=1e-3": 0.5},
        scores=-rng.random(40) * 4,
        same=rng.random(40) < 0.5,
        fold=np.repeat(np.arange(4), 10),
        stamp={"protocol": "pairs-10fold", "mirror": True, "folds": 4},
        det=Det(np.array([1.0, 0.5]), np.array([0.0, 1.0]), np.array([1.0, 0.0])),
        notes={"lfw/tar@far=1e-3": "zero false accepts, N=3,000"},
    )


def test_round_trip(tmp_path):
    before = result()
    after = load_scores(save_scores(tmp_path / "scores" / "lfw.npz", before))
    for key in ("name", "metrics", "stamp", "notes"):
        assert getattr(after, key) == getattr(before, key)
    for key in ("scores", "same", "fold"):
        np.testing.assert_array_equal(getattr(after, key), getattr(before, key), strict=True)
    for one, other in zip(after.det, before.det, strict=True):
        np.testing.assert_array_equal(one, other)
    assert [file.name for file in (tmp_path / "scores").iterdir()] == ["lfw.npz"]


def test_whose_the_pairs_are_is_kept_where_it_is_known(tmp_path):
    assert load_scores(save_scores(tmp_path / "none.npz", result())).people is None
    people = np.arange(80).reshape(40, 2)
    after = load_scores(save_scores(tmp_path / "some.npz", replace(result(), people=people, people_from="names")))
    np.testing.assert_array_equal(after.people, people)
    assert after.people_from == "names"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = save_scores(tmp_path / "lfw.npz", result())
    old = path.read_bytes()

    def interrupted(file, **arrays):
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_scores(path, result())
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_foreign_and_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="evaluate the benchmark first"):
        load_scores(tmp_path / "none.npz")
    path = save_scores(tmp_path / "lfw.npz", result())
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a facelab score file"):
            load_scores(path)
    np.savez(path, scores=np.zeros(3))
    with pytest.raises(ValueError, match="not a facelab score file"):
        load_scores(path)
    np.savez(path, name="x", stamp=np.array([{}], dtype=object))  # a pickle inside
    with pytest.raises(ValueError, match="allow_pickle"):
        load_scores(path)


def test_stamps_are_compared_key_by_key():
    stamp = result().stamp
    assert compare_stamps(stamp, dict(stamp)) == []
    assert compare_stamps(stamp, {**stamp, "mirror": False, "size": 112}) == ["mirror", "size"]
    assert compare_stamps({"a": None}, {}) == ["a"]
