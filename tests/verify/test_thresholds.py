"""Thresholds are those of the evaluation's own scores, of this model, and state no rate that its pairs cannot."""

import hashlib
import json

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from recognising import recogniser

from facelab.benchmark.operating_points import Det, det, tars_at_fars
from facelab.benchmark.scores import CountedResult, PairResult, save_scores
from facelab.verify.thresholds import Point, Thresholds, beside, of_evaluation, of_model
from facelab.verify.verification import store

MODEL = b"a network"
SHA = hashlib.sha256(MODEL).hexdigest()


def record(folder, genuine, impostor, *, sha=SHA, name="lfw", **stamp):
    """What evaluate leaves of a pair benchmark; scores are cosines."""
    scores = 2 * np.concatenate([genuine, impostor]) - 2  # minus squared distances
    same = np.arange(len(scores)) < len(genuine)
    told = {"score": "minus squared L2 distance", "mirror": True, "impostor": len(impostor), **stamp}
    result = PairResult(name, {}, scores, same, same * 0, told, det(scores[same], scores[~same]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"checkpoint_sha256": sha}))
    save_scores(folder / "scores" / f"{name}.npz", result) if (folder / "scores").is_dir() else (
        (folder / "scores").mkdir(), save_scores(folder / "scores" / f"{name}.npz", result)
    )  # fmt: skip
    return folder


def drawn(seed=0, genuine=300, impostor=2000):
    rng = np.random.default_rng(seed)
    return rng.normal(0.6, 0.15, genuine).clip(-1, 1), rng.normal(0.05, 0.1, impostor).clip(-1, 1)


def test_each_rate_is_kept_on_the_scores_themselves(tmp_path):
    genuine, impostor = drawn()
    found = of_evaluation(str(record(tmp_path / "r", genuine, impostor)), {SHA: "model"}, True)
    assert [point.fmr for point in found.points][-1] == 5e-4  # 1 of 2,000
    assert (found.benchmark, found.impostors, found.model) == ("lfw", 2000, SHA)
    exact = tars_at_fars(genuine, impostor, [point.fmr for point in found.points], "at_most")
    for point, best in zip(found.points, exact, strict=True):
        assert (impostor >= point.threshold).mean() <= point.fmr
        assert point.fnmr == pytest.approx((genuine < point.threshold).mean(), abs=1e-12)
        assert 1 - point.fnmr >= best.tar - 0.02  # the curve's points are close together
    with pytest.raises(ValueError, match=r"fmr=0\.0001: lfw has 2,000 impostor pairs; .* 5e-4 is the lowest"):
        found.at(1e-4)


def test_a_counted_protocol_gives_cosines_as_they_are(tmp_path):
    curve = Det(np.array([0.9, 0.5, 0.3, -0.2]), np.array([0.0, 1e-6, 1e-3, 1.0]), np.array([0.4, 0.1, 0.01, 0.0]))
    kept = {f"det_{key}": values for key, values in curve._asdict().items()}
    stamp = {"score": "cosine similarity", "mirror": False, "impostor": 10_000_000}
    (tmp_path / "scores").mkdir()
    save_scores(tmp_path / "scores" / "frvt.npz", CountedResult("frvt", {"a": 1.0}, kept, stamp, "a"))
    (tmp_path / "config.yaml").write_text(f"checkpoint_sha256: {SHA}")
    found = of_evaluation(str(tmp_path / "scores" / "frvt.npz"), {SHA: "model"}, False)
    assert found.at(1e-3) == Point(1e-3, 0.3, 0.01)
    assert found.at(9e-4) == Point(5e-4, 0.5, 0.1)
    assert found.at(1e-6) == Point(1e-6, 0.5, 0.1)
    assert found.at(2e-7).threshold == 0.9  # at most 2 of ten million: none of them


@given(st.floats(1e-7, 0.5))
def test_the_point_is_the_largest_that_is_not_above(fmr):
    points = tuple(Point(rate, -rate, 0.0) for rate in (0.1, 0.01, 0.001))
    thresholds = Thresholds("x", 1000, True, SHA, {}, points)
    below = [rate for rate in (0.1, 0.01, 0.001) if rate <= fmr]
    if below:
        assert thresholds.at(fmr).fmr == below[0]
    else:
        with pytest.raises(ValueError, match="ask for a higher rate"):
            thresholds.at(fmr)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha": "0" * 64}, r"evaluated 000000000000…, which is not .*model\.onnx"),
        ({"mirror": False}, "made with mirror=false, and the model works with mirror=true"),
        ({"quality": "α=0.1"}, "there are none"),
        ({"score": "logits"}, "there are none"),
    ],
)
def test_an_evaluation_of_something_else_is_refused(tmp_path, change, message):
    folder = record(tmp_path / "r", *drawn(), **change)
    with pytest.raises(ValueError, match=message):
        recogniser(tmp_path).measured(str(folder))
    with pytest.raises(FileNotFoundError, match="has no scores"):
        recogniser(tmp_path).measured(str(tmp_path))


def test_of_several_score_files_one_is_named(tmp_path):
    folder = record(tmp_path / "r", *drawn())
    record(folder, *drawn(1), name="cfp")
    with pytest.raises(ValueError, match=r"there are .*cfp\.npz, .*lfw\.npz: name it"):
        recogniser(tmp_path).measured(str(folder))
    assert recogniser(tmp_path).measured(str(folder / "scores" / "cfp.npz")).benchmark == "cfp"


def test_the_evaluation_of_what_was_exported_counts(tmp_path):
    folder = record(tmp_path / "r", *drawn(), sha="f" * 64)
    assert recogniser(tmp_path, checkpoint_sha256="f" * 64).measured(str(folder)).model == "f" * 64


def test_stored_beside_the_model_and_read_again(tmp_path, capsys):
    model = recogniser(tmp_path)
    assert model.thresholds is None
    with pytest.raises(ValueError, match=r"has no thresholds with it: evaluation=RECORD .* fmr=null"):
        model.point(1e-3)
    stored = store(model, str(record(tmp_path / "r", *drawn())))
    assert "FMR 5e-1 … 5e-4, of 2,000 impostor pairs" in capsys.readouterr().out
    assert recogniser(tmp_path).thresholds == stored
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.thresholds.json", "r"]
    inside = json.dumps(json.loads(beside(model.path).read_text()))
    beside(model.path).write_text("{}")
    with pytest.raises(ValueError, match="holds no thresholds as facelab writes them"):
        _ = recogniser(tmp_path).thresholds
    beside(model.path).unlink()
    assert recogniser(tmp_path, thresholds=inside).thresholds == stored  # of a file that has them in it


def test_a_runs_best_checkpoint_takes_those_of_its_run(tmp_path):
    run = record(tmp_path / "run", *drawn(0, 300, 1000), name="heldout")
    record(run, *drawn(1), name="lfw")
    (run / "checkpoints").mkdir()
    for name in ("best.ckpt", "last.ckpt"):
        (run / "checkpoints" / name).write_bytes(MODEL)
    assert of_model(run / "checkpoints" / "best.ckpt", {}) is None  # it is not finished
    (run / "metrics.json").write_text("{}")
    assert of_model(run / "checkpoints" / "best.ckpt", {}).benchmark == "lfw"  # it has more pairs
    assert of_model(run / "checkpoints" / "last.ckpt", {}) is None
