"""From photographs to a set: complete or not there, resumed without doing anything twice, nothing lost in silence."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import hydra
import numpy as np
import pytest
from omegaconf import OmegaConf

from facelab.data.folder import FolderFaces
from facelab.data.recordio import RecordIOFaces
from facelab.door import configuration_folder
from facelab.prepare import photos
from facelab.prepare.faces import Keeper
from facelab.training.preemption import Interrupted

SIZE = 32


def picture(seed, size=SIZE):
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC)


def fill(root, people=4, each=5):
    """A folder of aligned images, every third of another size; `root/p1/2.jpg` and so on."""
    for person in range(people):
        (root / f"p{person}").mkdir(parents=True)
        for number in range(each):
            image = picture(person * each + number, SIZE if number % 3 else 48)
            (root / f"p{person}" / f"{number}.jpg").write_bytes(cv2.imencode(".jpg", image)[1].tobytes())
    return root


def choices(source, out, **given):
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose("prepare", [f"source='{source}'", f"out='{out}'"]))
    del config["_target_"]
    return {**config, "detect": "none", "size": SIZE, "part": 4, "shown": 6, "progress": False, **given}


def rows(file):
    with open(file, newline="", encoding="utf-8", errors="surrogateescape") as opened:
        return list(csv.DictReader(opened))


def test_a_pack_with_its_tables_sheet_and_report(tmp_path, capsys):
    photos.prepare(**choices(fill(tmp_path / "in"), tmp_path / "out"))
    faces = RecordIOFaces(tmp_path / "out", SIZE)
    assert (len(faces), faces.num_classes) == (20, 4)
    names = [line.split("\t")[1] for line in (tmp_path / "out" / "train.lst").read_text().splitlines()]
    assert names == [f"p{person}/{number}.jpg" for person in range(4) for number in range(5)]
    for number in (1, 2, 4):  # of the right size: as they were
        assert faces.encoded(number).tobytes() == (tmp_path / "in" / names[number]).read_bytes()
    assert faces.load(0).shape == (SIZE, SIZE, 3)
    assert [row["pixels"] for row in rows(tmp_path / "out" / "faces.csv")][:5] == ["48", "32", "32", "48", "32"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {key: report[key] for key in ("images", "faces", "identities", "failures")} == {
        "images": 20,
        "faces": 20,
        "identities": 4,
        "failures": {},
    }
    assert cv2.imread(str(tmp_path / "out" / "sheet.png")).shape == (2 * SIZE, 3 * SIZE, 3)
    assert not (tmp_path / "out" / "failures.png").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert "20 faces of 4 identities, of 20 photographs" in capsys.readouterr().out


def test_a_folder_and_a_pack_of_it_hold_the_same(tmp_path):
    photos.prepare(**choices(fill(tmp_path / "in"), tmp_path / "folder", layout="folder"))
    photos.prepare(**choices(tmp_path / "folder", tmp_path / "pack"))
    photos.prepare(**choices(tmp_path / "pack", tmp_path / "again", layout="folder"))
    folder, pack = FolderFaces(tmp_path / "folder", SIZE), RecordIOFaces(tmp_path / "pack", SIZE)
    again = FolderFaces(tmp_path / "again", SIZE)
    assert folder.identity_names == ["p0", "p1", "p2", "p3"]
    assert again.identity_names == folder.identity_names
    for number in range(20):
        assert folder.encoded(number).tobytes() == pack.encoded(number).tobytes()
    assert sorted(folder.encoded(i).tobytes() for i in range(20)) == sorted(
        again.encoded(i).tobytes() for i in range(20)
    )


def test_what_gives_no_face_is_named_with_its_reason(tmp_path, capsys):
    root = fill(tmp_path / "in")
    (root / "p0" / "0.jpg").write_bytes((root / "p0" / "0.jpg").read_bytes()[:-50])
    (root / "p0" / "1.jpg").write_bytes(b"")
    cv2.imwrite(str(root / "p1" / "wide.png"), np.zeros((20, 40, 3), np.uint8))
    cv2.imwrite(str(root / "p1" / "tiny.png"), np.zeros((8, 8, 3), np.uint8))
    (root / "p2" / "notes.txt").write_text("about p2")
    (root / "lost").mkdir()
    (root / "lost" / "1.jpg").write_bytes(b"no image at all")
    photos.prepare(**choices(root, tmp_path / "out"))
    found = {row["photograph"]: (row["identity"], row["reason"]) for row in rows(tmp_path / "out" / "failures.csv")}
    assert found == {
        "p0/0.jpg": ("p0", "unreadable"),
        "p0/1.jpg": ("p0", "unreadable"),
        "p1/wide.png": ("p1", "not square"),
        "p1/tiny.png": ("p1", "too small"),
        "p2/notes.txt": ("p2", "no image by its name"),
        "lost/1.jpg": ("lost", "unreadable"),
    }
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["failures"] == {"no image by its name": 1, "unreadable": 3, "not square": 1, "too small": 1}
    assert (report["images"], report["faces"], report["identities_left_out"]) == (23, 18, 1)
    assert cv2.imread(str(tmp_path / "out" / "failures.png")) is not None
    faces = RecordIOFaces(tmp_path / "out", SIZE)
    assert faces.num_classes == 4  # those with faces, numbered without a gap
    assert "p3" in (tmp_path / "out" / "identities.csv").read_text()
    assert "left out: 1 no image by its name, 3 unreadable" in capsys.readouterr().out


def test_a_source_without_a_face_is_an_error_that_says_where_the_reasons_are(tmp_path):
    for name in ("a/1.jpg", "b/1.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        (tmp_path / "in" / name).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"no face was found in any of 2 photographs: the reasons stand in .*failures"):
        photos.prepare(**choices(tmp_path / "in", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert len(rows(tmp_path / ".unfinished-out" / "failures.csv")) == 2
    (tmp_path / "in" / "a" / "1.jpg").write_bytes(cv2.imencode(".jpg", picture(0))[1].tobytes())
    with pytest.raises(ValueError, match="faces of one identity only were found among 2 photographs"):
        photos.prepare(**choices(tmp_path / "in", tmp_path / "out", size=16))


def test_started_again_it_says_that_it_is_finished_and_another_job_is_refused(tmp_path, capsys):
    job = choices(fill(tmp_path / "in"), tmp_path / "out")
    photos.prepare(**job)
    before = (tmp_path / "out" / "train.rec").stat().st_mtime_ns
    capsys.readouterr()
    photos.prepare(**{**job, "threads": 1})
    assert "is finished already" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match=r"finished set of another job \(quality was 95, is 80\)"):
        photos.prepare(**{**job, "quality": 80})
    (tmp_path / "in" / "p0" / "0.jpg").unlink()
    with pytest.raises(FileExistsError, match=r"another job \(the photographs changed\)"):
        photos.prepare(**job)
    assert (tmp_path / "out" / "train.rec").stat().st_mtime_ns == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("not to be touched")
    with pytest.raises(FileExistsError, match="is there already: remove it, or give another out="):
        photos.prepare(**{**job, "out": str(tmp_path / "mine")})


class Stopping:
    """Asks to stop after a number of images, as Ctrl-C does, and counts them."""

    def __init__(self, after):
        self.after, self.made = after, 0

    def __call__(self, encoded):
        self.made += 1
        if self.made == self.after:
            os.kill(os.getpid(), signal.SIGINT)
        return Keeper(20, SIZE, 95)(encoded)


def test_it_goes_on_where_it_was_stopped_and_makes_nothing_twice(tmp_path, monkeypatch, capsys):
    job = choices(fill(tmp_path / "in", people=8, each=8), tmp_path / "out", threads=1, part=8)
    maker = Stopping(after=30)
    monkeypatch.setitem(photos.WAYS, "none", lambda *args, **options: (maker, {}))
    with pytest.raises(Interrupted, match=r"stopped by SIGINT; \d+ of 64 photographs are done, and the same command"):
        photos.prepare(**job)
    assert not (tmp_path / "out").exists()
    kept = 8 * len(list((tmp_path / ".unfinished-out" / "parts").glob("*.part")))
    assert 0 < kept < 64
    with pytest.raises(ValueError, match=r"unfinished set of another job \(min_size was 20, is 30\): start that one"):
        photos.prepare(**{**job, "min_size": 30})
    damaged = sorted((tmp_path / ".unfinished-out" / "parts").glob("*.part"))[0]
    os.truncate(damaged, damaged.stat().st_size - 1)  # of no complete part is anything believed
    maker = Stopping(after=0)
    photos.prepare(**job)
    assert maker.made == 64 - kept + 8
    assert "going on: " in capsys.readouterr().out
    photos.prepare(**{**job, "out": str(tmp_path / "alone"), "threads": 3})
    assert (tmp_path / "out" / "train.rec").read_bytes() == (tmp_path / "alone" / "train.rec").read_bytes()


def test_two_at_once_are_refused(tmp_path):
    job = choices(fill(tmp_path / "in"), tmp_path / "out")
    with photos.held(tmp_path / ".unfinished-out"), pytest.raises(ValueError, match="another process is at work there"):
        photos.prepare(**job)
    photos.prepare(**job)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layout": "zip"}, "layout is 'zip': give one of pack, folder"),
        ({"detect": "mtcnn"}, "detect is 'mtcnn': give one of yunet, none"),
        ({"face": "nicest"}, "face is 'nicest': give one of largest, central, best"),
        ({"quality": 101}, "quality is 101"),
        ({"threads": 0}, "threads is 0: give a number above 0"),
        ({"size": -1}, "size is -1"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_done(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        photos.prepare(**choices(fill(tmp_path / "in", 2, 1), tmp_path / "out", **given))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_set_does_not_lie_among_its_photographs(tmp_path):
    root = fill(tmp_path / "in", 2, 2)
    with pytest.raises(ValueError, match=r"out=.*p0/set lies inside of source="):
        photos.prepare(**choices(root, root / "p0" / "set"))


def test_one_identity_is_no_set(tmp_path):
    with pytest.raises(ValueError, match="has one identity only, 'p0'"):
        photos.prepare(**choices(fill(tmp_path / "in", people=1), tmp_path / "out"))


def killed(folder, kills, *overrides):
    script = Path(__file__).with_name("killing_prepare.py")
    done = subprocess.run(
        [sys.executable, script, folder, str(kills), "1", *overrides, "progress=false"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path):
    root = fill(tmp_path / "in", people=6, each=8)
    (root / "p1" / "0.jpg").write_bytes(b"")
    (tmp_path / "sets").mkdir()
    options = ("detect=none", f"size={SIZE}", "part=8", "shown=6")
    starts = killed(tmp_path / "sets", 14, f"source='{root}'", *options)
    assert sum(start["status"] == signal.SIGKILL for start in starts) == 14
    assert len({start["start"] for start in starts if start["status"] == signal.SIGKILL}) >= 6
    assert starts[-1] == {"start": "last", "status": 0, "left": ["alone", "killed"], "same": True}


@pytest.fixture(scope="module")
def yunet(real_data):
    name = "yunet_n_dynamic.onnx" if int(cv2.__version__.split(".")[0]) >= 5 else "yunet_n_320_320.onnx"
    return f"detector.model={real_data / 'weights' / name}"


@pytest.mark.data
def test_photographs_killed_on_their_way_end_with_the_same_faces(tmp_path, real_data, yunet):
    lines = []
    for person in sorted((real_data / "photos").iterdir())[:4]:
        lines += [f"{photograph},{person.name}\n" for photograph in sorted(person.glob("*.jpg"))[:5]]
    (tmp_path / "list.csv").write_text("".join(lines))
    (tmp_path / "sets").mkdir()
    starts = killed(tmp_path / "sets", 4, f"source='{tmp_path / 'list.csv'}'", yunet, "part=5")
    assert sum(start["status"] == signal.SIGKILL for start in starts) == 4
    assert starts[-1]["same"]
    made = RecordIOFaces(tmp_path / "sets" / "killed", 112)
    assert (len(made), made.num_classes) == (20, 4)


@pytest.mark.data
def test_photographs_through_the_door_lie_where_the_aligned_ones_lie(tmp_path, real_data, yunet):
    source = real_data / "photos"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "facelab.prepare",
            f"source={source}",
            "out=set",
            "layout=folder",
            "face=central",
            yunet,
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "100 faces of 20 identities, of 100 photographs" in done.stdout
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["set"]  # no log, no folder of Hydra's
    differences = []
    for file in sorted((tmp_path / "set").glob("*/*.jpg")):
        given_face = cv2.imread(str(real_data / "lfw" / "images" / file.parent.name / file.name))
        differences.append(np.abs(cv2.imread(str(file)).astype(int) - given_face).mean())
    assert len(differences) == 100
    assert np.median(differences) < 3
    assert sum(difference > 6 for difference in differences) <= 2  # several faces, and another is nearer to the middle


def test_the_door_says_in_one_line_what_is_missing(tmp_path):
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "facelab.prepare", "source=photos", "out=set", "detect=none"],
        cwd=tmp_path / "empty",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("facelab: source=photos: there is no such file or folder")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "empty").is_dir()  # where one stands is not taken away, though nothing lies there
