"""Named data sets: opened from where the user has put them, in either layout, and counted."""

import struct
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import yaml

from facelab.data.folder import FolderFaces
from facelab.data.open import open_faces
from facelab.data.recordio import RecordIOFaces
from facelab.training.inspection import differences_from_known

CONF = Path(__file__).resolve().parents[2] / "conf" / "data"
SIZE = 8
IMAGE = cv2.imencode(".png", np.zeros((SIZE, SIZE, 3), np.uint8))[1].tobytes()


def write_pack(root):
    root.mkdir(parents=True)
    payloads = [struct.pack("<IfQQ", 0, label, 0, 0) + IMAGE for label in (0, 1)]
    frames = [struct.pack("<II", 0xCED7230A, len(p)) + p + bytes(-len(p) % 4) for p in payloads]
    (root / "train.rec").write_bytes(b"".join(frames))
    (root / "train.idx").write_text(f"0\t0\n1\t{len(frames[0])}\n")
    (root / "property").write_text(f"2,{SIZE},{SIZE}")
    return root


def write_folders(root):
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        (root / name / "1.png").write_bytes(IMAGE)
    return root


def test_what_lies_there_tells_the_layout(tmp_path):
    assert isinstance(open_faces(write_pack(tmp_path / "pack"), SIZE), RecordIOFaces)
    assert isinstance(open_faces(write_folders(tmp_path / "folders"), SIZE), FolderFaces)
    write_folders(tmp_path / "pack")  # benchmarks' folders beside a pack do not matter
    assert isinstance(open_faces(tmp_path / "pack", SIZE), RecordIOFaces)


@pytest.mark.parametrize("missing", ["train.rec", "train.idx", "property"])
def test_half_a_pack_is_told_as_one(tmp_path, missing):
    (write_pack(tmp_path / "pack") / missing).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{missing}: no such file; a set is train\.rec"):
        open_faces(tmp_path / "pack", SIZE)


def test_neither_layout(tmp_path):
    both = r"InsightFace's pack \(train\.rec, train\.idx and property\) or one folder of aligned images"
    with pytest.raises(FileNotFoundError, match=rf"data\.root=.*nowhere: no such folder; expected {both}"):
        open_faces(tmp_path / "nowhere", SIZE)
    with pytest.raises(ValueError, match=rf"expected {both}.*it is empty"):
        open_faces(tmp_path, SIZE)
    for number in range(8):
        (tmp_path / f"{number}.jpg").write_bytes(IMAGE)
    with pytest.raises(ValueError, match=rf"expected {both}.*there are 8 entries: 0\.jpg, 1\.jpg"):
        open_faces(tmp_path, SIZE)


def test_a_pack_one_folder_further_is_pointed_to(tmp_path):
    pack = write_pack(tmp_path / "faces" / "faces_emore")
    with pytest.raises(ValueError, match=rf"one folder further: give data\.root={pack}"):
        open_faces(tmp_path / "faces", SIZE)


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folders(tmp_path / "faces")
    assert len(open_faces("~/faces", SIZE)) == 2
    assert len(FolderFaces("~/faces", SIZE)) == 2


NAMED = sorted(path.stem for path in CONF.glob("*.yaml") if "open_faces" in path.read_text())


def test_the_named_sets():
    assert set(NAMED) == {
        "casia", "ms1mv2", "ms1mv3", "glint360k", "webface4m", "webface12m", "webface42m", "vggface2", "celeba"
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_a_named_set_says_what_it_should_hold(name):
    content = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert set(content["known"]) == {"name", "identities", "images"}
    assert 1_000 < content["known"]["identities"] < content["known"]["images"] / 15
    # Five million images take seven minutes on one core, and more from a cold disk: only where it is asked for.
    assert content.get("inspect", {"images": True})["images"] == (content["known"]["images"] < 5_000_000)


def test_counts_are_compared():
    known = {"name": "CASIA-WebFace", "identities": 10_572, "images": 490_623}

    class Source(SimpleNamespace):
        def __len__(self):
            return self.images

    assert differences_from_known(Source(num_classes=10_572, images=490_623), known) == ""
    assert differences_from_known(Source(num_classes=10_572, images=490_600), known) == (
        "not as CASIA-WebFace is known: 490,600 images instead of 490,623"
    )
    assert differences_from_known(Source(num_classes=10_575, images=494_414), known) == (
        "not as CASIA-WebFace is known: 10,575 identities instead of 10,572, 494,414 images instead of 490,623"
    )
    assert differences_from_known(Source(num_classes=3, images=9), None) == ""
