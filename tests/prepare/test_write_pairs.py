"""A `.bin` out of a pairs.txt and images: read by our reader and as InsightFace's own loader does."""

import pickle

import cv2
import numpy as np
import pytest
from sets import door, jpeg

from facelab.benchmark.pair_files import read_bin, read_folder

FACES = [("A", 1), ("A", 2), ("A", 3), ("B", 1), ("B", 2), ("C", 1)]
VIEW2 = "2\t2\nA\t1\t2\nA\t1\t3\nA\t1\tB\t1\nA\t2\tC\t1\nB\t1\t2\nB\t2\t1\nB\t1\tC\t1\nC\t1\tA\t1\n"
VIEW1 = "2\nA 1 2\nB 1 2\nA 1 B 1\nA 3 C 1\n"


def write(tmp_path, text, faces=FACES):
    for number, (name, face) in enumerate(faces):
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name / f"{name}_{face:04d}.jpg").write_bytes(jpeg(number))
    (tmp_path / "pairs.txt").write_text(text)
    return ["task=pairs", f"source={tmp_path}/images", f"pairs={tmp_path}/pairs.txt", f"out={tmp_path}/mine.bin"]


def insightface(path):
    """As recognition/arcface_torch/eval/verification.py has it: the images in turn, and whether pairs are genuine."""
    with open(path, "rb") as file:
        bins, issame_list = pickle.load(file, encoding="bytes")
    images = [cv2.imdecode(np.frombuffer(bins[i], np.uint8), 1) for i in range(len(issame_list) * 2)]
    assert all(image is not None for image in images)
    return bins, issame_list


def test_view_2_is_what_the_folder_is(tmp_path, monkeypatch, capsys):
    code, output, said = door(monkeypatch, capsys, *write(tmp_path, VIEW2), "folds=2")
    assert (code, said) == (0, "")
    assert "8 pairs of 6 images in 2 folds" in output
    made = read_bin(tmp_path / "mine.bin", "x", 2, 16)
    folder = read_folder(tmp_path / "images", tmp_path / "pairs.txt", "x", 2, 16)
    assert made.same.tolist() == folder.same.tolist()
    assert made.fold.tolist() == folder.fold.tolist()
    assert made.pairs.tolist() == folder.pairs.tolist()
    for number in range(len(folder)):
        np.testing.assert_array_equal(made.load(number), folder.load(number))
    bins, same = insightface(tmp_path / "mine.bin")
    assert same == [True, True, False, False] * 2
    assert all(type(flag) is bool for flag in same)
    assert len(bins) == 16
    assert bins[:4] == [jpeg(0), jpeg(1), jpeg(0), jpeg(2)]
    assert [file.name for file in tmp_path.iterdir() if "unfinished" in file.name] == []


def test_a_list_without_folds_is_dealt_to_folds_of_both_kinds(tmp_path, monkeypatch, capsys):
    code, _, said = door(monkeypatch, capsys, *write(tmp_path, VIEW1), "folds=2")
    assert (code, said) == (0, "")
    made = read_bin(tmp_path / "mine.bin", "x", 2, 16)
    assert made.same.tolist() == [True, False, True, False]
    bins, _ = insightface(tmp_path / "mine.bin")
    assert bins == [jpeg(n) for n in (0, 1, 0, 3, 3, 4, 2, 5)]


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        (VIEW2, ["folds=10"], "set folds=2"),
        (VIEW1, ["folds=3"], "its 2 genuine pairs cannot be cut into 3 equal folds"),
        (VIEW2.replace("A\t1\t3\n", ""), ["folds=2"], "promises 2 × 2 genuine"),
        (VIEW2, ["folds=1"], "at least 2 are needed"),
        (VIEW2, ["folds=2", "out=mine.pkl"], "out=mine.pkl: give a name that ends in .bin"),
        (VIEW2, ["folds=2", "source=nowhere"], "source=nowhere: no such folder"),
        (VIEW2, ["folds=2", "pairs=nowhere"], "pairs=nowhere: no such file"),
        (VIEW2.replace("C\t1", "D\t1"), ["folds=2"], "1 of the 3 people that pairs.txt names have no folder there: D"),
    ],
)
def test_bad_input_ends_in_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, text, words, message):
    given = write(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    keys = {word.split("=")[0] for word in words}
    code, _, said = door(monkeypatch, capsys, *(word for word in given if word.split("=")[0] not in keys), *words)
    assert code == 1
    assert message in said
    assert said.count("\n") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images", "pairs.txt"]


def test_all_missing_images_are_named_together(tmp_path, monkeypatch, capsys):
    pairs = [f"A\t{n}\t{n + 1}\n" for n in range(10, 30)] + [f"A\t{n}\tB\t{n}\n" for n in range(10, 30)]
    code, _, said = door(monkeypatch, capsys, *write(tmp_path, "2\t10\n" + "".join(
        [*pairs[:10], *pairs[20:30], *pairs[10:20], *pairs[30:]])), "folds=2")  # fmt: skip
    assert code == 1
    assert "41 images that pairs.txt names are missing" in said
    assert all(f"A/A_{n:04d}" in said for n in range(10, 31))
    assert all(f"B/B_{n:04d}" in said for n in range(10, 30))


def test_images_that_are_no_aligned_faces_are_named_together(tmp_path, monkeypatch, capsys):
    words = write(tmp_path, VIEW2)
    (tmp_path / "images" / "A" / "A_0002.jpg").write_bytes(b"text")
    wide = cv2.imencode(".jpg", np.zeros((8, 12, 3), np.uint8))[1].tobytes()
    (tmp_path / "images" / "B" / "B_0001.jpg").write_bytes(wide)
    code, _, said = door(monkeypatch, capsys, *words, "folds=2")
    assert code == 1
    assert "2 of 6 images are no aligned faces" in said
    assert "A_0002.jpg (is no readable image)" in said
    assert "B_0001.jpg (is 8×12 pixels, not square)" in said
    assert not (tmp_path / "mine.bin").exists()


def test_nothing_is_written_over(tmp_path, monkeypatch, capsys):
    words = write(tmp_path, VIEW2)
    (tmp_path / "mine.bin").write_text("kept")
    code, _, said = door(monkeypatch, capsys, *words, "folds=2")
    assert code == 1
    assert "is there already" in said
    assert (tmp_path / "mine.bin").read_text() == "kept"


@pytest.mark.data
def test_lfw(real_data, tmp_path, monkeypatch, capsys):
    lfw = real_data / "lfw"
    words = (f"source={lfw}/images", f"pairs={lfw}/pairs.txt", f"out={tmp_path}/lfw.bin")
    code, _, said = door(monkeypatch, capsys, "task=pairs", *words)
    assert (code, said) == (0, "")
    made = read_bin(tmp_path / "lfw.bin", "lfw", 10, 112)
    folder = read_folder(lfw / "images", lfw / "pairs.txt", "lfw", 10, 112)
    assert np.array_equal(made.pairs, folder.pairs) or len(made) < len(folder)  # LFW holds an image or two twice
    assert np.array_equal(made.same, folder.same)
    for pair in range(0, 6000, 500):
        for one, other in zip(made.pairs[pair], folder.pairs[pair], strict=True):
            np.testing.assert_array_equal(made.load(one), folder.load(other))
