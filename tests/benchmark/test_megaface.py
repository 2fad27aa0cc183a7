"""MegaFace in its pack's layout: every search and every impostor in loops, with and without the noise lists."""

import math

import numpy as np
import pytest
from layouts import megaface

from facelab.benchmark.megaface import MegaFace
from facelab.benchmark.scores import compare_stamps, load_counted, save_scores

PLAIN = {
    "name": "megaface", "lists": None, "sizes": [5, 12], "draw": 1, "noise": "replace", "mirror": True, "ranks": [1, 3],
    "far": [1e-6, 0.05], "size": 16, "crop": {"keep": 1.0, "shape": "stretch", "alignment": "none"},
    "bootstrap": 0, "seed": 0, "known": {"probes": 12, "people": 3},
}  # fmt: skip


def benchmark(root, **changes):
    return MegaFace(**{**PLAIN, "path": None if root is None else str(root), **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return megaface(tmp_path_factory.mktemp("megaface"))


def vectors(opened, seed=0, dim=4):
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(3, dim))
    probes = directions[opened.identity] + 0.7 * rng.normal(size=(12, dim))
    return np.concatenate([probes, rng.normal(size=(len(opened) - 12, dim))]).astype(np.float32)


def loops(opened, embeddings, noise):
    """All figures by definition."""
    unit = embeddings / np.linalg.norm(embeddings.astype(float), axis=1, keepdims=True)
    probes, others, who = unit[:12].copy(), unit[12:], opened.identity
    keep = np.ones(12, bool)
    if noise == "replace":
        centre = unit[:12][(who == 0) & ~opened.noisy].sum(axis=0)
        probes[1] = centre / np.linalg.norm(centre)
    if noise == "remove":
        keep[1] = False
    metrics = {}
    pairs = [(i, j) for i in range(12) for j in range(12) if i != j and who[i] == who[j] and keep[i] and keep[j]]
    for size, drawn in opened.drawn.items():
        ranks = [1 + sum(float(probes[i] @ others[d]) >= float(probes[i] @ probes[j]) for d in drawn) for i, j in pairs]
        at = "" if size == 12 else f"@distractors={size}"
        metrics |= {f"megaface/rank{k}{at}": np.mean([rank <= k for rank in ranks]) for k in (1, 3)}
    genuine = [float(probes[i] @ probes[j]) for i, j in pairs if i < j]
    impostor = [float(probes[i] @ others[d]) for i in np.flatnonzero(keep) for d in opened.drawn[12]]
    for far, key in ((1e-6, "1e-6"), (0.05, "5e-2")):
        bar = sorted(impostor, reverse=True)[math.floor(far * len(impostor) + 1e-9)]
        metrics[f"megaface/tar@{key}"] = np.mean([score > bar for score in genuine])
    return metrics


@pytest.mark.parametrize("noise", ["replace", "remove", "keep"])
def test_every_figure_is_that_of_loops(made, noise):
    bench = benchmark(made.root, noise=noise)
    opened = bench.open(None)
    embeddings = vectors(opened)
    result = bench.evaluate(embeddings, opened)
    assert result.metrics == pytest.approx(loops(opened, embeddings, noise))
    assert 0 < result.metrics["megaface/rank1"] < 1
    impostors = (11 if noise == "remove" else 12) * len(opened.drawn[12])
    assert result.notes == {"megaface/tar@1e-6": f"zero false accepts, N={impostors}"}
    assert result.kept["cmc"][[0, 2]].tolist() == [result.metrics["megaface/rank1"], result.metrics["megaface/rank3"]]


def test_noise_lists_are_read(made):
    opened = benchmark(made.root).open(None)
    assert np.flatnonzero(opened.noisy).tolist() == [1]
    assert opened.removed == 1
    named = [str(file.relative_to(made.root / "megaface_images")) for file in opened.files[12:]]
    assert made.others[2] not in named
    assert sorted(named) == sorted(set(made.others) - {made.others[2]})
    assert len(opened.drawn[12]) == 11
    kept = benchmark(made.root, noise="keep").open(None)
    assert len(kept) == 24
    assert not kept.noisy.any()
    assert opened.about == "12 probes of 3 people, 11 distractors"


def test_known_by_construction(made):
    """Everybody is alike and unlike all distractors: all found; or all are alike: none."""
    bench = benchmark(made.root)
    opened = bench.open(None)
    perfect = np.zeros((len(opened), 8), np.float32)
    perfect[np.arange(12), opened.identity] = 1
    perfect[12:, 7] = 1
    assert set(bench.evaluate(perfect, opened).metrics.values()) == {1.0}
    alike = bench.evaluate(np.ones((len(opened), 3), np.float32), opened)
    assert set(alike.metrics.values()) == {0.0}


def test_the_record_comes_back_and_stamps_say_the_noise(made, tmp_path):
    def run(**changes):
        bench = benchmark(made.root, **changes)
        opened = bench.open(None)
        return bench.evaluate(vectors(opened), opened)

    one = run(bootstrap=100)
    assert compare_stamps(one.stamp, run(noise="remove").stamp) == ["noise"]
    assert compare_stamps(one.stamp, run(mirror=False).stamp) == ["mirror"]
    assert compare_stamps(one.stamp, run(sizes=[12]).stamp) == ["distractors", "source"]
    assert one.metrics["megaface/rank1_low"] <= one.metrics["megaface/rank1"] <= one.metrics["megaface/rank1_high"]
    save_scores(tmp_path / "megaface.npz", one)
    assert load_counted(tmp_path / "megaface.npz").metrics == one.metrics


def test_all_that_is_missing_is_told_at_once(tmp_path):
    made = megaface(tmp_path / "pack")
    bench = benchmark(made.root)
    assert bench.check() == []
    assert "12 probes, published are 3,530" in benchmark(made.root, known={"probes": 3530}).check()[0]
    (made.root / "facescrub_images" / made.probes[3][0]).unlink()
    (made.root / "megaface_images" / made.others[4]).unlink()
    with pytest.raises(FileNotFoundError, match=r"facescrub_images: 1 of 12 .*P_0_3\.png; .*megaface_images: 1 of 11 "):
        bench.open(None)
    (made.root / "megaface_noises.txt").unlink()
    (made.lists / "megaface_features_list.json_5_1").unlink()
    assert len(bench.check()) == 2
    assert len(benchmark(made.root, noise="keep").check()[0].split("; ")) == 1
    with pytest.raises(FileNotFoundError, match=r"json_5_1 is missing; .*megaface_noises\.txt is missing; check"):
        bench.open(None)


def test_a_png_of_a_list_may_be_a_jpg_on_disk(tmp_path):
    made = megaface(tmp_path)
    file = made.root / "facescrub_images" / made.probes[0][0]
    file.rename(file.with_suffix(".jpg"))
    assert benchmark(made.root).open(None).files[0].suffix == ".jpg"


@pytest.mark.parametrize(
    ("file", "content", "line"),
    [("facescrub_features_list.json", "{}", "holds no path and id"), ("facescrub_features_list.json", "x", "holds no"),
     ("megaface_features_list.json_5_1", '{"path": []}', "are empty"),
     ("facescrub_features_list.json", '{"path": ["a"], "id": []}', "not of one length")],
)  # fmt: skip
def test_lists_that_cannot_be_read_are_refused(tmp_path, file, content, line):
    made = megaface(tmp_path)
    (made.lists / file).write_text(content)
    with pytest.raises(ValueError, match=line):
        benchmark(made.root).open(None)


@pytest.mark.parametrize(
    ("changes", "line"),
    [({"noise": "ignore"}, "noise is 'ignore'"), ({"sizes": []}, r"sizes is \[\]"), ({"sizes": [0]}, r"sizes is \[0\]"),
     ({"far": [2]}, "far=2"), ({"ranks": [0]}, "ranks is")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        benchmark(None, **changes)
    with pytest.raises(ValueError, match="path is null"):
        benchmark(None).open(None)
