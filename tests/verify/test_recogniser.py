"""Photographs become embeddings in the same way however they are given, and what has no face is named."""

import hashlib
import json
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from recognising import DETECTOR, SIZE, Small, faces, found, recogniser

import facelab
from facelab.configuration import defaults
from facelab.data.synthetic import render
from facelab.verify.finding import Finder
from facelab.verify.recogniser import Recogniser, load_model
from facelab.verify.thresholds import Point, Thresholds, beside

ROOT = Path(facelab.__file__).parents[1]


def test_paths_arrays_and_batches_give_the_same(tmp_path):
    folder = faces(tmp_path / "faces", people=3)
    files = sorted(folder.rglob("*.png"))
    model = recogniser(tmp_path)
    by_path = model.embed(files)
    assert by_path.shape == (9, 32)
    assert by_path.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(by_path, axis=1), 1, atol=1e-6)
    assert model.embedder.batches == [4, 4, 4, 4, 1, 1]  # image and mirrored image of each batch
    pixels = np.stack([cv2.imread(str(file))[..., ::-1] for file in files])
    np.testing.assert_array_equal(model.embed(pixels), by_path)
    np.testing.assert_array_equal(model.embed(list(pixels)), by_path)
    np.testing.assert_array_equal(model.embed(map(str, files)), by_path)
    np.testing.assert_array_equal(model.embed(model.align(files)), by_path)
    np.testing.assert_array_equal(model.embed(files[0]), by_path[:1])
    assert model.embed([]).shape == (0, 32)


def test_the_mirrored_image_is_added_once(tmp_path):
    image = render(0, 1, 2, SIZE, 0.3)[None]
    small = Small()
    plain, turned = small.embed(image), small.embed(image[:, :, ::-1])
    both = (plain + turned) / np.linalg.norm(plain + turned)
    np.testing.assert_allclose(recogniser(tmp_path).embed(image), both, atol=1e-6)
    np.testing.assert_array_equal(recogniser(tmp_path, mirror=False).embed(image), plain)
    own = Recogniser(tmp_path / "model.onnx", Small(mirror=True), Finder(SIZE, "none", DETECTOR, "single", 20), True, 4)
    np.testing.assert_array_equal(own.embed(image), plain)  # of a model that does so itself
    with pytest.raises(ValueError, match="exported with the mirrored image folded in"):
        Recogniser(tmp_path / "model.onnx", Small(mirror=True), Finder(SIZE, "none", DETECTOR, "single", 20), False, 4)


def test_weights_beside_a_model_are_part_of_what_it_is(tmp_path):
    """OpenVINO's two files: an evaluation of other weights, or a gallery, is not taken for one of these."""
    model, known = tmp_path / "model.xml", []
    model.write_bytes(b"<net/>")
    for weights in (b"one", b"other"):
        (tmp_path / "model.bin").write_bytes(weights)
        known += Recogniser(model, Small(), Finder(SIZE, "none", DETECTOR, "single", 20), True, 4).known
    assert known == [hashlib.sha256(b"<net/>" + weights).hexdigest() for weights in (b"one", b"other")]


def test_a_comparison_is_symmetric_and_its_verdict_is_the_thresholds(tmp_path):
    model = recogniser(tmp_path)
    one, other = render(0, 1, 0, SIZE, 0.3), render(0, 1, 1, SIZE, 0.3)
    score = model.compare(one, other).score
    assert score == pytest.approx(model.compare(other, one).score, abs=1e-7)
    assert model.compare(one, one).score == pytest.approx(1)
    rows = model.embed([one, other]).astype(np.float64)
    assert score == pytest.approx(rows[0] @ rows[1], abs=1e-6)
    assert model.compare(one, other).same is None
    digest = next(iter(model.known))
    points = (Point(0.01, score - 0.01, 0.1), Point(0.001, score + 0.01, 0.2))
    Thresholds("lfw", 1000, True, digest, {}, points).save(beside(model.path))
    again = recogniser(tmp_path)
    assert (again.compare(one, other, fmr=0.01).same, again.compare(one, other, fmr=0.005).same) == (True, False)
    assert "same person: score" in str(again.compare(one, other, fmr=0.02))
    with pytest.raises(ValueError, match="measured with mirror=true"):
        recogniser(tmp_path, mirror=False).compare(one, other, fmr=0.01)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([], "no face in 160 x 120 pixels"),
        ([(0, 0, 12)], "its largest face has 12 pixels, and 20 are asked for"),
        ([(0, 0, 40), (80, 40, 60), (120, 0, 29)], "has 2 faces; cut out the one"),
    ],
)
def test_a_photograph_without_one_face_is_refused_by_its_name(tmp_path, places, message):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((120, 160, 3), np.uint8))
    finder = Finder(SIZE, "auto", DETECTOR, "single", 20)
    finder.prepare = found(*places).prepare
    with pytest.raises(ValueError, match=rf"a\.png: {message}"):
        finder(tmp_path / "a.png")


def test_which_face_and_where_it_comes_to_lie():
    image = np.zeros((120, 160, 3), np.uint8)
    image[40:100, 80:140] = (200, 10, 20)
    for face, other in (("largest", 40), ("single", 29)):  # of single, what is small stands in the background
        finder = Finder(SIZE, "auto", DETECTOR, face, 20)
        finder.prepare = found((0, 0, other), (80, 40, 60)).prepare
        aligned = finder(image, "here")
        assert (aligned.found, aligned.face.side, aligned.pixels.shape) == (2, 60, (SIZE, SIZE, 3))
        assert tuple(aligned.pixels[SIZE // 2, SIZE // 2]) == (200, 10, 20)  # RGB in, RGB out


def test_what_cannot_be_read_is_told_in_one_line_and_without_filling_the_memory(tmp_path):
    finder = Finder(SIZE, "none", DETECTOR, "single", 20)
    (tmp_path / "text.jpg").write_text("no image")
    for side in (12_000, 60_000):  # more than is read, and more than Pillow opens
        head = b"IHDR" + side.to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
        bomb = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + head + zlib.crc32(head).to_bytes(4, "big")
        (tmp_path / f"{side}.png").write_bytes(bomb + bytes(4) + b"IDAT" + bytes(64))
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((40, 50, 3), np.uint8))
    whole = cv2.imencode(".jpg", render(0, 1, 0, SIZE, 0.3))[1].tobytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    for name, error, message in (
        ("none.jpg", FileNotFoundError, "no such photograph"),
        ("text.jpg", ValueError, "is no image"),
        ("cut.jpg", ValueError, "cut short"),
        ("12000.png", ValueError, "12,000 x 12,000 pixels, 134,217,728 at most"),
        ("60000.png", ValueError, "too many pixels"),
        ("wide.png", ValueError, "aligned faces are square"),
        (".", ValueError, "is a folder"),
    ):
        with pytest.raises(error, match=message) as caught:
            finder(tmp_path / name)
        assert str(tmp_path) in str(caught.value)
    for array in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), 3):
        with pytest.raises(ValueError, match=r"\(H,W,3\) uint8"):
            finder(array)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detect": "mtcnn"}, "detect is 'mtcnn': give one of auto, yunet, none"),
        ({"faces": "largest"}, "no option 'faces': did you mean face"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"precision": "int8"}, "threads=None, precision=int8: give a number above 0"),
        ({"mirror": "yes"}, "mirror is 'yes'"),
    ],
)
def test_options_are_checked(tmp_path, monkeypatch, options, message):
    monkeypatch.setattr("facelab.export.loading.load_embedder", lambda *_: Small())
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "model.onnx", **options)


def test_a_loaded_model_has_the_defaults_of_the_yaml(tmp_path, monkeypatch):
    monkeypatch.setattr("facelab.export.loading.load_embedder", lambda *_: Small())
    model = facelab.load_model(tmp_path / "model.onnx", detector="yunet.onnx", face="best")
    told = defaults("detection", "recognition")
    assert (model.mirror, model.batch_size, model.finder.detect) == (told["mirror"], told["batch_size"], told["detect"])
    assert model.finder._options == {**told["detector"], "model": "yunet.onnx"}
    assert model.finder.face == "best"


def test_the_package_stays_light():
    code = "import sys, facelab; print([m for m in ('torch', 'numpy', 'cv2', 'hydra', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == []
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        facelab.nothing  # noqa: B018
