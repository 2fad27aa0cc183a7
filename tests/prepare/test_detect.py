"""Faces are found, coordinates are the photograph's, and the detector's file is the published one."""

import hashlib
import json

import cv2
import numpy as np
import pytest

from facelab.prepare import detector_file as files
from facelab.prepare.detect import CHOICES, Face, YuNet
from facelab.prepare.detector_file import Published, detector_file, published
from facelab.prepare.faces import Aligner, Keeper
from facelab.prepare.photograph import Unusable, encode

POINTS = np.zeros((5, 2))
SMALL_SURE = Face((0, 0, 20, 30), POINTS, 0.99)
LARGE = Face((100, 0, 90, 90), POINTS, 0.8)
CENTRAL = Face((80, 60, 40, 40), POINTS, 0.7)


@pytest.mark.parametrize(("choice", "face"), [("largest", LARGE), ("central", CENTRAL), ("best", SMALL_SURE)])
def test_which_of_several_faces(choice, face):
    assert max([SMALL_SURE, LARGE, CENTRAL], key=lambda one: CHOICES[choice](one, 160, 200)) is face


def aligner(found, **options):
    return Aligner(lambda image: found, **{"face": "best", "min_size": 25, "size": 32, "quality": 95, **options})


def test_small_faces_are_passed_over():
    image = np.frombuffer(encode(np.zeros((160, 200, 3), np.uint8), 95), np.uint8)
    with_points = [
        Face(face.box, np.random.default_rng(0).uniform(0, 90, (5, 2)), face.score)
        for face in (SMALL_SURE, LARGE, CENTRAL)
    ]
    made = aligner(with_points)(image)
    assert (made.about["found"], made.about["score"], made.about["width"]) == (3, 0.8, 90)
    assert cv2.imdecode(np.frombuffer(made.jpeg, np.uint8), 1).shape == (32, 32, 3)
    with pytest.raises(Unusable) as caught:
        aligner(with_points[:1])(image)
    assert (caught.value.reason, caught.value.detail) == ("too small", "the largest of 1 faces has 20 pixels")
    with pytest.raises(Unusable) as caught:
        aligner([])(image)
    assert (caught.value.reason, caught.value.detail) == ("no face", "in 200 x 160 pixels")


def test_aligned_images_stay_byte_for_byte_where_nothing_has_to_change():
    keep = Keeper(min_size=10, size=32, quality=95)
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (3, 3, 3), dtype=np.uint8), (32, 32))
    jpeg = encode(image, 71)
    assert keep(np.frombuffer(jpeg, np.uint8)).jpeg == jpeg
    png = cv2.imencode(".png", image)[1].ravel()
    assert np.abs(cv2.imdecode(np.frombuffer(keep(png).jpeg, np.uint8), 1).astype(int) - image).mean() < 4
    large = keep(cv2.imencode(".png", cv2.resize(image, (64, 64)))[1].ravel())
    assert large.about == {"pixels": 64}
    assert cv2.imdecode(np.frombuffer(large.jpeg, np.uint8), 1).shape == (32, 32, 3)
    for shape, reason in (((32, 40, 3), "not square"), ((9, 9, 3), "too small")):
        with pytest.raises(Unusable) as caught:
            keep(cv2.imencode(".png", np.zeros(shape, np.uint8))[1].ravel())
        assert caught.value.reason == reason


# The detector's file


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A public home with a file of its own, and an empty cache."""
    content = b"a network"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "net.onnx").write_bytes(content)
    monkeypatch.setattr(files, "published", lambda: Published("net.onnx", hashlib.sha256(content).hexdigest()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "home"


def test_it_is_fetched_once(home, capsys):
    url = home.as_uri() + "/"
    assert detector_file(None, url) == b"a network"
    assert "fetching the face detector, once" in capsys.readouterr().out
    (home / "net.onnx").unlink()
    assert detector_file(None, url) == b"a network"
    assert [entry.name for entry in (home.parent / "cache" / "facelab").iterdir()] == ["net.onnx"]


def test_another_content_than_the_published_is_thrown_away(home):
    (home / "net.onnx").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"not the published file.*detector\.model=FILE"):
        detector_file(None, home.as_uri() + "/")
    assert not (home.parent / "cache").exists()


def test_a_damaged_copy_in_the_cache_is_fetched_again(home):
    (home.parent / "cache" / "facelab").mkdir(parents=True)
    (home.parent / "cache" / "facelab" / "net.onnx").write_bytes(b"a netw")
    assert detector_file(None, home.as_uri() + "/") == b"a network"


def test_without_a_network_the_message_says_what_to_bring(home):
    with pytest.raises(
        FileNotFoundError, match=r"bring file://.*/nowhere/net\.onnx .*detector\.model=FILE.*detect=none"
    ):
        detector_file(None, (home / "nowhere").as_uri() + "/")


def test_a_given_file_is_taken_as_it_is(home):
    assert detector_file(str(home / "net.onnx")) == b"a network"
    with pytest.raises(FileNotFoundError, match=r"detector\.model=.*none\.onnx: no such file"):
        detector_file(str(home / "none.onnx"))


def test_each_opencv_has_its_own_published_file(monkeypatch):
    monkeypatch.setattr(cv2, "__version__", "4.11.0")
    fixed = published()
    monkeypatch.setattr(cv2, "__version__", "5.0.0")
    assert (fixed.name, published().name) == ("face_detection_yunet_2023mar.onnx", "face_detection_yunet_2026may.onnx")
    assert len(fixed.sha256) == len(published().sha256) == 64


def test_a_file_that_is_no_network_is_refused(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"x\.onnx is nothing that OpenCV .* can use"):
        YuNet(str(tmp_path / "x.onnx"), 0.7, 640, [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((0, 640, []), r"detector\.threshold is 0: give a score between 0 and 1"),
        ((1.5, 640, []), r"detector\.threshold is 1\.5"),
        ((0.7, 8, []), "give 32 or more"),
        ((0.7, 640, [320, 9]), "give 32 or more"),
        ((0.7, 64.5, []), r"detector\.longest_side is 64\.5: give a value of type int"),
    ],
)
def test_values_out_of_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        YuNet(None, *options)


# The detector itself


@pytest.fixture(scope="module")
def weights(real_data):
    name = "yunet_n_dynamic.onnx" if int(cv2.__version__.split(".")[0]) >= 5 else "yunet_n_320_320.onnx"
    return str(real_data / "weights" / name)


@pytest.mark.data
def test_points_are_those_that_were_found_elsewhere(real_data, weights):
    detect = YuNet(weights, 0.7, 640, [])
    landmarks = json.loads((real_data / "photos" / "landmarks.json").read_text())
    for name, about in list(landmarks.items())[::4]:
        faces = detect(cv2.imread(str(real_data / "photos" / name)))
        best = min(faces, key=lambda face: np.abs(face.points - about["points"]).max())
        assert np.abs(best.points - about["points"]).max() < 0.1
        assert abs(best.score - about["score"]) < 0.01


@pytest.mark.data
def test_coordinates_are_the_photographs_at_every_size(real_data, weights):
    image = cv2.imread(str(next((real_data / "photos").glob("*/*_0001.jpg"))))
    plain = max(YuNet(weights, 0.7, 640, [])(image), key=lambda face: face.score)
    large = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    shrunk = max(YuNet(weights, 0.7, 250, [])(large), key=lambda face: face.score)
    assert np.abs((shrunk.points + 0.5) / 4 - 0.5 - plain.points).max() < 1.5
    assert np.abs(np.array(shrunk.box) / 4 - plain.box).max() < 4


@pytest.mark.data
def test_other_sizes_are_tried_where_nothing_is_found(real_data, weights):
    image = cv2.imread(str(next((real_data / "photos").glob("*/*_0001.jpg"))))
    canvas = np.zeros((1600, 1600, 3), np.uint8)
    canvas[800 : 800 + 62, 800 : 800 + 62] = cv2.resize(image, (62, 62), interpolation=cv2.INTER_AREA)
    assert YuNet(weights, 0.7, 160, [])(canvas) == []
    found = YuNet(weights, 0.7, 160, [1600])(canvas)
    assert len(found) == 1
    assert 800 < found[0].points.mean() < 862
