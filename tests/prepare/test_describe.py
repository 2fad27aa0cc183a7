"""The long tail in numbers against their definitions, and images whose brightness and sharpness are known."""

import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sets import SIZE, door, folder_set, jpeg, pack_set

from facelab.data.folder import FolderFaces
from facelab.prepare.describe import gini, look_at, tail


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=30))
def test_gini_is_half_the_relative_mean_difference(counts):
    values = np.array(counts, dtype=np.float64)
    differences = np.abs(values[:, None] - values[None, :]).mean()
    assert gini(np.array(counts)) == pytest.approx(differences / (2 * values.mean()), abs=1e-12)


def test_many_medium_and_few():
    found = tail(np.array([101, 100, 20, 19, 1, 500]), many=100, few=20)
    assert found.counts.tolist() == [500, 101, 100, 20, 19, 1]
    assert found.imbalance == 500
    assert found.groups == {
        "many": {"identities": 2, "images": 601},
        "medium": {"identities": 2, "images": 120},
        "few": {"identities": 2, "images": 20},
    }
    assert tail(np.array([5, 5, 5]), 100, 20).gini == 0


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


def test_light_and_sharpness_of_images_that_are_known(tmp_path):
    flat = np.full((SIZE, SIZE, 3), 70, np.uint8)
    stripes = np.zeros((SIZE, SIZE, 3), np.uint8)
    stripes[:, ::2] = 200
    root = folder_set(tmp_path / "set", {"a": [png(flat)], "b": [png(stripes), b"none"]})
    seen = look_at(FolderFaces(root, SIZE), np.arange(3), 1, lambda done, total: None)
    assert seen.unreadable == 1
    assert seen.pixels.tolist() == [SIZE, SIZE]
    assert seen.brightness.tolist() == [70, 100]
    assert seen.contrast.tolist() == [0, 100]
    assert seen.sharpness[0] == 0
    # Each pixel's neighbours on the left and right differ by 200: ±400 (at the border, mirrored, as well).
    assert seen.sharpness[1] == 400**2


def test_a_blurred_image_is_less_sharp(tmp_path):
    sharp = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    root = folder_set(tmp_path / "set", {"a": [png(sharp)], "b": [png(cv2.GaussianBlur(sharp, (0, 0), 2))]})
    seen = look_at(FolderFaces(root, 64), np.arange(2), 2, lambda done, total: None)
    assert seen.sharpness[0] > 10 * seen.sharpness[1]


@pytest.mark.parametrize("make", [pack_set, folder_set])
def test_the_door_writes_numbers_and_a_picture(tmp_path, monkeypatch, capsys, make):
    root = make(tmp_path / "my$et", {"a": [jpeg(n) for n in range(7)], "b": [jpeg(9)], "c": [jpeg(10), jpeg(11)]})
    words = ("task=describe", f"source={root}", "many=5", "few=2", "sample=6", "threads=1")
    code, output, said = door(monkeypatch, capsys, *words)
    assert (code, said) == (0, "")
    assert "10 images of 3 identities" in output
    folder = tmp_path / "my$et.describe"
    report = json.loads((folder / "describe.json").read_text())
    assert report["groups"]["many"] == {"identities": 1, "images": 7}
    assert report["groups"]["medium"] == {"identities": 1, "images": 2}
    assert report["groups"]["few"] == {"identities": 1, "images": 1}
    assert report["imbalance ratio"] == 7
    assert report["gini"] == pytest.approx(0.4)
    assert report["sample"]["images"] == 6
    assert report["sample"]["pixels"]["50 %"] == SIZE
    drawn = cv2.imread(str(folder / "describe.png"))
    assert drawn.shape[1] > 1000
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 20
    assert sorted(file.name for file in folder.iterdir()) == ["describe.json", "describe.png"]


def test_one_image_each_and_no_sample_can_be_drawn(tmp_path, monkeypatch, capsys):
    root = folder_set(tmp_path / "set", {"a": [jpeg(0)], "b": [jpeg(1)]})
    code, _, said = door(monkeypatch, capsys, "task=describe", f"source={root}", "sample=0")
    assert (code, said) == (0, "")
    report = json.loads((tmp_path / "set.describe" / "describe.json").read_text())
    assert report["gini"] == 0
    assert report["sample"]["pixels"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["few=200"], "few is 200 and many 100"),
        (["sample=-1"], "sample is -1"),
        (["threads=0"], "threads is 0"),
        (["size=17"], "size is 17"),
    ],
)
def test_bad_input_ends_in_one_line(tmp_path, monkeypatch, capsys, words, message):
    root = pack_set(tmp_path / "set", {"a": [jpeg(0)], "b": [jpeg(1)]})
    code, _, said = door(monkeypatch, capsys, "task=describe", f"source={root}", *words)
    assert code == 1
    assert message in said
    assert said.count("\n") == 1
