"""Where networks look: regions, likeness, intervals and choices by independent arithmetic, and the command as typed."""

import csv
import json
import pickle
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from facelab.data.degrade import LowResolution
from facelab.data.synthetic import render
from facelab.report import attention
from facelab.report.attention_looking import laid_out, likeness, look, measure, open_networks
from facelab.report.attention_numbers import choose, cosine, intervals, people_of_pairs, regions, share
from facelab.report.attention_picture import Column, draw
from facelab.resampling import down_and_up, resample_image
from facelab.training.network import build_backbone
from facelab.training.saving import write_file
from facelab.training.stored import FORMAT

SIZE = 48
PEOPLE = 5


def write_network(path: Path, seed: int, attention: str = "cbam", units: int = 1, size: int = SIZE) -> Path:
    """A checkpoint of a tiny random network, as a run would have left it."""
    backbone = {
        "_target_": "facelab.backbone.iresnet.IResNet",
        "layers": [1, 1, 1, units],
        "widths": [16, 16, 16, 32],
        "stem_stride": 2,
        "embedding_size": 8,
        "dropout": 0.0,
        "attention": attention,
        "image_size": size,
    }
    torch.manual_seed(seed)
    network = build_backbone(OmegaConf.create(backbone), load=False)
    meta = {
        "format": FORMAT,
        "shards": [],
        "step": 3,
        "num_classes": 2,
        "input": {"color": "rgb", "mean": 127.5, "std": 127.5},
        "config": {
            "backbone": backbone,
            "head": {"_target_": "torch.nn.Identity"},
            "loss": {},
            "benchmark": {"_target_": "facelab.benchmark.pairs.PairBenchmark"},
            "trainer": {"ema": None, "batch_size": 8, "devices": 1, "num_nodes": 1, "precision": "fp32"},
            "data": {"size": size},
        },
    }
    tensors = {f"model.backbone.{name}": value for name, value in network.state_dict().items()}
    write_file(path, tensors, meta)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three networks, five people with three images each, and the words of a command."""
    folder = tmp_path_factory.mktemp("attention")
    for seed, name in enumerate(("teacher", "plain", "student")):
        write_network(folder / f"{name}.ckpt", seed)
    write_network(folder / "blind.ckpt", 3, attention="none")
    write_network(folder / "deeper.ckpt", 4, units=2)
    write_network(folder / "small.ckpt", 5, size=32)
    for person in range(PEOPLE):
        (folder / "faces" / f"person {person}").mkdir(parents=True)
        for image in range(3):
            face = render(0, person, image, SIZE, 1.0)[..., ::-1]
            cv2.imwrite(str(folder / "faces" / f"person {person}" / f"{image}.png"), face)
    return folder


def words(place: Path, **changes: str | None) -> list[str]:
    given: dict[str, str | None] = {
        **{name: str(place / f"{name}.ckpt") for name in ("teacher", "plain", "student")},
        "faces": str(place / "faces"),
        "out": str(place / "picture.png"),
        "count": "3",
        **changes,
    }
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def run(monkeypatch, words: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["attention", *words])
    attention.main()


# Numbers


def test_the_regions_have_the_areas_of_discs_and_a_capsule_and_do_not_overlap():
    fine = regions(1120)
    area = {name: mask.mean() * 112**2 for name, mask in fine.items()}
    width = np.hypot(70.73 - 41.55, 92.20 - 92.37)
    assert area["eyes"] == pytest.approx(2 * np.pi * 14**2, rel=1e-3)
    assert area["nose"] == pytest.approx(np.pi * 11**2, rel=1e-3)
    assert area["mouth"] == pytest.approx(np.pi * 9**2 + 2 * 9 * width, rel=1e-3)
    for size in (1120, 112, 64, 48):
        assert max(sum(mask.astype(int) for mask in regions(size).values()).ravel()) == 1


def test_the_regions_lie_where_the_template_says():
    masks = regions(112)
    points = {"eyes": [(38, 52), (74, 52)], "nose": [(56, 72)], "mouth": [(42, 92), (56, 92), (71, 92)]}
    for name, mask in masks.items():
        for other, places in points.items():
            assert all(mask[y, x] == (name == other) for x, y in places), (name, other)
    y, x = np.nonzero(masks["nose"])
    assert (x.mean(), y.mean()) == pytest.approx((56.03, 71.74), abs=0.05)
    # An image of half the size: the same places in its own pixels.
    y, x = np.nonzero(regions(56)["nose"])
    assert (x.mean(), y.mean()) == pytest.approx(((56.03 + 0.5) / 2 - 0.5, (71.74 + 0.5) / 2 - 0.5), abs=0.1)


def test_the_share_of_a_flat_map_is_the_area_and_of_an_eye_all():
    masks = regions(112)
    flat, eye = np.full((112, 112), 0.37), np.zeros((112, 112))
    y, x = np.ogrid[:112, :112]
    eye[(x - 38.29) ** 2 + (y - 51.70) ** 2 <= 14**2] = 1.0
    maps = np.stack([flat, eye, eye + 1e-3 * masks["mouth"]])
    for name, mask in masks.items():
        assert share(maps, mask)[:2] == pytest.approx([mask.mean(), float(name == "eyes")])
    assert share(maps, masks["eyes"])[2] == pytest.approx(eye.sum() / (eye.sum() + 1e-3 * masks["mouth"].sum()))


def test_cosines():
    rng = np.random.default_rng(1)
    one, other = rng.normal(3, 1, (2, 6, 1, 7, 7))
    for centred in (False, True):
        assert cosine(one, one, centred) == pytest.approx(np.ones(6))
        assert cosine(one, -2 * one, centred) == pytest.approx(-np.ones(6))
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(one, other, strict=True)]
    assert cosine(one, other, True) == pytest.approx(expected)
    assert cosine(one + 5, other - 9, True) == pytest.approx(expected)
    assert (cosine(one, other, False) > 0.8).all()  # what they have in common is their mean
    assert (cosine(one, 0 * one, False) == 0).all()
    assert (cosine(one, 0 * one + 0.5, True) == 0).all()


def test_intervals_are_over_people():
    rng = np.random.default_rng(2)
    few, many = np.repeat(np.arange(10), 8), np.repeat(np.arange(200), 8)

    def values(people):
        own = rng.normal(0, 1, people.max() + 1)[people]  # images of a person are alike
        return np.stack([own + rng.normal(0, 0.1, len(people)), np.full(len(people), 0.25)], 1)

    narrow, wide = values(many), values(few)
    (of_many, constant), (of_few, _) = intervals(narrow, many), intervals(wide, few)
    for found, given in ((of_many, narrow), (of_few, wide)):
        assert found.mean == pytest.approx(given[:, 0].mean())
        assert found.low < found.mean < found.high
    assert (constant.low, constant.mean, constant.high) == pytest.approx((0.25, 0.25, 0.25))
    assert of_many.high - of_many.low < 0.5 * (of_few.high - of_few.low)
    # ± 1.96 standard errors of the mean over people, not over images, which would be nearly three times as narrow.
    means = narrow[:, 0].reshape(200, 8).mean(1)
    assert of_many.high - of_many.low == pytest.approx(2 * 1.96 * means.std() / np.sqrt(200), rel=0.1)
    assert intervals(narrow, many) == [of_many, constant]
    assert intervals(narrow, 7 * many + 3) == [of_many, constant]  # whatever the people are called


def test_who_is_chosen():
    people = np.repeat([4, 2, 9], (1, 5, 3))
    chosen = choose(people, 100)
    assert sorted(chosen) == list(range(9))
    assert sorted(people[chosen[:3]]) == [2, 4, 9]
    assert sorted(people[chosen[3:5]]) == [2, 9]
    assert (choose(people, 4) == chosen[:4]).all()


def test_genuine_pairs_join_people():
    pairs = np.array([(0, 3), (3, 5), (1, 2), (2, 4), (6, 4)])
    same = np.array([True, True, True, False, True])
    assert people_of_pairs(pairs, same, 8).tolist() == [0, 1, 1, 0, 2, 0, 2, 3]


# Networks


def test_a_network_is_like_itself_and_sees_what_lowres_trains_on(place):
    options = attention.read_options(words(place, student=str(place / "teacher.ckpt"), plain=None, pixels=str(SIZE)))
    found = measure(options, open_networks(options), enabled=False)
    for name in ("cosine", "centred cosine"):
        assert found.values["student", name] == pytest.approx(np.ones(3 * PEOPLE), abs=1e-6)
    assert (found.maps["student"] == found.maps["teacher"]).all()
    assert len(set(found.people[:3])) == 3

    options = attention.read_options(words(place, pixels="14"))
    found = measure(options, open_networks(options), enabled=False)
    down, up = (table[0] for table in down_and_up(SIZE, [14], "bicubic", "bicubic"))
    degrade = LowResolution(1.0, [14], "bicubic", "bicubic", False)
    given = found.inputs["teacher"]
    trained_on = degrade(torch.from_numpy(given), torch.full((3, 2), 0.5)).numpy()
    for key in ("plain", "student"):
        assert (found.inputs[key] == trained_on).all()
        assert (found.inputs[key][1] == resample_image(resample_image(given[1], down), up)).all()


def test_all_units_are_the_mean_of_each_and_a_difference_is_paired(place):
    def found(block):
        options = attention.read_options(words(place, block=block))
        return measure(options, open_networks(options), enabled=False)

    everything, single = found("all"), [found(str(unit)) for unit in range(4)]
    for key in ("teacher", "plain", "student"):
        np.testing.assert_allclose(everything.maps[key], np.mean([one.maps[key] for one in single], axis=0), atol=1e-6)
    expected = np.mean([one.values["student", "cosine"] for one in single], axis=0)
    assert everything.values["student", "cosine"] == pytest.approx(expected)
    bounds = everything.intervals
    for name in ("cosine", "eyes"):
        difference = bounds["student − plain", name]
        assert difference.mean == pytest.approx(bounds["student", name].mean - bounds["plain", name].mean)
        assert difference.low <= difference.mean <= difference.high
    parts = sum(everything.values["teacher", name] for name in ("eyes", "nose", "mouth"))
    assert everything.values["teacher", "all three"] == pytest.approx(parts)


def test_maps_of_other_sizes_and_depths(place):
    deeper = str(place / "deeper.ckpt")
    changes = {"teacher": deeper, "student": str(place / "small.ckpt"), "block": "0,3", "teacher_block": "0,4"}
    options = attention.read_options(words(place, **changes))
    networks = open_networks(options)
    found = measure(options, networks, enabled=False)
    assert networks["teacher"].units == (0, 4)
    assert networks["student"].units == (0, 3)
    assert found.inputs["student"].shape == (3, 32, 32, 3)
    assert found.inputs["teacher"].shape == (3, SIZE, SIZE, 3)
    assert np.isfinite(found.values["student", "cosine"]).all()


def test_a_map_is_laid_over_the_image(place):
    maps = [torch.zeros(2, 1, 6, 6), torch.full((2, 1, 3, 3), 50.0)]
    assert laid_out(maps, 12).shape == (2, 12, 12)
    assert laid_out(maps, 12).allclose(torch.tensor(0.75))
    peak = torch.full((1, 1, 4, 4), -50.0)
    peak[0, 0, 1, 2] = 50.0
    assert divmod(int(laid_out([peak], 40)[0].argmax()), 40) in {(y, x) for y in range(10, 20) for x in range(20, 30)}
    assert likeness(maps, maps)["cosine"] == pytest.approx([0.5, 0.5])  # a map of zeros is like nothing
    network = open_networks(attention.read_options(words(place)))["teacher"]
    seen = look(network, torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8))
    assert [tuple(one.shape) for one in seen] == [(2, 1, side, side) for side in (12, 6, 3, 2)]


# The command


def test_the_picture_and_the_numbers(place, monkeypatch, capsys):
    run(monkeypatch, words(place))
    said = capsys.readouterr().out
    for word in ("eyes, %", "all three, %", "centred cosine", "student − plain", str(place / "picture.png")):
        assert word in said
    picture = cv2.imread(str(place / "picture.png"))
    about = json.loads((place / "picture.json").read_text())
    with open(place / "picture.csv", newline="") as file:
        table = {(row["network"], row["quantity"]): row for row in csv.DictReader(file)}
    assert (about["images"], about["people"], about["pixels"]) == (3 * PEOPLE, PEOPLE, 14)
    assert len(about["numbers"]) == len(table) == 3 * 4 + 2 * 2 + 6
    assert float(table["plain", "nose"]["flat"]) == pytest.approx(regions(SIZE)["nose"].mean())
    assert table["plain", "cosine"]["flat"] == ""
    for row in about["numbers"]:
        assert row["low"] <= row["mean"] <= row["high"]
        assert float(table[row["network"], row["quantity"]]["mean"]) == row["mean"]
    run(monkeypatch, words(place, out=str(place / "again.png")))
    assert (cv2.imread(str(place / "again.png")) == picture).all()
    assert (place / "again.csv").read_bytes() == (place / "picture.csv").read_bytes()


def test_the_panels(tmp_path):
    """Five columns of two faces; all maps in one scale: the brighter map is brighter in the picture."""
    grey = np.full((2, 48, 48, 3), 128, np.uint8)
    red = np.broadcast_to(np.uint8([255, 0, 0]), grey.shape)
    maps = [np.stack([np.full((48, 48), low), np.full((48, 48), low + 0.1)]) for low in (0.1, 0.3, 0.5)]
    heat = [Column(f"map {i}", "", grey, one, ["cosine 0.50"] * 2, ["line"]) for i, one in enumerate(maps)]
    draw(tmp_path / "five.png", [Column("input", "48 pixels", red), Column("degraded", "", grey), *heat], "below")
    picture = cv2.imread(str(tmp_path / "five.png")).astype(int)
    inches = [(0.2 + i * 1.87 + 0.1, 0.62 + row * 1.95 + 0.1) for row in range(2) for i in range(5)]
    shown = [picture[round(130 * y), round(130 * x)] for x, y in inches]  # near each panel's upper left corner
    assert shown[0].tolist() == shown[5].tolist() == [0, 0, 255]  # BGR
    assert shown[1].tolist() == shown[6].tolist() == [128, 128, 128]
    brightness = [color.sum() for color in shown]
    order = [brightness[i] for i in (2, 7, 3, 8, 4, 9)]
    assert order == sorted(order)
    assert order[0] < order[2] < order[4]
    draw(tmp_path / "four.png", [Column("input", "", red), Column("degraded", "", grey), *heat[:2]], "below")
    narrower = picture.shape[1] - cv2.imread(str(tmp_path / "four.png")).shape[1]
    assert narrower == pytest.approx(1.87 * 130, abs=2)


def test_a_bin_of_pairs(place, monkeypatch, capsys):
    encoded = [path.read_bytes() for path in sorted((place / "faces").rglob("*.png"))]
    pairs = [(0, 1), (1, 2), (3, 4), (6, 7), (0, 3), (6, 9)]  # of persons 0 0 0, 1 1 1, 2 2 2, …
    same = [True] * 4 + [False] * 2
    (place / "faces.bin").write_bytes(pickle.dumps(([encoded[i] for pair in pairs for i in pair], same)))
    changes = {"faces": str(place / "faces.bin"), "out": str(place / "bin.png"), "plain": None}
    run(monkeypatch, words(place, **changes))
    about = json.loads((place / "bin.json").read_text())
    assert (about["images"], about["people"]) == (8, 4)
    assert {row["network"] for row in about["numbers"]} == {"teacher", "student"}


WRONG = {
    "colour=red: is no option": {"colour": "red"},
    r"teacher=… is missing": {"teacher": None},
    r"both missing: give a student": {"plain": None, "student": None},
    r"out=.*ends in \.png": {"out": "picture.jpg"},
    "pixels=some: give a whole number": {"pixels": "some"},
    "pixels=49, but plain=.* give at most 48": {"pixels": "49"},
    "images=2: at least": {"images": "2"},
    "block=last: give all, or numbers": {"block": "last"},
    r"block=4: teacher=.*4 attention units, numbered from 0 to 3": {"block": "4"},
    "student=.*no attention: train one with backbone.attention=cbam": {"student": "blind.ckpt"},
    "maps of 4 attention units of the teacher cannot be compared with those of 5": {"student": "deeper.ckpt"},
    "plain=.*no such file": {"plain": "nowhere.ckpt"},
    "plain=.*is no checkpoint of facelab": {"plain": "faces/person 0/0.png"},
    "faces=.*no such file or folder": {"faces": "nowhere"},
    "faces=.*expected": {"faces": "faces/person 0"},
    "faces=.*person 0/0.png": {"faces": "faces/person 0/0.png"},
    "count=6: faces=.*has 5 people": {"count": "6"},
}


@pytest.mark.parametrize(("said", "changes"), WRONG.items(), ids=WRONG)
def test_wrong_inputs_are_refused_in_one_line(said, changes, place, monkeypatch):
    monkeypatch.chdir(place)
    before = set(place.iterdir())
    with pytest.raises(SystemExit, match=f"^error: .*{said}") as refused:
        run(monkeypatch, words(place, **changes))
    assert "\n" not in str(refused.value)
    assert set(place.iterdir()) == before


def test_an_option_given_twice(place, monkeypatch):
    with pytest.raises(SystemExit, match="count=4: count is given twice"):
        run(monkeypatch, [*words(place), "count=4"])
