"""YouTube Faces in its authors' layout: means of frames, then the pair protocol; and sets measured together."""

import numpy as np
import pytest
from layouts import ijb, ytf
from test_ijb import PLAIN as IJB
from test_operating_points import slow_fold_accuracy

from facelab.benchmark.ijb import IJBBenchmark
from facelab.benchmark.pair_files import PairSet
from facelab.benchmark.pairs import PairBenchmark
from facelab.benchmark.scores import compare_stamps, load_scores, save_all
from facelab.benchmark.suite import Suite
from facelab.benchmark.ytf import YouTubeFaces

PLAIN = {
    "name": "ytf", "frames": "aligned_images_DB", "most": None, "mirror": True, "norm": True, "folds": 3, "far": [0.1],
    "far_rule": "at_most", "size": 16, "crop": {"keep": 1.0, "shape": "stretch", "alignment": "none"},
    "known": {"pairs": 12},
}  # fmt: skip


def benchmark(root, **changes):
    return YouTubeFaces(**{**PLAIN, "path": None if root is None else str(root), **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return ytf(tmp_path_factory.mktemp("ytf"))


def test_a_video_is_the_mean_of_its_frames(made):
    bench = benchmark(made.root)
    opened = bench.open(None)
    assert [file.name for file in opened.files if file.parts[-3:-1] == ("Some_a", "0")] == made.frames["Some_a/0"]
    vectors = np.random.default_rng(0).normal(size=(len(opened), 6)).astype(np.float32) * 4
    result = bench.evaluate(vectors, opened)

    def mean(video):
        rows = vectors[[file.parts[-3] + "/" + file.parts[-2] == video for file in opened.files]].astype(float)
        return rows.mean(axis=0) / np.linalg.norm(rows.mean(axis=0))

    distance = np.array([np.square(mean(one) - mean(other)).sum() for _, one, other, _ in made.rows])
    np.testing.assert_allclose(-result.scores, distance, atol=1e-6)
    fold, same = (np.array([row[k] for row in made.rows]) for k in (0, 3))
    assert result.metrics["ytf/accuracy"] == np.mean(slow_fold_accuracy(distance, same, fold)[0])
    assert {"ytf/accuracy_std", "ytf/tar@far=1e-1", "ytf/auc"} <= set(result.metrics)
    other = benchmark(made.root, norm=False)
    assert compare_stamps(result.stamp, other.evaluate(vectors, opened).stamp) == ["norm"]
    assert result.stamp["protocol"] == "videos-10fold"


def test_perfect_videos_are_told_apart(made):
    bench = benchmark(made.root)
    opened = bench.open(None)
    people = [ord(file.parts[-3][-1]) - ord("a") for file in opened.files]
    assert bench.evaluate(np.eye(4, dtype=np.float32)[people], opened).metrics["ytf/accuracy"] == 1


def test_frames_are_taken_evenly(made):
    opened = benchmark(made.root, most=2).open(None)
    for video in {video for row in made.rows for video in row[1:3]}:
        names = made.frames[video]
        taken = [file.name for file in opened.files if "/".join(file.parts[-3:-1]) == video]
        assert taken == ([names[0], names[-1]] if len(names) > 1 else names)
    assert opened.load(0).shape == (16, 16, 3)
    assert (
        "at most 2"
        in benchmark(made.root, most=2).evaluate(np.eye(len(opened), 30, dtype=np.float32) + 1, opened).stamp["frames"]
    )


def test_what_is_missing_is_told_at_once(made, tmp_path):
    assert benchmark(made.root).check() == []
    assert benchmark(made.root, known={"pairs": 5000}).check() == [
        f"{made.root}/splits.txt: 12 pairs, published are 5,000"
    ]
    with pytest.raises(FileNotFoundError, match=r"splits\.txt is missing; .*aligned_images_DB is missing"):
        benchmark(tmp_path).open(None)
    root = tmp_path / "b"
    some = ytf(root)
    gone = sorted({row[1] for row in some.rows})[:2]
    for video in gone:
        for name in some.frames[video]:
            (root / "aligned_images_DB" / video / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"2 of \d+ videos have no frame there: .*{gone[0]}"):
        benchmark(root).open(None)
    assert len(benchmark(root).check()) == 1
    with pytest.raises(ValueError, match=r"path is null: give the folder that holds splits.txt"):
        benchmark(None).open(None)


@pytest.mark.parametrize(
    ("edit", "line"),
    [(lambda t: t + "1, 5, Some_a/0, Some_b/0, 0\n", "its folds have 5, 4, 4 pairs; all need as many"),
     (lambda t: t + "4, 1, Some_a/0, Some_b/0, 0\n", r"has 4 folds, benchmark\.folds=3"),
     (lambda t: t + "0, 1, Some_a/0, Some_b/0, 0\n", "folds"),
     (lambda t: t + "1, Some_a/0, Some_b/0, 0\n", "line 14: .* is not fold, number, video, video, 1 or 0"),
     (lambda t: t.splitlines()[0], "has 0 folds")],
)  # fmt: skip
def test_a_list_that_cannot_be_read_is_refused(tmp_path, edit, line):
    made = ytf(tmp_path)
    file = made.root / "splits.txt"
    file.write_text(edit(file.read_text()))
    with pytest.raises(ValueError, match=line):
        benchmark(made.root).open(None)


def test_a_frame_that_says_nothing_is_named(made):
    bench = benchmark(made.root)
    opened = bench.open(None)
    vectors = np.ones((len(opened), 3), np.float32)
    vectors[2] = np.nan
    with pytest.raises(
        ValueError, match=rf"ytf: 1 of {len(opened)} embeddings are not finite, .*{opened.files[2].name}"
    ):
        bench.evaluate(vectors, opened)


# Sets together


@pytest.fixture(scope="module")
def suite(made, tmp_path_factory):
    root = tmp_path_factory.mktemp("suite")
    return Suite("both", None, True, {
        "video": benchmark(made.root), "none": None,
        "ijbc": IJBBenchmark(**{**IJB, "path": str(ijb(root / "IJBC").root)}),
    })  # fmt: skip


def test_each_set_of_a_suite_is_measured_by_itself(suite, tmp_path):
    opened = suite.open(None)
    videos, templates = opened.opened
    assert len(opened) == len(videos) + len(templates)
    for at, of, index in ((0, videos, 0), (len(videos) - 1, videos, len(videos) - 1), (len(videos), templates, 0)):
        assert np.array_equal(opened.load(at), of.load(index))
    assert opened.load(len(opened) - 1).shape == (16, 16, 3)
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(len(opened), 6)).astype(np.float32)
    result = suite.evaluate(vectors, opened)
    alone = [one.evaluate(part, of) for one, part, of in zip(
        suite.sets.values(), np.split(vectors, [len(videos)]), opened.opened, strict=True)]  # fmt: skip
    assert result.all_metrics() == {**alone[0].metrics, **alone[1].metrics}
    assert result.headline == result.metrics["ytf/accuracy"]
    assert [path.name for path in save_all(tmp_path, result)] == ["ytf.npz", "ijbc.npz"]
    assert load_scores(tmp_path / "ytf.npz").stamp == alone[0].stamp
    with pytest.raises(ValueError, match="both: 3 embeddings for"):
        suite.evaluate(vectors[:3], opened)
    assert opened.about == f"ytf: {videos.about}; ijbc: {templates.about}"


def test_results_of_several_parts_lie_flat_in_a_suite(made):
    class Low(YouTubeFaces):
        def evaluate(self, embeddings, images):
            first, second = (super(Low, self).evaluate(embeddings, images) for _ in range(2))
            from dataclasses import replace

            return replace(first, parts=(replace(second, name="ytf_low"),))

    low = Low(**{**PLAIN, "path": str(made.root)})
    suite = Suite("twice", None, True, {"a": low, "b": benchmark(made.root, name="other")})
    opened = suite.open(None)
    result = suite.evaluate(np.random.default_rng(0).normal(size=(len(opened), 5)).astype(np.float32), opened)
    assert [one.name for one in (result, *result.parts)] == ["ytf", "ytf_low", "other"]


def test_a_suite_that_cannot_be_measured_is_refused(made, tmp_path):
    with pytest.raises(ValueError, match="sets is empty"):
        Suite("s", None, True, {})
    with pytest.raises(ValueError, match="two sets of the name ytf"):
        Suite("s", None, True, {"a": benchmark(made.root), "b": benchmark(made.root)})
    with pytest.raises(ValueError, match="mirror is true, and of b it is not"):
        Suite("s", None, True, {"b": benchmark(made.root, mirror=False)})
    plain = {"pairs": None, "folds": 2, "mirror": True, "far": [0.1], "far_rule": "at_most", "size": 8, "count": 4,
             "seed": 0, "groups": {"beta": 0.0, "gamma": 1.0},
             "quality": {"alpha": 0.0, "beta": 0.0}}  # fmt: skip
    beside = PairBenchmark("lfw", "None/lfw.bin", **plain)
    with pytest.raises(ValueError, match=r"benchmark\.root is null, and so nobody knows where lfw, video lie"):
        Suite("s", None, True, {"lfw": beside, "video": benchmark(None)}).open(None)
    lost = Suite("s", None, True, {
        "lfw": PairBenchmark("lfw", str(tmp_path / "lfw.bin"), **plain), "video": benchmark(tmp_path / "ytf"),
    })  # fmt: skip
    with pytest.raises(FileNotFoundError, match=r"lfw\.bin: no such file .*splits\.txt is missing"):
        lost.open(None)
    assert len(lost.check()) == 3
    assert isinstance(benchmark(made.root).open(None).videos, PairSet)
