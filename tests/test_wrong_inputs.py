"""What a new user brings that is wrong: each ends in one line that says what to do, or trains and says what it did.

Elsewhere: wrong values and misspelt names in test_door.py; damaged packs in data/test_recordio.py; damaged pickles in
benchmark/test_safe_pickle.py; a full disk under metrics.csv and a checkpoint in training/test_record.py and
training/test_checkpoint.py; W&B that fails while a run goes on in training/test_logging.py.
"""

import csv
import errno
import json
import logging
import os
import pickle
import socket
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
import wandb
import yaml
from hydra.core.global_hydra import GlobalHydra

from facelab import train
from facelab.training import saving, wandb_run

SIZE = 32
SMALL = [
    "logger=csv",
    "job=mine",
    f"data.size={SIZE}",
    "data.holdout.fraction=0.4",
    "benchmark.count=16",
    "benchmark.folds=2",
    "backbone.widths=[16,16,16,16]",
    "backbone.embedding_size=16",
    "trainer.batch_size=8",
    "trainer.max_steps=1",
    "trainer.precision=fp32",
    "trainer.progress=false",
]


def picture(seed, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, channels), dtype=np.uint8)


def jpeg(seed, channels=3, colours="RGB"):
    return simplejpeg.encode_jpeg(picture(seed, channels), 80, colours)


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


def write_faces(root, people=12, images=4):
    for person in range(people):
        (root / f"person {person:02d}").mkdir(parents=True)
        for number in range(images):
            (root / f"person {person:02d}" / f"{number}.jpg").write_bytes(jpeg(100 * person + number))
    return root


def write_pack(root, labels, classes):
    root.mkdir()
    offsets, content = [], b""
    for number, label in enumerate(labels):
        payload = struct.pack("<IfQQ", 0, label, 0, 0) + jpeg(number)
        offsets.append(len(content))
        content += struct.pack("<II", 0xCED7230A, len(payload)) + payload + bytes(-len(payload) % 4)
    (root / "train.rec").write_bytes(content)
    (root / "train.idx").write_text("".join(f"{key}\t{offset}\n" for key, offset in enumerate(offsets)))
    (root / "property").write_text(f"{classes},{SIZE},{SIZE}")
    return root


class Typed:
    """The command line in this process: `runs(…)` trains and gives what was printed, `told(…)` gives the one line."""

    def __init__(self, folder, monkeypatch, capsys):
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        self.run = folder / "runs" / "default" / "mine"

    def _call(self, words):
        GlobalHydra.instance().clear()
        self.monkeypatch.setattr(sys, "argv", ["facelab.train", f"out={self.folder / 'runs'}", *SMALL, *words])
        self.capsys.readouterr()
        try:
            train.main()
            code = 0
        except SystemExit as ended:
            code = ended.code
        return code, *self.capsys.readouterr()

    def runs(self, *words):
        code, out, err = self._call(words)
        assert code == 0, err
        assert (self.run / "metrics.json").is_file()
        return " ".join(out.split())

    def told(self, *words):
        code, _, err = self._call(words)
        assert code == 1, err
        assert err.startswith("facelab: ")
        assert err.count("\n") == 1, err
        assert not (self.run / "config.yaml").exists(), "the folder belongs to a run that never began"
        return err.removeprefix("facelab: ").rstrip("\n")

    @property
    def rows(self):
        """images.csv: its head, and its rows by name."""
        with open(self.run / "images.csv", newline="", encoding="utf-8") as lines:
            head = json.loads(lines.readline().removeprefix("# "))
            return head, {row["name"]: row for row in csv.DictReader(lines)}


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.delenv("FACELAB_TRACEBACK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    handlers, level = logging.root.handlers[:], logging.root.level
    yield Typed(tmp_path, monkeypatch, capsys)
    GlobalHydra.instance().clear()
    logging.root.handlers[:], logging.root.level = handlers, level


@pytest.fixture
def faces(tmp_path):
    """Twelve people with four images each: eight or seven of them are trained on."""
    return write_faces(tmp_path / "faces")


# Identities


def test_an_empty_identity_folder_is_left_out_and_named(typed, faces):
    (faces / "nobody").mkdir()
    (faces / "no image").mkdir()
    (faces / "no image" / "notes.txt").write_text("nothing here")
    said = typed.runs("data=folder", f"data.root={faces}")
    assert "48 looked at: 2 empty folders left out; named in images.csv" in said
    head, rows = typed.rows
    assert head["empty folder"] == 2
    assert set(rows) == {"nobody", "no image"}


def test_one_identity_only(typed, tmp_path):
    faces = write_faces(tmp_path / "faces", people=1)
    (faces / "nobody").mkdir()
    line = typed.told("data=folder", f"data.root={faces}")
    assert line.startswith(f"{faces}: has images of one identity only ('person 00'), 2 are needed")
    line = typed.told("data=recordio", f"data.root={write_pack(tmp_path / 'pack', [0] * 9, 1)}")
    assert line.endswith("train.rec: has images of one identity only (label 0), 2 are needed")


def test_a_union_of_folders_that_are_not_there(typed, tmp_path, faces):
    line = typed.told("data=union", f"data.roots=['{faces}',nowhere,also/nowhere]")
    assert line.startswith("data.roots: no such folder: nowhere, also/nowhere; each is InsightFace's pack or has one")
    line = typed.told("data=union", f"data.roots=['{faces}','{faces}/']")
    assert line.startswith(f"data.roots names {faces} and {faces}/, one folder: its images would count twice")
    assert typed.told("data=union", "data.roots=nowhere") == (
        "data.roots is 'nowhere': give a value of type list of str"
    )
    assert typed.told("data=union").startswith("data.roots has no value")


def test_one_identity_left_by_what_is_skipped(typed, tmp_path):
    faces = write_faces(tmp_path / "faces", people=10)
    for person in range(1, 10):
        for image in (faces / f"person {person:02d}").iterdir():
            image.write_bytes(b"")
    line = typed.told("data=folder", f"data.root={faces}", "data.inspect.unreadable=skip")
    assert line.startswith("data: 4 of 40 images are kept, and they are not of two identities")


def test_a_label_outside_the_classes(typed, tmp_path):
    root = write_pack(tmp_path / "pack", [0, 0, 1, 1, 5, 5], 3)
    line = typed.told("data=recordio", f"data.root={root}")
    assert "train.rec: the record of key 4" in line
    assert "has the label 5, but property says 3 identities, 0 to 2" in line
    assert line.endswith(f"write 6,{SIZE},{SIZE} into property")


# Images


@pytest.fixture
def damaged(faces):
    """Three images that cannot be used, one in each of three ways."""
    (faces / "person 00" / "0.jpg").write_bytes(b"<html>404</html>")
    (faces / "person 03" / "1.jpg").write_bytes(jpeg(301)[:-40])
    wide = np.ascontiguousarray(np.concatenate([picture(1), picture(2)], axis=1))
    (faces / "person 05" / "2.jpg").write_bytes(simplejpeg.encode_jpeg(wide))
    return faces


def test_unreadable_images_stop_the_run_and_are_all_named(typed, damaged):
    line = typed.told("data=folder", f"data.root={damaged}")
    assert line == (
        "data: of 48 images 3 unreadable; the first is person 00/0.jpg (is no image), all are named in "
        f"{typed.run / 'images.csv'}: mend or remove them, or leave them out with data.inspect.unreadable=skip"
    )
    head, rows = typed.rows
    assert (head["images"], head["ordinary"], head["unreadable"]) == (48, 45, 3)
    assert list(rows) == ["person 00/0.jpg", "person 03/1.jpg", "person 05/2.jpg"]
    assert {row["done"] for row in rows.values()} == {"stops the run"}
    assert rows["person 03/1.jpg"]["why"] == "Premature end of JPEG file"
    assert rows["person 05/2.jpg"]["why"].startswith(f"is {SIZE}×{2 * SIZE} pixels, not square: align")
    # Once they are mended, the same command looks again and trains in the same folder.
    for name in rows:
        (damaged / name).write_bytes(jpeg(1))
    assert "48 looked at: all are 8-bit RGB JPEG" in typed.runs("data=folder", f"data.root={damaged}")
    assert typed.rows[1] == {}


def test_unreadable_images_are_left_out_on_request_and_stay_out(typed, damaged):
    words = ["data=folder", f"data.root={damaged}", "data.inspect.unreadable=skip"]
    said = typed.runs(*words)
    assert "48 looked at: 3 unreadable skipped; named in images.csv" in said
    found = json.loads((typed.run / "environment.json").read_text())["data"]["found"]
    assert found == {"ordinary": 45, "unreadable": 3}
    trained = said.split(" images to train on")[0].rsplit(" ", 1)[1]
    # Resumed, the run trains on what it began with, though one of them can be read by now.
    (damaged / "person 03" / "1.jpg").write_bytes(jpeg(301))
    (typed.run / "metrics.json").unlink()
    said = typed.runs(*words)
    assert "3 unreadable skipped" in said
    assert f" {trained} images to train on" in said
    (damaged / "person 03" / "9.jpg").write_bytes(jpeg(9))
    (typed.run / "metrics.json").unlink()
    code, _, err = typed._call(words)
    assert code == 1
    assert "this run began with 48 images, and now there are 49: put the data set back as it was" in err


def test_an_identity_whose_images_are_all_skipped_vanishes(typed, faces):
    for image in (faces / "person 04").iterdir():
        image.write_bytes(b"")
    line = typed.runs("data=folder", f"data.root={faces}", "data.inspect.unreadable=skip")
    assert "7 identities, 28 images to train on" in line  # of eleven, four are held out


def test_without_a_look_an_unreadable_image_stops_training_by_its_name(typed, faces):
    for image in faces.rglob("[123].jpg"):
        image.write_bytes(b"<html>404</html>")
    code, _, err = typed._call(["data=folder", f"data.root={faces}", "data.inspect.images=false"])
    assert code == 1
    assert err.count("\n") == 1
    assert ".jpg: is not a readable image; remove it, or have all such images found and left out" in err
    assert err.endswith("data.inspect.images=true data.inspect.unreadable=skip\n")


@pytest.fixture
def unusual(faces):
    """Four images that can be read, and are not what published sets hold."""
    (faces / "person 00" / "0.jpg").write_bytes(jpeg(1, 1, "GRAY"))
    (faces / "person 03" / "1.jpg").write_bytes(jpeg(2, 4, "CMYK"))
    (faces / "person 05" / "2.png").write_bytes(png(picture(3).astype(np.uint16) * 257))
    (faces / "person 07" / "3.png").write_bytes(png(picture(4)))
    return faces


KINDS = {"grayscale", "CMYK", "16-bit", "PNG"}


@pytest.mark.parametrize(("choice", "done"), [("keep", "kept"), ("skip", "skipped")])
def test_unusual_images_are_kept_or_left_out_and_named(typed, unusual, choice, done):
    said = typed.runs("data=folder", f"data.root={unusual}", f"data.inspect.unusual={choice}")
    assert (
        f"50 looked at: 1 grayscale {done}, 1 CMYK {done}, 1 16-bit {done}, 1 PNG {done}; named in images.csv" in said
    )
    _, rows = typed.rows
    assert {row["kind"] for row in rows.values()} == KINDS
    assert {row["done"] for row in rows.values()} == {done}


def test_unusual_images_stop_the_run_on_request(typed, unusual):
    line = typed.told("data=folder", f"data.root={unusual}", "data.inspect.unusual=stop")
    assert "1 grayscale, 1 CMYK, 1 16-bit, 1 PNG; the first is person 00/0.jpg (grayscale)" in line
    assert line.endswith("data.inspect.unusual=skip")
    assert len(typed.rows[1]) == 4


def test_a_choice_that_there_is_not(typed, faces):
    line = typed.told("data=folder", f"data.root={faces}", "data.inspect.unreadable=ignore")
    assert line == "data.inspect.unreadable is 'ignore': give one of stop, skip"


# Named sets


def test_counts_that_differ_from_the_known_ones_are_told_and_recorded(typed, faces):
    said = typed.runs("data=casia", f"data.root={faces}")
    assert "CASIA-WebFace: " in said
    assert "known not as CASIA-WebFace is known: 12 identities instead of 10,572, 48 images instead of 490,623" in said
    recorded = json.loads((typed.run / "environment.json").read_text())["data"]
    assert (recorded["identities"], recorded["images"], recorded["known"]["images"]) == (12, 48, 490_623)


# Pairs


def test_a_bin_whose_pairs_are_odd(typed, faces, tmp_path):
    (faces / "lfw.bin").write_bytes(pickle.dumps(([jpeg(number) for number in range(7)], [True, False, True, False])))
    line = typed.told("data=casia", f"data.root={faces}", "benchmark=lfw")
    assert line.startswith(f"{faces / 'lfw.bin'}: 7 images for 4 pairs; a pair has two images")


def test_pairs_of_people_who_are_not_there(typed, faces, tmp_path):
    people = [f"person {number:02d}" for number in range(10)] + [f"Stranger_{number}" for number in range(15)]
    lines = [f"{person}\t1\t2" for person in people] + [f"{person}\t1\tperson 00\t1" for person in people]
    (tmp_path / "pairs.txt").write_text("\n".join([str(len(people)), *lines]))
    line = typed.told(
        *("data=folder", f"data.root={faces}"), f"benchmark.path={faces}", f"benchmark.pairs={tmp_path / 'pairs.txt'}"
    )
    assert "15 of the 25 people that pairs.txt names have no folder there" in line
    assert all(person in line for person in people[10:])


# Places


@pytest.mark.parametrize("name", ["내 얼굴 사진", "faces (2) of O'Neil, #1"])
def test_a_path_with_blanks_and_letters_that_hydra_does_not_know(typed, faces, tmp_path, name):
    root = faces.rename(tmp_path / name)
    typed.runs("data=folder", f"data.root={root}")
    assert yaml.safe_load((typed.run / "config.yaml").read_text(encoding="utf-8"))["data"]["root"] == str(root)


def test_a_data_root_that_cannot_be_written(typed, faces):
    def everything():
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in [faces, *faces.rglob("*")]}

    for path in [*faces.rglob("*"), faces]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = everything()  # whoever is allowed everything must leave it as it is, too
    try:
        typed.runs("data=folder", f"data.root={faces}")
        assert everything() == before
    finally:
        for path in [faces, *(path for path in faces.rglob("*") if path.is_dir())]:
            path.chmod(0o755)


def test_no_disk_left(typed, faces, monkeypatch):
    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    words = ["data=folder", f"data.root={faces}"]
    with monkeypatch.context() as patched:
        patched.setattr(saving, "save_file", full)
        code, _, err = typed._call(words)
    assert code == 1
    assert err.count("\n") == 1
    assert ".ckpt cannot be written" in err
    assert "No space left on device" in err
    assert "free some space), and start the same command again" in err
    assert list((typed.run / "checkpoints").iterdir()) == []
    typed.runs(*words)


def test_wandb_that_cannot_be_reached(typed, faces, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=SimpleNamespace(base_url=url)))
    monkeypatch.setattr(wandb_run, "getproxies", dict)
    line = typed.told("data=folder", f"data.root={faces}", "logger=wandb", "logger.mode=online")
    assert line.startswith("W&B cannot be reached (127.0.0.1: Connection refused)")
    assert line.endswith("set logger.mode=offline and sync later, or logger=csv for metrics.csv alone")
    assert not typed.run.exists()
