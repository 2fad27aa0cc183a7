"""Every image is looked at: what is not an 8-bit RGB JPEG is found, told apart, and used or not, as its owner says."""

import csv
import json
import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from facelab.data.folder import FolderFaces
from facelab.data.inspect import Inspection, inspect
from facelab.data.recordio import RecordIOFaces
from facelab.data.synthetic import SyntheticFaces

SIZE = 16


def picture(seed=0, height=SIZE, width=SIZE, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def jpeg(image, colours="RGB"):
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), 90, colours)


def coded(image, extension):
    return cv2.imencode(extension, image)[1].tobytes()


def with_exif(encoded):
    """The same JPEG with an EXIF segment that turns it by 90°."""
    exif = b"Exif\0\0" + struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x112, 3, 1, 6, 0, 0)
    return encoded[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + encoded[2:]


ORDINARY = jpeg(picture())
PNG = coded(picture(), ".png")
DEEP = coded(picture().astype(np.uint16) * 257, ".png")
# name: (bytes, kind, what is wrong)
CASES = {
    "ordinary.jpg": (ORDINARY, None, None),
    "turned.jpg": (with_exif(ORDINARY), None, None),
    "larger.jpg": (jpeg(picture(0, 40, 40)), None, None),
    "followed.jpg": (ORDINARY + b"some maker's notes", None, None),
    "named_png.png": (ORDINARY, None, None),  # the bytes tell, not the name
    "gray.jpg": (jpeg(picture(channels=1), "GRAY"), "grayscale", ""),
    "gray.png": (coded(picture()[..., 0], ".png"), "grayscale", ""),
    "gray.bmp": (coded(picture()[..., 0], ".bmp"), "grayscale", ""),
    "cmyk.jpg": (jpeg(picture(channels=4), "CMYK"), "CMYK", ""),
    "deep.png": (DEEP, "16-bit", ""),
    "deep_gray.png": (coded(picture()[..., 0].astype(np.uint16) * 257, ".png"), "16-bit", ""),
    "deep_tiff.jpg": (coded(picture().astype(np.uint16) * 257, ".tiff"), "16-bit", ""),
    "png.png": (PNG, "PNG", ""),
    "alpha.png": (coded(picture(channels=4), ".png"), "PNG", ""),
    "bmp.bmp": (coded(picture(), ".bmp"), "BMP", ""),
    "webp.webp": (coded(picture(), ".webp"), "WebP", ""),
    "tiff.jpg": (coded(picture(), ".tiff"), "of another format", ""),
    "empty.jpg": (b"", "unreadable", "is an empty file"),
    "text.jpg": (b"<html>404 not found</html>", "unreadable", "is no image"),
    "cut.jpg": (ORDINARY[:-30], "unreadable", "Premature end of JPEG file"),
    "head.jpg": (ORDINARY[:20], "unreadable", "is a damaged JPEG"),
    "cut.png": (PNG[:-200], "unreadable", "is cut short"),
    "cut.bmp": (coded(picture(), ".bmp")[:-200], "unreadable", "is cut short"),
    "cut.webp": (coded(picture(), ".webp")[:-50], "unreadable", "is cut short"),
    "wide.jpg": (jpeg(picture(0, 16, 18)), "unreadable", "is 16×18 pixels, not square: align the faces first"),
    "high.png": (coded(picture(0, 20, 16), ".png"), "unreadable", "is 20×16 pixels, not square: align the faces first"),
}


def write_folder(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return FolderFaces(root, SIZE)


def look(source, images=True, unreadable="skip", unusual="keep", threads=2, tell=lambda done, total: None):
    return inspect(source, images, unreadable, unusual, threads, tell)


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory):
    """One identity with every case, one with ordinary images, one without any."""
    root = tmp_path_factory.mktemp("faces")
    (root / "nobody").mkdir()
    files = {f"a/{name}": content for name, (content, _, _) in CASES.items()}
    return write_folder(root, {**files, **{f"b/{number}.jpg": ORDINARY for number in range(3)}})


@pytest.mark.parametrize("name", CASES)
def test_every_kind_is_told_apart(every_kind, name):
    _, kind, why = CASES[name]
    found = {odd.name: odd for odd in look(every_kind).odd}
    if kind is None:
        assert f"a/{name}" not in found
        return
    odd = found[f"a/{name}"]
    assert (odd.kind, odd.identity) == (kind, "a")
    assert odd.why.startswith(why)
    assert every_kind.name(odd.image) == odd.name


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_unreadable_can_be_loaded(every_kind, name):
    index = [every_kind.name(index) for index in range(len(every_kind))].index(f"a/{name}")
    if CASES[name][1] != "unreadable":
        assert every_kind.load(index).shape == (SIZE, SIZE, 3)


def test_counts_and_summary(every_kind):
    found = look(every_kind, unreadable="skip", unusual="keep")
    kinds = [kind or "ordinary" for _, kind, _ in CASES.values()]
    expected = {kind: kinds.count(kind) for kind in kinds}
    assert found.counts == {**expected, "ordinary": expected["ordinary"] + 3, "empty folder": 1}
    text = str(found)
    assert text.startswith("29 looked at: 1 empty folder left out, ")
    assert "9 unreadable skipped" in text
    assert "3 16-bit kept" in text
    assert text.endswith("; named in images.csv")
    assert found.refusal("images.csv") is None


def test_what_is_skipped_is_not_kept(every_kind):
    names = [every_kind.name(index) for index in range(len(every_kind))]

    def kept(**choices):
        return {name for name, kept in zip(names, look(every_kind, **choices).kept, strict=True) if kept}

    ordinary = {f"a/{name}" for name, (_, kind, _) in CASES.items() if kind is None} | {f"b/{n}.jpg" for n in range(3)}
    unreadable = {f"a/{name}" for name, (_, kind, _) in CASES.items() if kind == "unreadable"}
    assert kept() == set(names) - unreadable
    assert kept(unusual="skip") == ordinary
    assert kept(images=False) == set(names)


def test_a_refusal_names_the_first_the_number_and_the_mend(every_kind):
    line = look(every_kind, unreadable="stop").refusal("runs/x/images.csv")
    assert line.startswith("data: of 29 images 9 unreadable; the first is a/cut.bmp (is cut short), ")
    assert "named in runs/x/images.csv" in line
    assert line.endswith("data.inspect.unreadable=skip")
    line = look(every_kind, unusual="stop").refusal("x")
    assert "the first is a/alpha.png (PNG)" in line
    assert line.endswith("data.inspect.unusual=skip")
    both = look(every_kind, unreadable="stop", unusual="stop").refusal("x")
    assert "9 unreadable" in both
    assert "3 16-bit" in both
    assert both.endswith("data.inspect.unreadable=skip")


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_change_nothing_and_the_order_is_the_sources(every_kind, threads, monkeypatch):
    monkeypatch.setattr("facelab.data.inspect._CHUNK", 3)
    told = []
    found = look(every_kind, threads=threads, tell=lambda *progress: told.append(progress))
    assert found == look(every_kind)
    assert told == [(min(done, 29), 29) for done in range(3, 32, 3)]
    images = [odd.image for odd in found.odd if odd.image is not None]
    assert images == sorted(images)


def test_what_was_found_can_be_read_again(every_kind, tmp_path):
    found = look(every_kind)
    found.write(tmp_path / "images.csv")
    assert Inspection.read(tmp_path / "images.csv", every_kind) == found
    with open(tmp_path / "images.csv", newline="", encoding="utf-8") as lines:
        head = json.loads(lines.readline().removeprefix("# "))
        rows = list(csv.DictReader(lines))
    assert head == {"images": 29, "looked": True, **found.counts}
    assert rows[0] == {
        "image": "", "identity": "nobody", "name": "nobody", "kind": "empty folder", "done": "left out", "why": ""
    }  # fmt: skip
    assert {row["done"] for row in rows[1:]} == {"kept", "skipped"}


def test_names_with_commas_quotes_and_line_breaks(tmp_path):
    source = write_folder(tmp_path / "a", {'x, "y"/1\n2.png': PNG, "김/#1.png": PNG, os.fsdecode(b"z/\xff.png"): PNG})
    found = look(source)
    found.write(tmp_path / "images.csv")
    assert Inspection.read(tmp_path / "images.csv", source) == found


def test_a_resumed_run_is_told_when_the_images_have_changed(tmp_path):
    files = {"a/1.jpg": ORDINARY, "a/2.png": PNG, "b/1.jpg": ORDINARY}
    source = write_folder(tmp_path / "faces", files)
    file = tmp_path / "images.csv"
    look(source).write(file)
    more = write_folder(tmp_path / "faces", {"b/2.jpg": ORDINARY})
    with pytest.raises(ValueError, match=r"began with 3 images, and now there are 4: put the data set back"):
        Inspection.read(file, more)
    (tmp_path / "faces" / "b" / "2.jpg").unlink()
    (tmp_path / "faces" / "a" / "2.png").rename(tmp_path / "faces" / "a" / "0.png")
    with pytest.raises(ValueError, match=r"3 images, and now there are others, without a/2\.png in its place: put"):
        Inspection.read(file, FolderFaces(tmp_path / "faces", SIZE))


@pytest.mark.parametrize("text", ["", "{}", '# {"images": 3}\n', '# {"images": 3, "looked": true}\nimage\n1\n'])
def test_a_damaged_file_is_named(tmp_path, text):
    source = write_folder(tmp_path / "faces", {"a/1.jpg": ORDINARY, "b/1.jpg": ORDINARY, "b/2.jpg": ORDINARY})
    (tmp_path / "images.csv").write_text(text)
    with pytest.raises(ValueError, match=r"images\.csv: cannot be read .*; delete it"):
        Inspection.read(tmp_path / "images.csv", source)


def records(root: Path, images):
    """A set in InsightFace's format with two images an identity."""
    root.mkdir()
    offsets, content = [], b""
    for number, image in enumerate(images):
        payload = struct.pack("<IfQQ", 0, number // 2, 0, 0) + image
        offsets.append(len(content))
        content += struct.pack("<II", 0xCED7230A, len(payload)) + payload + bytes(-len(payload) % 4)
    (root / "train.rec").write_bytes(content)
    (root / "train.idx").write_text("".join(f"{key}\t{offset}\n" for key, offset in enumerate(offsets)))
    (root / "property").write_text(f"{len(images) // 2},{SIZE},{SIZE}")
    return RecordIOFaces(root, SIZE)


def test_a_pack(tmp_path):
    images = [ORDINARY, PNG, ORDINARY[:-30], jpeg(picture(0, 20, 20)), b"", ORDINARY]
    found = look(records(tmp_path / "pack", images), unreadable="stop")
    assert [(odd.image, odd.identity, odd.name, odd.kind, odd.why) for odd in found.odd] == [
        (1, "0", "key 1", "PNG", ""),
        (2, "1", "key 2", "unreadable", "Premature end of JPEG file"),
        (3, "1", "key 3", "unreadable", "is 20×20 pixels, not 16×16"),
        (4, "2", "key 4", "unreadable", "is an empty file"),
    ]


def test_a_damaged_record_is_one_unreadable_image(tmp_path):
    source = records(tmp_path / "pack", [ORDINARY] * 6)
    content = bytearray((tmp_path / "pack" / "train.rec").read_bytes())
    content[source._records.offsets[3]] ^= 0xFF
    loaded = RecordIOFaces.__new__(RecordIOFaces)  # opening looks at a sample of so few records: all of them
    loaded.__dict__.update(source.__dict__)
    loaded._records.bytes = np.frombuffer(bytes(content), np.uint8)
    (odd,) = look(loaded).odd
    assert (odd.image, odd.kind) == (3, "unreadable")
    assert "does not begin with the magic word" in odd.why


def test_a_file_that_cannot_be_opened(tmp_path):
    source = write_folder(tmp_path, {"a/1.jpg": ORDINARY, "b/1.jpg": ORDINARY})
    (tmp_path / "b" / "1.jpg").unlink()
    (odd,) = look(source).odd
    assert (odd.image, odd.kind) == (1, "unreadable")
    assert "No such file" in odd.why


def test_all_ordinary_and_not_looked_at(tmp_path):
    source = write_folder(tmp_path, {"a/1.jpg": ORDINARY, "b/1.jpg": ORDINARY})
    assert str(look(source)) == "2 looked at: all are 8-bit RGB JPEG"
    unseen = look(source, images=False)
    assert str(unseen) == "not looked at (data.inspect.images=false)"
    assert unseen.counts == {}
    assert unseen.kept.all()
    (tmp_path / "c").mkdir()
    unseen = look(FolderFaces(tmp_path, SIZE), images=False)
    assert str(unseen) == "not looked at (data.inspect.images=false): 1 empty folder left out; named in images.csv"


def test_images_of_our_own_making_are_not_looked_at():
    source = SyntheticFaces(identities=3, images_per_identity=2, size=32, long_tail=1, nuisance=1, seed=0)
    found = look(source)
    assert not found.looked
    assert found.kept.all()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"unreadable": "keep"}, "data.inspect.unreadable is 'keep': give one of stop, skip"),
        ({"unusual": "drop"}, "data.inspect.unusual is 'drop': give one of keep, skip, stop"),
        ({"unreadable": None}, "data.inspect.unreadable is None"),
        ({"threads": 0}, "threads is 0: at least 1"),
    ],
)
def test_choices_that_there_are_not(every_kind, choice, message):
    with pytest.raises(ValueError, match=message):
        look(every_kind, **choice)


@pytest.mark.data
def test_celeba_is_ordinary(real_data):
    found = look(RecordIOFaces(real_data / "celeba", 112))
    assert str(found) == "15,371 looked at: all are 8-bit RGB JPEG"
