"""Records become runs; what is empty, half-written, unfinished or of something else is named and left out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from fake_runs import HISTORY, draw_pairs, make_run, make_sweep, pair_result

from facelab.benchmark.classification import NamedResult
from facelab.benchmark.scores import CountedResult, load_scores, save_scores
from facelab.compare.reading import Unreadable, read, read_run
from facelab.training.record import COLUMNS


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("read")
    return make_sweep(folder, {"arcface": 0.5, "cosface": 0.45}, seeds=(1, 2), sets=[draw_pairs(pairs=200, people=60)])


def test_the_fake_history_has_the_columns_of_training():
    assert tuple(HISTORY.split(",")) == COLUMNS


def test_runs_are_found_in_a_sweep_above_it_and_alone(sweep):
    names = [run.job for run in read([sweep]).runs]
    assert len(names) == 4
    assert "loss=cosface,seed=2" in names
    assert [run.job for run in read([sweep.parent]).runs] == names
    assert [run.job for run in read([sweep / names[1], sweep / names[1]]).runs] == [names[1]]
    assert len(read([sweep, sweep / names[0]]).runs) == 4


def test_a_run_is_what_its_files_say(sweep):
    run = read_run(sweep / "loss=cosface,seed=2")
    stored = load_scores(run.path / "scores" / "lfw.npz")
    assert (run.sweep, run.job, run.seed, run.finished) == ("losses", "loss=cosface,seed=2", 2, True)
    assert run.config["loss._target_"] == "facelab.loss.cosface.CosFace"
    assert run.config["trainer.batch_size"] == 64
    scores = run.scores["lfw"]
    assert (scores.kind, scores.main, scores.error) == ("pairs", "lfw/accuracy", False)
    assert scores.metrics == stored.metrics
    assert scores.stamp == stored.stamp
    trials = scores.trials
    assert np.average(trials.value, weights=trials.weight) == pytest.approx(run.metrics["lfw/accuracy"], abs=1e-6)
    np.testing.assert_array_equal(np.stack([trials.one, trials.other], axis=1), stored.people)
    np.testing.assert_array_equal(trials.stratum, stored.same)
    assert trials.unit == "subjects"
    images, accuracy = run.curve("val/accuracy")
    assert len(images) == len(accuracy) == 5
    assert (np.diff(images) > 0).all()
    assert run.cost.device == "NVIDIA H100"
    assert run.cost.device_hours == pytest.approx(64 / 3600)
    assert run.cost.peak_memory == 2**30


def test_what_runs_share_is_there_once(sweep):
    one, other, *_ = read([sweep]).runs
    for name in ("one", "other", "weight", "stratum"):
        assert getattr(one.scores["lfw"].trials, name) is getattr(other.scores["lfw"].trials, name)


def test_folds_of_unequal_size_count_alike(tmp_path):
    pairs = draw_pairs(pairs=200, people=60, folds=4)
    uneven = type(pairs)(**{**vars(pairs), "fold": np.repeat([0, 1, 2, 3], [20, 40, 60, 80])})
    run = read_run(make_run(tmp_path, {}, sets=[uneven], skill=0.3))
    trials = run.scores["lfw"].trials
    assert np.average(trials.value, weights=trials.weight) == pytest.approx(run.metrics["lfw/accuracy"], abs=1e-6)


def test_older_records_have_pairs_and_no_people(tmp_path):
    trials = read_run(make_run(tmp_path, {}, sets=[draw_pairs(pairs=100)], people=False)).scores["lfw"].trials
    assert trials.unit == "pairs"
    assert (trials.one == trials.other).all()
    assert len(np.unique(trials.one)) == 100


def damaged(sweep, folder, change):
    shutil.copytree(sweep / "loss=cosface,seed=2", folder / "bad")
    shutil.copytree(sweep / "loss=arcface,seed=1", folder / "good")
    change(folder / "bad")
    return read([folder])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda bad: (bad / "config.yaml").unlink(), "no config.yaml"),
        (lambda bad: (bad / "config.yaml").write_text("a: [1"), "config.yaml cannot be read"),
        (lambda bad: (bad / "config.yaml").write_text(""), "config.yaml is empty"),
        (lambda bad: (bad / "config.yaml").write_text("checkpoint: x\nstudy: {}"), "neither a training nor an"),
        (lambda bad: (bad / "metrics.json").write_text('{"lfw/acc'), "metrics.json cannot be read"),
        (lambda bad: (bad / "environment.json").write_text("[]"), "environment.json is empty"),
        (lambda bad: (bad / "scores" / "lfw.npz").write_bytes(b"PK\x03\x04 half"), "lfw.npz is no score file"),
    ],
)
def test_a_half_written_run_is_left_out_with_the_reason(sweep, tmp_path, change, why):
    found = damaged(sweep, tmp_path, change)
    assert [run.path.name for run in found.runs] == ["good"]
    ((path, reason),) = found.unread
    assert path.name == "bad"
    assert why in reason


def test_unfinished_runs_keep_their_history(sweep, tmp_path):
    make_run(tmp_path, {"loss": "cosface"}, seed=5, finished=False)
    shutil.copytree(sweep / "loss=arcface,seed=1", tmp_path / "losses" / "good")
    (tmp_path / "losses" / "nothing").mkdir()
    found = read([tmp_path / "losses"])
    assert [run.seed for run in found.unfinished] == [5]
    assert found.unfinished[0].history["images"][-1] == 32_000
    assert [(path.name, why) for path, why in found.unread] == [("nothing", "it is empty")]


def test_nothing_to_read_is_said_in_a_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read([tmp_path / "none"])
    with pytest.raises(FileNotFoundError, match="no run directory in it"):
        read([tmp_path])
    make_run(tmp_path, {}, finished=False)
    with pytest.raises(ValueError, match=r"no finished run .*unfinished.*goes on"):
        read([tmp_path / "losses"])


def evaluation(root, run, pairs, checkpoint="best.ckpt", skill=0.4):
    """The record of `facelab.evaluate` on another set."""
    trained = yaml.safe_load((run / "config.yaml").read_text())
    folder = root / "evaluations" / f"{run.name}_{Path(checkpoint).stem}_{pairs.name}"
    folder.mkdir(parents=True)
    config = {"checkpoint": str(run / "checkpoints" / checkpoint), "ema": None, "benchmark": {"path": "x"}}
    config["trained"] = {"step": 10, "config": trained}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    result = pair_result(pairs, skill, np.random.default_rng(0))
    save_scores(folder / "scores" / f"{pairs.name}.npz", result)
    (folder / "metrics.json").write_text(json.dumps({**result.metrics, "images_per_s": 5.0, "parameters": 3}))
    return folder


def test_a_later_evaluation_belongs_to_its_run(sweep, tmp_path):
    calfw, run = draw_pairs("calfw", pairs=100), sweep / "loss=cosface,seed=2"
    evaluation(tmp_path, run, calfw)
    evaluation(tmp_path, run, draw_pairs("lfw", pairs=200, people=60))
    evaluation(tmp_path, run, calfw, "last.ckpt")
    found = {run.path: run for run in read([sweep, tmp_path / "evaluations"]).runs}
    assert len(found) == 5
    joined = found[run]
    assert list(joined.scores) == ["lfw", "calfw"]
    assert joined.metrics["lfw/accuracy"] == read_run(run).metrics["lfw/accuracy"]  # as the run itself reported
    assert joined.metrics["calfw/accuracy"] > 0.8
    assert joined.metrics["images_per_s"] == 1000.0
    alone = read([tmp_path / "evaluations"]).runs
    assert sorted(map(len, (run.scores for run in alone))) == [1, 2]
    assert {run.seed for run in alone} == {2}
    assert all(np.isnan(run.cost.images_per_s) for run in alone)


def stored(tmp_path, result):
    run = make_run(tmp_path, {}, sets=[draw_pairs(pairs=100)])
    shutil.rmtree(run / "scores")
    save_scores(run / "scores" / "x.npz", result)
    return read_run(run).scores["x"]


def test_counts_of_people_are_their_trials(tmp_path):
    errors, trials = np.array([[0, 1], [2, 3], [0, 0], [1, 1]]), np.array([2, 4, 0, 1])
    metrics = {"x/fnmr@1e-2": 3 / 7, "x/fnmr@1e-3": 5 / 7}
    kept = {"subject_errors": errors, "subject_trials": trials, "det_fmr": np.ones(2), "det_fnmr": np.zeros(2)}
    found = stored(tmp_path, CountedResult("x", metrics, kept, {"protocol": "p"}, "x/fnmr@1e-3", error=True))
    assert (found.kind, found.error, found.main) == ("counted", True, "x/fnmr@1e-3")
    assert found.trials.value == pytest.approx([1 / 2, 3 / 4, 1])
    assert found.trials.weight.tolist() == [2, 4, 1]
    assert found.trials.one.tolist() == [0, 1, 3]
    assert found.det_fmr.tolist() == [1, 1]


def test_searches_are_of_their_people(tmp_path):
    kept = {"rank": np.array([1, 2, 1, 9]), "identity": np.array([4, 4, 7, 7]), "cmc": np.array([0.5, 0.75])}
    found = stored(tmp_path, CountedResult("x", {"x/rank1": 0.5}, kept, {}, "x/rank1"))
    assert found.trials.value.tolist() == [1, 0, 1, 0]
    assert found.trials.one.tolist() == found.trials.other.tolist() == [4, 4, 7, 7]
    assert found.cmc.tolist() == [0.5, 0.75]


def test_a_protocol_without_summaries_has_seeds_alone(tmp_path):
    assert stored(tmp_path, CountedResult("x", {"x/y": 0.5}, {}, {}, "x/y")).trials is None


def test_a_classification_has_images(tmp_path):
    truth, named = np.array([0, 1, 1]), np.array([[0, 1], [0, 1], [1, 0]])
    metrics = {"x/top1": 2 / 3, "x/top1_low": 0.1, "x/top2": 1.0}
    found = stored(tmp_path, NamedResult("x", metrics, truth, named, np.ones((3, 2)), ["a", "b"], {}, {}))
    assert (found.kind, found.main) == ("named", "x/top1")
    assert found.trials.value.tolist() == [1, 0, 1]
    assert found.trials.unit == "images"


def test_one_run_alone_says_why_it_cannot_be_read(tmp_path):
    (tmp_path / "config.yaml").write_text("other: 1")
    with pytest.raises(Unreadable, match="neither"):
        read_run(tmp_path)
