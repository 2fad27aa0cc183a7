"""Pairs at several resolutions: which image is compared with which, under which key and stamp."""

import numpy as np
import pytest
import torch
from PIL import Image

from facelab.benchmark.low_resolution import LowResolutionBenchmark
from facelab.benchmark.pair_files import PairSet, contiguous_folds
from facelab.benchmark.pairs import PairBenchmark
from facelab.benchmark.scores import compare_stamps, load_scores, save_all
from facelab.data.degrade import LowResolution
from facelab.data.plan import uniforms
from facelab.data.synthetic import render
from facelab.resampling import down_and_up, resample_image

SIDE, M = 32, 9
PLAIN = {
    "name": "set", "path": None, "pairs": None, "folds": 2, "mirror": True, "far": [0.1], "far_rule": "at_most",
    "size": SIDE, "count": 10, "seed": 0, "groups": {"beta": 0.0, "gamma": 0.5},
    "quality": {"alpha": 0.0, "beta": 0.0},
}  # fmt: skip
LOW = {**PLAIN, "resolutions": ["1x", "4x", 12], "sides": ["both"], "kernel": "bicubic", "enlarge": "bicubic"}


def benchmark(**changes):
    return LowResolutionBenchmark(**{**LOW, **changes})


@pytest.fixture(scope="module")
def faces():
    return np.stack([render(0, person, 1, SIDE, 1.0) for person in range(M)])


@pytest.fixture(scope="module")
def base(faces):
    pairs = np.random.default_rng(0).integers(0, M, (40, 2))
    same, fold = np.tile([True, False], 20), contiguous_folds(40, 2)
    return PairSet("set", M, lambda i, out=None: faces[i], pairs, same, fold, SIDE, "set.bin", "d")


def embeddings(opened):
    """Of each image its own pixels, as a network that sees everything."""
    return np.stack([opened.load(i).ravel() for i in range(len(opened))]).astype(np.float32)


def squeeze(face, size, kernel="bicubic"):
    """An image shrunk and enlarged again."""
    ((down,), (up,)) = down_and_up(SIDE, [size], kernel, "bicubic")
    return resample_image(resample_image(face, down), up)


def test_images_come_once_for_each_resolution(base, faces):
    opened = benchmark().open(base)
    assert opened.sizes == (32, 8, 12)
    assert len(opened) == 3 * M
    for i in range(M):
        assert np.array_equal(opened.load(i), faces[i])
        assert np.array_equal(opened.load(i + M), squeeze(faces[i], 8))
        assert np.array_equal(opened.load(i + 2 * M), squeeze(faces[i], 12))
    expected = Image.fromarray(faces[0]).resize((8, 8), Image.Resampling.BICUBIC).resize((SIDE, SIDE), 3)
    assert np.abs(opened.load(M).astype(int) - np.asarray(expected)).mean() < 0.6


def test_its_images_are_those_that_training_sees(base, faces):
    trained = LowResolution(1.0, [8], "area", "bilinear", False)(
        torch.from_numpy(faces), torch.from_numpy(uniforms(0, 0, np.arange(M), 2))
    )
    opened = benchmark(resolutions=[8], kernel="area", enlarge="bilinear").open(base)
    assert opened.sizes == (8,)
    assert np.array_equal(trained.numpy(), np.stack([opened.load(i) for i in range(M)]))


def test_both_images_or_the_second_one_are_degraded(base, faces):
    made = benchmark(sides=["both", "one"])
    opened = made.open(base)
    result = made.evaluate(embeddings(opened), opened)
    results = {one.name: one for one in (result, *result.parts)}
    assert list(results) == ["set", "set_8px", "set_8px_one", "set_12px", "set_12px_one"]

    def unit(face):
        return face.ravel() / np.linalg.norm(face.ravel().astype(float))

    for name, size, first_is_low in (("set_8px", 8, True), ("set_8px_one", 8, False), ("set_12px_one", 12, False)):
        for (a, b), score in zip(base.pairs, results[name].scores, strict=True):
            first, second = squeeze(faces[a], size) if first_is_low else faces[a], squeeze(faces[b], size)
            assert score == pytest.approx(-np.square(unit(first) - unit(second)).sum(), abs=1e-6)


def test_full_resolution_is_the_plain_protocol(base):
    made = benchmark()
    opened = made.open(base)
    result = made.evaluate(embeddings(opened), opened)
    plain = PairBenchmark(**PLAIN)
    expected = plain.evaluate(embeddings(base), base)
    assert result.metrics == expected.metrics
    assert compare_stamps(result.stamp, expected.stamp) == []
    assert np.array_equal(result.scores, expected.scores)
    # What chooses a run's checkpoint was not opened by this benchmark.
    assert made.evaluate(embeddings(base), base).metrics == expected.metrics


def test_keys_and_stamps_say_size_kernel_and_sides(base):
    def stamps(**changes):
        made = benchmark(**changes)
        opened = made.open(base)
        result = made.evaluate(embeddings(opened), opened)
        return {one.name: one.stamp for one in (result, *result.parts)}, result.all_metrics()

    found, metrics = stamps(sides=["both", "one"])
    assert {f"{name}/accuracy" for name in found} <= set(metrics)
    low = {"degraded": "both", "degraded_size": 8, "kernel": "bicubic", "enlarge": "bicubic"}
    assert compare_stamps(found["set"], found["set_8px"]) == sorted(low)
    assert low.items() <= found["set_8px"].items()
    assert compare_stamps(found["set_8px"], found["set_8px_one"]) == ["degraded"]
    assert compare_stamps(found["set_8px"], found["set_12px"]) == ["degraded_size"]
    assert compare_stamps(found["set_8px"], stamps(kernel="area")[0]["set_8px"]) == ["kernel"]
    assert compare_stamps(found["set_8px"], stamps(enlarge="nearest")[0]["set_8px"]) == ["enlarge"]
    assert compare_stamps(found["set_8px"], stamps(resolutions=[8])[0]["set_8px"]) == []


def test_each_result_has_a_file_of_its_own(base, tmp_path):
    made = benchmark()
    opened = made.open(base)
    result = made.evaluate(embeddings(opened), opened)
    assert [path.name for path in save_all(tmp_path, result)] == ["set.npz", "set_8px.npz", "set_12px.npz"]
    read = load_scores(tmp_path / "set_8px.npz")
    assert read.stamp == result.parts[0].stamp
    assert set(read.metrics) == {key for key in result.all_metrics() if key.startswith("set_8px/")}
    assert set(result.all_notes()) == set().union(*(one.notes for one in (result, *result.parts)))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"resolutions": []}, r"^benchmark\.resolutions is empty: give sizes in pixels or parts"),
        ({"resolutions": [14, 33]}, r"^benchmark\.resolutions has 33, but images have 32 .* give sizes up to 32$"),
        ({"resolutions": ["3x"]}, r"resolutions has 3x, but 32 pixels are no multiple of 3: .* in pixels, as 11$"),
        ({"resolutions": ["half"]}, r"resolutions has 'half': give pixels \(14\) or parts of the image's side \(8x\)$"),
        ({"resolutions": [0]}, r"resolutions has 0: give pixels"),
        ({"resolutions": [True]}, r"resolutions has True: give pixels"),
        ({"sides": []}, r"^benchmark\.sides is \[\]: give \[both\], \[one\] or \[both,one\]$"),
        ({"sides": ["left"]}, r"^benchmark\.sides is \['left'\]"),
        ({"kernel": "lanczos"}, r"^benchmark\.kernel is 'lanczos': give one of bicubic, bilinear, area, nearest$"),
        ({"enlarge": "area"}, r"^benchmark\.enlarge is 'area': give one of bicubic, bilinear, nearest$"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        benchmark(**changes)


def test_a_resolution_that_is_named_twice_counts_once():
    assert benchmark(resolutions=["4x", 8, "1x", 32]).resolutions == (8, 32)
    assert benchmark(resolutions="4x", sides="one").resolutions == (8,)


def test_groups_are_compared_at_every_resolution(base):
    made = benchmark(groups={"beta": 0.2, "gamma": 0.5})
    opened = made.open(base)
    rng = np.random.default_rng(1)
    vectors, groups = rng.normal(size=(2, len(opened), 4))
    result, plain = made.evaluate(vectors, opened, groups), benchmark().evaluate(vectors, opened)
    for with_groups, without in zip((result, *result.parts), (plain, *plain.parts), strict=True):
        other = without.scores < 0  # an image is paired with itself somewhere
        assert other.sum() > 30
        assert bool((with_groups.scores[other] < without.scores[other]).all())
