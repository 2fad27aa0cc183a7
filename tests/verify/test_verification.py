"""What the command says, draws and refuses; on real photographs, where they are."""

import json

import cv2
import numpy as np
import pytest
from recognising import SIZE, faces, recogniser

from facelab.configuration import defaults
from facelab.door import with_words
from facelab.verify import __main__ as door
from facelab.verify import verification
from facelab.verify.finding import Aligned
from facelab.verify.picture import draw
from facelab.verify.quality import Quality, brisque_or_none, quality_of
from facelab.verify.recogniser import Comparison
from facelab.verify.thresholds import Point, Thresholds, beside
from facelab.verify.verification import verify


def choices(**given):
    return {**defaults("detection", "recognition", "verify"), **given}


@pytest.fixture
def opened(tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "open_recogniser", lambda config: recogniser(tmp_path))
    faces(tmp_path / "f", people=2, images=2)
    return tmp_path


def test_the_verdict_is_said_drawn_and_written(opened, capsys):
    pair = [str(opened / "f" / "p0" / "0.png"), str(opened / "f" / "p0" / "1.png")]
    points = (Point(0.01, -0.5, 0.02), Point(0.001, 0.9999, 0.5))
    Thresholds("lfw", 3000, True, "x", {}, points).save(beside(recogniser(opened).path))
    found = verify(choices(photographs=pair, fmr=0.01, out=str(opened / "out")))
    told = capsys.readouterr().out
    assert found.same is True
    assert "same person   score" in told
    assert "FMR at most 1e-2, measured on lfw (3,000 impostor pairs, mirrored images added), FNMR there 2.00 %" in told
    assert verify(choices(photographs=pair, fmr=0.001, out=None)).same is False
    about = json.loads((opened / "out" / "0_1.json").read_text())
    assert (about["same"], about["fmr"], about["score"]) == (True, 0.01, found.score)
    assert about["threshold"] == -0.5
    picture = cv2.imread(str(opened / "out" / "0_1.png"))
    assert picture.shape[0] > 400
    assert sorted(path.name for path in (opened / "out").iterdir()) == ["0_1.json", "0_1.png"]


def test_a_threshold_of_ones_own_and_none_at_all(opened, capsys):
    pair = [str(opened / "f" / "p0" / "0.png"), str(opened / "f" / "p1" / "0.png")]
    assert verify(choices(photographs=pair, threshold=0.9999, out=None)).same is False
    assert "its FMR is not known" in capsys.readouterr().out
    assert verify(choices(photographs=pair, fmr=None, out=None)).same is None
    assert "no verdict   score" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"photographs": ["a.jpg"]}, "two photographs are compared, 1 were given"),
        ({"photographs": ["a.jpg", "b.jpg"]}, r"a\.jpg: no such photograph"),
        ({"photographs": "P", "fmr": 2.0}, "fmr is 2: give a false match rate between 0 and 1"),
        ({"photographs": "P", "fmr": True}, "fmr is True"),
        ({"photographs": "P", "threshold": 3.0}, "threshold is 3.0: give a cosine"),
        ({"photographs": "P"}, "has no thresholds with it"),
        ({"photographs": "P", "evaluation": "nowhere"}, "evaluation=nowhere: has no scores"),
    ],
)
def test_wrong_words_are_refused_and_nothing_is_written(opened, monkeypatch, given, message):
    pair = [str(opened / "f" / "p0" / "0.png"), str(opened / "f" / "p1" / "0.png")]
    if given["photographs"] == "P":
        given = {**given, "photographs": pair}
    monkeypatch.chdir(opened)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        verify(choices(**given))
    assert not (opened / "runs").exists()


def test_the_picture_shows_both_faces_and_the_score_where_it_belongs():
    one, other = (Aligned(np.full((SIZE, SIZE, 3), value, np.uint8), f"{value}.png") for value in (20, 200))
    quality = Quality(80.0, 0.9, 31.0, 12.0)
    canvas = draw(Comparison(0.7, True, Point(0.01, 0.4, 0.1), (one, other)), [quality, quality], "FMR at most 1e-2")
    first, second, scale = canvas.figure.axes
    assert [axes.images[0].get_array().max() for axes in (first, second)] == [20, 200]
    assert scale.lines[-1].get_xdata() == [0.7]
    assert scale.lines[0].get_xdata() == [0.4, 0.4]
    words = [text.get_text() for text in canvas.figure.texts]
    assert {"same person", "score 0.7000", "FMR at most 1e-2"} <= set(words)
    assert first.get_xlabel() == "face of 80 pixels, detector 0.90\nBRISQUE 31 (lower is better), norm 12.0"


def test_a_flat_face_has_no_brisque():
    flat = Aligned(np.full((SIZE, SIZE, 3), 9, np.uint8), "flat")
    assert quality_of(flat, brisque_or_none(), None) == (None, None, None, None)
    assert str(quality_of(flat, None, 3.0)) == "norm 3.0"


def test_plain_words_are_photographs(tmp_path, monkeypatch):
    assert with_words(["a.jpg", "model=x", "b c.jpg", "--cfg", "job"], "photographs") == [
        "photographs=['a.jpg','b c.jpg']", "model=x", "--cfg", "job",
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mode=1.jpg").touch()
    assert with_words(["mode=1.jpg", "fmr=1"], "p") == ["p=['mode=1.jpg']", "fmr=1"]
    assert with_words(["~fmr", "+x=1", "./a=b"], "p") == ["p=['./a=b']", "~fmr", "+x=1"]
    assert with_words(["a.jpg"], None) == ["a.jpg"]
    assert with_words(["a.jpg", "--cfg"], "p") == ["a.jpg", "--cfg"]  # which is refused in words of its own


def test_the_command_ends_in_one_line(tmp_path, monkeypatch, capsys):
    for name in ("it's 1.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((9, 9, 3), np.uint8))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["facelab.verify", "it's 1.png", "b.png", "model=none.onnx"])
    with pytest.raises(SystemExit) as caught:
        door.main()
    assert caught.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith("facelab: none.onnx: no such file")
    assert told.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.png", "it's 1.png"]


@pytest.mark.data
def test_real_photographs_with_published_weights(real_data, tmp_path, capsys):
    weights = real_data / "weights"
    common = choices(
        model=str(weights / "mobilefacenet_y1.npz"), network="mobilefacenet", threshold=0.3, out=str(tmp_path)
    )
    name = "yunet_n_dynamic.onnx" if int(cv2.__version__.split(".")[0]) >= 5 else "yunet_n_320_320.onnx"
    common["detector"] = {**common["detector"], "model": str(weights / name)}
    photos = real_data / "photos"
    one, two = (str(photos / "Mike_Myers" / f"Mike_Myers_000{i}.jpg") for i in (1, 2))
    other = str(photos / "Howard_Dean" / "Howard_Dean_0001.jpg")
    same, different = verify({**common, "photographs": [one, two]}), verify({**common, "photographs": [one, other]})
    assert (same.same, different.same) == (True, False)
    assert same.score > 0.5 > 0.25 > different.score
    landmarks = json.loads((photos / "landmarks.json").read_text())
    assert same.faces[0].found >= 1
    key = next(key for key in landmarks if key.endswith("Mike_Myers_0001.jpg"))
    np.testing.assert_allclose(same.faces[0].face.points, landmarks[key]["points"], atol=3)
