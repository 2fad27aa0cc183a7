"""The pair protocol against golden numbers of public code, and what it says when something is wrong."""

import math
from pathlib import Path

import numpy as np
import pytest

from facelab.benchmark.operating_points import fold_accuracy
from facelab.benchmark.pair_files import FacePairs, PairSet, contiguous_folds
from facelab.benchmark.pairs import PairBenchmark, short, squared_distances

SETTINGS = {
    "name": None, "path": None, "pairs": None, "folds": 10, "mirror": True, "far": [1e-3, 1e-4], "far_rule": "at_most",
    "size": 112, "count": 100, "seed": 0, "groups": {"beta": 0.0, "gamma": 1 / 3},
    "quality": {"alpha": 0.0, "beta": 0.0},
}  # fmt: skip
GOLDEN = Path(__file__).parents[1] / "golden" / "protocols_pairs.npz"


def benchmark(**changes):
    return PairBenchmark(**{**SETTINGS, **changes})


def pair_set(count, same, images=None, pairs=None, folds=10):
    same = np.asarray(same, bool)
    pairs = np.arange(2 * count).reshape(count, 2) if pairs is None else pairs
    return PairSet("set", images or 2 * count, None, pairs, same, contiguous_folds(count, folds), 112, "set.bin", "d")


@pytest.fixture(scope="module")
def golden():
    """`emb_raw` is kept as float16 (the file stays small); every golden number below is the same for it."""
    with np.load(GOLDEN, allow_pickle=False) as file:
        return {key.removeprefix("pairs/"): file[key] for key in file.files}


def test_fold_accuracies_and_thresholds_are_those_of_the_public_scripts(golden):
    made = pair_set(600, golden["issame"])
    for scale in (1, 1e-3, 7.7):  # raw embeddings: the protocol normalises
        distance = squared_distances(golden["emb_raw"].astype(np.float64) * scale, made)
        accuracy, threshold = fold_accuracy(distance, made.same, made.fold)
        assert accuracy.tolist() == golden["insightface_fold_acc"].tolist()
        assert accuracy.tolist() == golden["adaface_fold_acc"].tolist()
        assert threshold.tolist() == golden["adaface_best_thr_sqL2"].tolist()


def test_result_on_the_golden_embeddings(golden):
    made = pair_set(600, golden["issame"])
    result = benchmark().evaluate(golden["emb_raw"].astype(np.float32), made)
    assert result.metrics["set/accuracy"] == np.mean(golden["insightface_fold_acc"])
    assert result.metrics["set/accuracy_std"] == np.std(golden["insightface_fold_acc"])
    # 300 impostors cannot show 1e-3: the public figure, interpolated per fold, comes with a measured FAR of 1/300
    assert golden["insightface_far"] > 1e-3
    key = "set/tar@far=1e-3"
    assert result.notes == {key: "zero false accepts, N=300", "set/tar@far=1e-4": "zero false accepts, N=300"}
    genuine, impostor = result.scores[made.same], result.scores[~made.same]
    assert result.metrics[key] == (genuine > impostor.max()).mean()
    assert set(result.metrics) == {
        f"set/{k}" for k in ("accuracy", "accuracy_std", "eer", "auc", "tar@far=1e-3", "tar@far=1e-4")
    }
    assert all(type(value) is float for value in result.metrics.values())


def test_scores_are_minus_the_squared_distance_of_unit_vectors():
    rng = np.random.default_rng(0)
    made = pair_set(700, rng.random(700) < 0.5, 90, rng.integers(0, 90, (700, 2)))
    embeddings = rng.normal(size=(90, 33)).astype(np.float32) * 50
    scores = benchmark().evaluate(embeddings, made).scores
    for (a, b), score in zip(made.pairs, scores, strict=True):
        cosine = np.dot(embeddings[a], embeddings[b].astype(float)) / math.prod(
            np.linalg.norm(embeddings[i].astype(float)) for i in (a, b)
        )
        assert score == pytest.approx(2 * cosine - 2, abs=1e-6)


def test_a_target_that_can_be_measured_carries_no_note():
    rng = np.random.default_rng(0)
    made = pair_set(400, np.tile([True, False], 200))
    result = benchmark(far=[0.01, 0.004]).evaluate(rng.normal(size=(800, 8)), made)
    assert set(result.notes) == {"set/tar@far=4e-3"}
    nearest = benchmark(far=[0.01, 0.004], far_rule="nearest").evaluate(rng.normal(size=(800, 8)), made)
    assert nearest.notes == {}
    assert nearest.stamp["far_rule"] == "nearest"


def test_the_stamp_tells_the_protocol():
    result = benchmark(mirror=False).evaluate(np.eye(8)[np.arange(40) % 8], pair_set(20, np.arange(20) % 3 == 0))
    assert result.stamp == {
        "protocol": "pairs-10fold", "mirror": False, "score": "minus squared L2 distance",
        "distance": "squared L2 on unit sums", "thresholds": "0:4:0.01", "folds": 10, "pairs": 20, "genuine": 7,
        "impostor": 13, "far_rule": "at_most", "size": 112, "color": "rgb", "source": "set.bin sha256:d",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "value", "message"),
    [
        ([3, 9], np.nan, "2 of 40 embeddings are not finite, the first is that of image 3"),
        ([7], np.inf, "1 of 40 embeddings are not finite, the first is that of image 7"),
        ([5, 6, 39], 0, "3 of 40 embeddings are zero, the first is that of image 5"),
    ],
)
def test_embeddings_that_cannot_be_scored(rows, value, message):
    embeddings = np.ones((40, 4), np.float32)
    embeddings[rows] = value
    with pytest.raises(ValueError, match=message):
        benchmark().evaluate(embeddings, pair_set(20, np.arange(20) % 2))


@pytest.mark.parametrize("shape", [(39, 4), (40,), (40, 2, 2)])
def test_embeddings_of_another_shape(shape):
    with pytest.raises(ValueError, match="for 40 images"):
        benchmark().evaluate(np.ones(shape), pair_set(20, np.arange(20) % 2))


@pytest.mark.parametrize("same", [np.ones(20), np.zeros(20)])
def test_a_set_of_one_kind_is_refused(same):
    with pytest.raises(ValueError, match="both kinds are needed"):
        pair_set(20, same)


def test_more_folds_than_pairs():
    with pytest.raises(ValueError, match="none may be empty"):
        benchmark().evaluate(np.ones((40, 2)), pair_set(20, np.arange(20) % 2, folds=10).__class__(
            "set", 40, None, np.arange(40).reshape(20, 2), np.arange(20) % 2 == 0, np.where(np.arange(20) > 9, 2, 0),
            112, "s", "d",
        ))  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 1}, "folds=1"),
        ({"size": 0}, "size=0"),
        ({"far_rule": "closest"}, "far_rule"),
        ({"far": [2]}, "far=2"),
        ({"pairs": "pairs.txt"}, "belongs to a folder"),
        ({"pairs": "pairs.txt", "path": "lfw.bin"}, "belongs to a folder"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        benchmark(**changes)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "heldout"),
        ({"path": "a/agedb_30.bin"}, "agedb_30"),
        ({"path": "a/lfw"}, "lfw"),
        ({"path": "a/lfw/images", "pairs": "a/lfw/pairs.txt"}, "lfw"),
        ({"path": "a/lfw/images", "pairs": "a/lfw/pairsDevTest.txt"}, "pairsDevTest"),
        ({"path": "a/lfw/images", "name": "mine"}, "mine"),
    ],
)
def test_names(changes, name):
    assert benchmark(**changes).name == name


def test_open_draws_from_held_out_faces_and_takes_a_ready_set(tmp_path):
    class Held:
        labels = np.repeat(np.arange(30), 5)

        def load(self, i, out=None):
            return np.full((112, 112, 3), i, np.uint8)

    made = benchmark().open(Held())
    assert made.name == "heldout"
    assert (len(made.pairs), made.folds, made.same.sum()) == (100, 10, 50)
    labels = [Held.labels[made.load(i)[0, 0, 0]] for i in range(len(made))]
    np.testing.assert_array_equal([labels[a] == labels[b] for a, b in made.pairs], made.same)
    assert benchmark().open(made) is made
    assert benchmark().open(FacePairs(Held.labels, Held().load)).digest == made.digest


def test_open_without_what_it_needs(tmp_path):
    with pytest.raises(ValueError, match="path is null"):
        benchmark().open(None)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.bin"):
        benchmark(path="nowhere.bin").open(None)
    with pytest.raises(FileNotFoundError, match=r"pairs\.txt: no such list"):
        benchmark(path=str(tmp_path)).open(None)
    (tmp_path / "lfw.rec").touch()
    with pytest.raises(ValueError, match=r"neither a \.bin nor a folder"):
        benchmark(path=str(tmp_path / "lfw.rec")).open(None)


@pytest.mark.parametrize(
    ("far", "text"), [(1e-3, "1e-3"), (0.0001, "1e-4"), (2.5e-4, "2.5e-4"), (0.1, "1e-1"), (1e-10, "1e-10"), (1, "1e0")]
)
def test_rates_are_written_as_in_papers(far, text):
    assert short(far) == text


def test_group_aware_similarity():
    """GroupFace: S* = cos(v̄_i, v̄_j) − β·D(v̂_i, v̂_j)^γ; a score is 2·S* − 2, as without groups."""
    rng = np.random.default_rng(0)
    vectors, groups = rng.normal(size=(2, 40, 8))
    made = pair_set(20, np.arange(20) % 2)
    result = benchmark(groups={"beta": 0.1, "gamma": 1 / 3}).evaluate(vectors, made, groups)
    for (i, j), score in zip(made.pairs, result.scores, strict=True):
        cosine = vectors[i] @ vectors[j] / math.sqrt(vectors[i] @ vectors[i] * (vectors[j] @ vectors[j]))
        apart = groups[i] / math.dist(groups[i], [0] * 8) - groups[j] / math.dist(groups[j], [0] * 8)
        similarity = cosine - 0.1 * math.sqrt(apart @ apart) ** (1 / 3)
        assert score == pytest.approx(2 * similarity - 2, abs=1e-12)
    plain = benchmark().evaluate(vectors, made)
    assert "groups" not in plain.stamp
    assert result.stamp["groups"] == "0.1·D^0.333333 of unit vectors"
    alike = benchmark(groups={"beta": 0.1, "gamma": 1 / 3}).evaluate(vectors, made, np.ones((40, 8)))
    np.testing.assert_array_equal(alike.scores, plain.scores)  # one group for all changes nothing


@pytest.mark.parametrize("mirror", [True, False])
def test_quality_aware_similarity(mirror):
    """QMagFace: s + q·min(0, β·s − α), q the shorter length; of an image and its mirrored copy, of their mean."""
    vectors = np.random.default_rng(0).normal(size=(40, 8)) * np.arange(1, 41)[:, None]
    made, given = pair_set(20, np.arange(20) % 2), {"alpha": 0.05, "beta": 0.2}
    result = benchmark(quality=given, mirror=mirror).evaluate(vectors, made)
    for (i, j), score in zip(made.pairs, result.scores, strict=True):
        one, other = (math.sqrt(vectors[k] @ vectors[k]) for k in (i, j))
        cosine = vectors[i] @ vectors[j] / (one * other)
        quality = min(one, other) / (2 if mirror else 1)
        assert score == pytest.approx(2 * (cosine + quality * min(0, 0.2 * cosine - 0.05)) - 2, abs=1e-12)
    plain = benchmark(mirror=mirror).evaluate(vectors, made)
    assert "quality" not in plain.stamp
    assert result.stamp["quality"] == "cosine + min(0, 0.2·cosine − 0.05)·min length"
    assert np.abs(plain.scores - result.scores).max() > 0.1


def test_groups_that_cannot_be_compared():
    made = pair_set(20, np.arange(20) % 2)
    with pytest.raises(ValueError, match=r"groups\.beta is 0\.1, and this network has no groups"):
        benchmark(groups={"beta": 0.1, "gamma": 1 / 3}).evaluate(np.eye(40), made)
    for groups in ({"beta": -0.1, "gamma": 1 / 3}, {"beta": 0.1, "gamma": 0.0}, {"beta": math.nan, "gamma": 1.0}):
        with pytest.raises(ValueError, match=r"benchmark\.groups has beta"):
            benchmark(groups=groups)
