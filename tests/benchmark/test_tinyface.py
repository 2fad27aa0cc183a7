"""TinyFace in its authors' layout, and any folder of people: figures known by construction, and by a sorted row."""

import cv2
import numpy as np
import pytest
from layouts import SIDE, image, tinyface
from scipy.io import loadmat, savemat
from test_ijb import market_precision

from facelab.benchmark.crops import Crop
from facelab.benchmark.mat_files import read_mat_file
from facelab.benchmark.scores import compare_stamps, load_counted, save_all
from facelab.benchmark.search_files import _word, read_mat
from facelab.benchmark.tinyface import Identification, TinyFace
from facelab.resampling import down_and_up, resample_image

COMMON = {
    "name": None, "mirror": True, "ranks": [1, 2, 5], "size": 16, "resolutions": ["1x"], "sides": "both",
    "kernel": "area", "enlarge": "bicubic", "crop": {"keep": 1.0, "shape": "stretch", "alignment": "none"},
    "bootstrap": 0, "seed": 0,
}  # fmt: skip
KNOWN = {"probes": 11, "mates": 8, "distractors": 6}


def tiny(root, **changes):
    path = None if root is None else str(root)
    return TinyFace(**{**COMMON, "name": "tinyface", "path": path, "lists": None, "known": KNOWN, **changes})


def people(root, **changes):
    return Identification(**{**COMMON, "path": None if root is None else str(root), "distractors": None, **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tinyface(tmp_path_factory.mktemp("tinyface") / "Testing_Set")


def test_the_lists_say_who_is_who(made):
    opened = tiny(made.root).open(None)
    lists = opened.lists
    named = [(file.name, who) for file, who in zip(lists.files, lists.identity.tolist(), strict=True)]
    assert named[: lists.probes] == made.probe
    assert named[lists.probes : -6] == made.gallery
    assert [who for _, who in named[-6:]] == [-100] * 6
    assert {file.parent.name for file in lists.files[-6:]} == {"Gallery_Distractor"}
    assert opened.about == "11 probes among 14, 6 of them distractors"


def test_figures_are_those_of_a_sorted_row(made):
    bench = tiny(made.root)
    opened = bench.open(None)
    vectors = np.random.default_rng(0).normal(size=(len(opened), 5)).astype(np.float32)
    result = bench.evaluate(vectors, opened)
    unit = vectors / np.linalg.norm(vectors.astype(float), axis=1, keepdims=True)
    ranks, precisions = [], []
    for probe in range(11):
        order = np.argsort(-(unit[11:] @ unit[probe]))
        hits = [opened.lists.identity[11:][j] == opened.lists.identity[probe] for j in order]
        ranks.append(hits.index(True) + 1)
        precisions.append(market_precision(hits))
    expected = {f"tinyface/rank{k}": np.mean(np.array(ranks) <= k) for k in (1, 2, 5)}
    assert result.metrics == pytest.approx({**expected, "tinyface/map": np.mean(precisions)})
    assert result.kept["rank"].tolist() == ranks
    assert result.kept["cmc"][:5].tolist() == [np.mean(np.array(ranks) <= k) for k in range(1, 6)]
    assert len(result.kept["cmc"]) == 20
    assert result.headline == result.metrics["tinyface/rank1"]


def test_known_by_construction(made):
    """A model that knows everybody, one that takes a distractor for everybody, and one that knows nothing."""
    bench = tiny(made.root)
    opened = bench.open(None)
    identity = opened.lists.identity
    perfect = np.eye(16, dtype=np.float32)[np.where(identity < 0, np.arange(len(identity)) % 6 + 6, identity)]
    assert set(bench.evaluate(perfect, opened).metrics.values()) == {1.0}
    fooled = perfect.copy()
    fooled[:11] *= 0.5
    fooled[:11, 7] = 1  # a distractor's direction, and one distractor lies there
    metrics = bench.evaluate(fooled, opened).metrics
    assert metrics["tinyface/rank1"] == 0
    assert metrics["tinyface/rank2"] == 1
    blind = bench.evaluate(np.ones((len(identity), 3), np.float32), opened)
    assert blind.metrics["tinyface/rank5"] == 0  # everybody ties with at least 12 others
    assert blind.metrics["tinyface/map"] < 0.2


def test_aligned_copies_may_lie_elsewhere_and_be_of_another_format(made, tmp_path):
    for folder in ("Probe", "Gallery_Match", "Gallery_Distractor"):
        for file in (made.root / folder).iterdir():
            (tmp_path / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / f"{file.stem}.png"), cv2.imread(str(file)))
    opened = tiny(tmp_path, lists=str(made.root)).open(None)
    assert [file.stem for file in opened.lists.files[:11]] == [name.split(".")[0] for name, _ in made.probe]
    assert opened.lists.identity.tolist()[:11] == [who for _, who in made.probe]


def test_without_ids_the_name_says_whose_it_is(tmp_path):
    savemat(tmp_path / "a.mat", {"probe_set": np.array(["17_3.jpg", "4_x.jpg"])})
    assert read_mat(tmp_path / "a.mat", "probe") == (["17_3.jpg", "4_x.jpg"], [17, 4])
    (tmp_path / "b.mat").write_bytes(b"nothing of the kind")
    for file, key in (("b.mat", "probe"), ("a.mat", "gallery")):
        with pytest.raises(ValueError, match=rf"{file}: holds no {key}_set of names with identities"):
            read_mat(tmp_path / file, key)


@pytest.mark.parametrize("compressed", [False, True])
def test_what_scipy_writes_is_read_as_scipy_reads_it(tmp_path, compressed):
    """Cells of words and of numbers, column by column, letters of several alphabets, numbers of every kind."""
    cells = np.empty((2, 3), object)
    cells[:] = [["a.jpg", "é_가.png", "b"], [np.arange(3.0), np.array([["x"]], object), "long name.jpg"]]
    numbers = {f"n{kind}": np.array([[1, 2], [3, 200 % 128]], kind) for kind in ("u1", "i2", "u4", "i8", "f4", "f8")}
    content = {"cells": cells, "words": ["ab", "c"], **numbers, "s": {"x": 1}}
    savemat(tmp_path / "a.mat", content, do_compression=compressed)
    ours, theirs = read_mat_file(tmp_path / "a.mat"), loadmat(tmp_path / "a.mat")
    assert ours.keys() == {"cells", "words", *numbers}  # a structure is left out
    for name in numbers:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert [word.strip() for word in ours["words"]] == ["ab", "c"]
    for one, other in zip(ours["cells"].ravel(), theirs["cells"].ravel(), strict=True):
        assert _word(one) == _word(other)


def test_all_that_is_missing_is_told_at_once(tmp_path):
    root = tmp_path / "Testing_Set"
    tinyface(root)
    bench = tiny(root)
    assert bench.check() == []
    assert tiny(root, known={**KNOWN, "distractors": 153428}).check() == [
        f"{root}: 6 distractors, published are 153,428"
    ]
    (root / "Probe" / "1_9.jpg").unlink()
    (root / "Gallery_Match" / "2_0.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"Probe: 1 of 11 .*: 1_9\.jpg; .*Gallery_Match: 1 of 8 .*: 2_0\.jpg"):
        bench.open(None)
    (root / "probe_img_ID_pairs.mat").unlink()
    for file in (root / "Gallery_Distractor").iterdir():
        file.unlink()
    (root / "Gallery_Distractor").rmdir()
    with pytest.raises(FileNotFoundError, match=r"probe_img_ID_pairs.mat is missing; .*Gallery_Distractor is missing"):
        bench.open(None)
    assert len(bench.check()) == 2
    with pytest.raises(ValueError, match=r"benchmark\.path is null: give TinyFace's Testing_Set"):
        tiny(None).open(None)


# Any folder of people


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """anna 3, boris 1, 민준 2, dora none."""
    root, rng = tmp_path_factory.mktemp("faces") / "mine" / "images", np.random.default_rng(0)
    for name, count in (("anna", 3), ("boris", 1), ("민준", 2)):
        for number in range(count):
            image(root / "tmp.png", rng)
            (root / name).mkdir(exist_ok=True)
            (root / "tmp.png").rename(root / name / f"{number}.png")
    (root / "dora").mkdir()
    return root


def test_first_images_are_enrolled(folder, tmp_path):
    opened = people(folder).open(None)
    assert opened.name == "mine"
    names = [f"{file.parent.name}/{file.name}" for file in opened.lists.files]
    assert names == ["anna/1.png", "anna/2.png", "민준/1.png", "anna/0.png", "boris/0.png", "민준/0.png"]
    assert opened.about == "3 probes among 3, 1 of them distractors"
    for number in range(2):
        image(tmp_path / "strangers" / f"p{number}" / "x.jpg", np.random.default_rng(number))
    more = people(folder, distractors=str(tmp_path / "strangers")).open(None)
    assert more.about == "3 probes among 5, 3 of them distractors"
    assert compare_stamps(people(folder)._stamp(opened), people(folder)._stamp(more)) == [
        "distractors",
        "gallery",
        "source",
    ]


def test_each_resolution_has_its_images_keys_and_stamp(folder, tmp_path):
    bench = people(folder, resolutions=["1x", 4], sides="probes")
    opened = bench.open(None)
    assert len(opened) == 12
    ((down,), (up,)) = down_and_up(16, [4], "area", "bicubic")
    assert np.array_equal(opened.load(7), resample_image(resample_image(opened.load(1), down), up))
    # At 4 pixels the probes look like somebody else, and the gallery is that of 16 pixels.
    vectors = np.eye(8, dtype=np.float32)[[0, 0, 2, 0, 1, 2, 1, 1, 1, 7, 7, 7]]
    result = bench.evaluate(vectors, opened)
    assert result.all_metrics()["mine/rank1"] == 1
    assert result.all_metrics()["mine_4px_probes/rank1"] == 0
    both = people(folder, resolutions=[4]).evaluate(vectors[6:], people(folder, resolutions=[4]).open(None))
    assert both.name == "mine_4px"
    low = {"degraded", "degraded_size", "kernel", "enlarge"}
    assert set(compare_stamps(result.stamp, result.parts[0].stamp)) == low
    assert compare_stamps(result.parts[0].stamp, both.stamp) == ["degraded"]
    save_all(tmp_path, result)
    assert load_counted(tmp_path / "mine_4px_probes.npz").metrics == result.parts[0].metrics


def test_embeddings_that_say_nothing_are_named(folder):
    bench = people(folder, resolutions=["1x", 4])
    opened = bench.open(None)
    vectors = np.ones((12, 3), np.float32)
    vectors[[8, 9]] = 0
    with pytest.raises(ValueError, match=r"mine: 2 of 12 embeddings are zero, the first is that of .*민준/1\.png"):
        bench.evaluate(vectors, opened)


@pytest.mark.parametrize(
    ("changes", "line"),
    [({"sides": "one"}, "sides is 'one': give both or probes"), ({"ranks": []}, "ranks"), ({"kernel": "x"}, "kernel"),
     ({"crop": {**COMMON["crop"], "keep": 0}}, r"crop\.keep is 0"), ({"size": 0, "resolutions": [1]}, "size=0"),
     ({"crop": {**COMMON["crop"], "shape": "cut"}}, r"crop\.shape is 'cut'")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        people(None, **changes)


def test_folders_that_will_not_do(folder, tmp_path):
    with pytest.raises(ValueError, match="path is null: give a folder"):
        people(None).open(None)
    with pytest.raises(FileNotFoundError, match=r"nowhere is missing; .*lost is missing"):
        people(tmp_path / "nowhere", distractors=str(tmp_path / "lost")).open(None)
    (tmp_path / "one").mkdir()
    with pytest.raises(ValueError, match="no folder of a person with two images"):
        people(tmp_path).open(None)


@pytest.mark.data
def test_all_of_lfw_is_searched_as_it_is_known(real_data):
    opened = people(real_data / "lfw" / "images").open(None)
    assert opened.name == "lfw"
    assert opened.about == "7,484 probes among 5,749, 4,069 of them distractors"


# What is read of a file


def test_any_size_becomes_the_square(tmp_path):
    wide = np.random.default_rng(0).integers(0, 256, (10, 20, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), wide[..., ::-1])
    stretched = Crop(16, 1.0, "stretch", "a").load(tmp_path / "a.png")
    assert np.array_equal(stretched, cv2.resize(wide, (16, 16), interpolation=cv2.INTER_CUBIC))
    padded = Crop(20, 1.0, "pad", "a").load(tmp_path / "a.png")
    assert np.array_equal(padded[5:15], wide)
    assert not padded[:5].any()
    assert not padded[15:].any()
    middle = Crop(5, 0.5, "stretch", "a").load(tmp_path / "a.png")
    assert np.array_equal(middle, cv2.resize(wide[2:7, 5:15], (5, 5), interpolation=cv2.INTER_AREA))
    whole = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "b.png"), whole[..., ::-1])
    assert np.array_equal(Crop(SIDE, 1.0, "pad", "a").load(tmp_path / "b.png"), whole)
    (tmp_path / "c.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"c\.png: is not a readable image"):
        Crop(8, 1.0, "pad", "a").load(tmp_path / "c.png")
    assert Crop(8, 0.5, "pad", "mtcnn").stamp == {"crop": "middle 0.5, pad", "alignment": "mtcnn", "size": 8}
