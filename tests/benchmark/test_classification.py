import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facelab.benchmark.classification import LabelledImages, TopK, load_named, wilson
from facelab.benchmark.scores import compare_stamps, load_scores, save_all
from facelab.resampling import down_and_up, resample_image


def images(truth, classes=7, size=16):
    pixels = np.random.default_rng(0).integers(0, 256, (len(truth), size, size, 3), dtype=np.uint8)
    names = [f"a/{i}.png" for i in range(len(truth))]
    return LabelledImages(
        np.array(truth), [f"c{i}" for i in range(classes)], names, lambda i, out=None: pixels[i], "val"
    )


def benchmark(**changed):
    options = {"name": None, "top": [1, 5], "mirror": False, "size": 16, "resolutions": ["1x"]}
    return TopK(**{**options, "kernel": "bicubic", "enlarge": "bicubic", **changed})


@given(st.integers(1, 12), st.integers(2, 9), st.integers(0, 2**32 - 1))
def test_top_k_is_that_of_a_plain_count(count, classes, seed):
    rng = np.random.default_rng(seed)
    truth, order = rng.integers(0, classes, count), rng.permuted(np.tile(np.arange(classes), (count, 1)), axis=1)
    k = min(5, classes)
    result = benchmark(top=[1, 2, 5]).evaluate(
        (order[:, :k], np.zeros((count, k), np.float32)), benchmark().open(images(truth, classes))
    )
    for top in (1, 2, 5):
        right = sum(int(truth[i]) in [int(c) for c in order[i][:top]] for i in range(count))
        assert result.metrics[f"heldout/top{top}"] == right / count
        assert result.metrics[f"heldout/top{top}_low"] <= right / count <= result.metrics[f"heldout/top{top}_high"]
    assert result.headline == result.metrics["heldout/top1"]


def test_wilsons_interval():
    # Where Wilson's inequality (p − share)² = z²·p·(1 − p)/n holds with equality; and published values.
    for hits, count in ((3, 10), (90, 100), (1, 40)):
        for bound in wilson(hits, count):
            assert (bound - hits / count) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / count, rel=1e-5)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe, 1998, table I
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
    assert wilson(20, 20)[1] == 1.0


def test_of_equal_headlines_the_better_ranks_choose():
    own = benchmark().select(images([0, 1]))
    good = benchmark().evaluate((np.array([[0, 1], [2, 1]]), np.ones((2, 2))), own)
    poor = benchmark().evaluate((np.array([[0, 1], [2, 3]]), np.ones((2, 2))), own)
    assert good.headline == poor.headline == 0.5
    assert good.choosing > poor.choosing
    assert good.choosing < 0.5 + 1 / 1000  # never more than an image
    assert "val/top1" in good.metrics


def test_resolutions_have_names_files_and_stamps_of_their_own(tmp_path):
    bench, own = benchmark(resolutions=["1x", 4], kernel="area"), images([0, 1, 2])
    opened = bench.open(own)
    assert len(opened) == 6
    assert opened.about == "3 images of 3 classes, at 16, 4 pixels"
    down, up = down_and_up(16, (4,), "area", "bicubic")
    assert np.array_equal(opened.load(1), own.load(1))
    assert np.array_equal(opened.load(4), resample_image(resample_image(own.load(1), down[0]), up[0]))
    named = np.array([[0, 1], [1, 0], [2, 0], [0, 1], [0, 1], [0, 1]])
    result = bench.evaluate((named, np.ones((6, 2), np.float32)), opened)
    assert result.metrics["heldout/top1"] == 1
    assert result.all_metrics()["heldout_4px/top1"] == 1 / 3
    save_all(tmp_path, result)
    read, low = load_named(tmp_path / "heldout.npz"), load_named(tmp_path / "heldout_4px.npz")
    assert compare_stamps(read.stamp, low.stamp) == ["degraded_size", "enlarge", "kernel"]
    assert low.stamp["degraded_size"] == 4
    assert read.metrics == result.metrics
    assert read.notes == result.notes
    assert read.classes == list(own.classes)
    for key in ("truth", "predictions", "similarities"):
        assert np.array_equal(getattr(read, key), getattr(result, key))
    with pytest.raises(ValueError, match="not a facelab score file"):
        load_scores(tmp_path / "heldout.npz")


def test_a_stamp_knows_its_images_and_classes():
    def stamp(own, **changed):
        bench = benchmark(**changed)
        rows = len(own.truth)
        return bench.evaluate((np.zeros((rows, 1), int), np.ones((rows, 1))), bench.open(own)).stamp

    first = stamp(images([0, 1, 2]))
    assert compare_stamps(first, stamp(images([0, 1, 2]))) == []
    assert compare_stamps(first, stamp(images([0, 2, 2]))) == ["source"]
    assert compare_stamps(first, stamp(images([0, 1, 2], classes=8))) == ["classes", "source"]
    assert compare_stamps(first, stamp(images([0, 1, 2]), mirror=True)) == ["mirror"]


def test_fewer_classes_than_k_are_said():
    result = benchmark().evaluate((np.array([[0, 1, 2]]), np.ones((1, 3))), benchmark().open(images([2], classes=3)))
    assert result.metrics["heldout/top5"] == 1
    assert result.notes["heldout/top5"] == "there are 3 classes only"
    assert "95 %" in result.notes["heldout/top1"]


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"top": []}, r"benchmark\.top is \[\]"),
        ({"top": [0, 5]}, r"benchmark\.top is \[0, 5\]: give numbers of classes from 1 on"),
        ({"size": 0}, r"benchmark\.size=0"),
        ({"name": "val"}, r"benchmark\.name=val"),
        ({"resolutions": [99]}, "resolutions has 99, but images have 16 pixels"),
        ({"kernel": "cubic"}, "kernel is 'cubic'"),
    ],
)
def test_impossible_options_are_refused(changed, line):
    with pytest.raises(ValueError, match=line):
        benchmark(**changed)


def test_answers_that_cannot_be_counted_are_refused():
    opened = benchmark().open(images([0, 1]))
    with pytest.raises(ValueError, match=r"heldout: classes of shape \(1, 2\)"):
        benchmark().evaluate((np.zeros((1, 2), int), np.ones((1, 2))), opened)
    with pytest.raises(ValueError, match="1 of 2 images have similarities that are not finite, the first is image 1"):
        benchmark().evaluate((np.zeros((2, 1), int), np.array([[1.0], [np.nan]])), opened)
