"""What is written is read back byte for byte, by our reader and by one that knows nothing but the format."""

import struct

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelab.data.folder import FolderFaces
from facelab.data.recordio import RecordIOFaces
from facelab.prepare import pack
from facelab.prepare.pack import check_name, fill_folder, frame, write_pack

MAGIC = struct.pack("<I", 0xCED7230A)
SIZE = 8


def jpeg(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def with_magic(seed, shifts):
    """A JPEG with the magic word behind its end, at places that fall on multiples of four and at others."""
    content = jpeg(seed)
    content += bytes(-len(content) % 4)
    for shift in shifts:
        content += bytes(shift) + MAGIC
    return content


RECORDS = [
    (0, "a.jpg", jpeg(0)),
    (0, "b.jpg", with_magic(1, [0, 0, 1, 2, 4])),
    (1, "a.jpg", jpeg(2)),
    (2, "ü ß.jpg", with_magic(3, [3, 1, 0])),
    (2, "c.jpg", jpeg(4)),
]
NAMES = ["anna", "борис", "최"]


def read_all(data):
    """Every record of a file, one behind the other, as the format's description has it: (where it begins, payload)."""
    found, position, parts = [], 0, []
    while position < len(data):
        magic, word = struct.unpack_from("<II", data, position)
        assert magic == 0xCED7230A
        kind, length = word >> 29, word & 0x1FFFFFFF
        content = data[position + 8 : position + 8 + length]
        if kind in (0, 1):
            begin, parts = position, [content]
        else:
            parts.append(content)
        if kind in (0, 3):
            found.append((begin, MAGIC.join(parts)))
        position += 8 + (length + 3) // 4 * 4
    return found


def test_a_pack_is_insightfaces_layout(tmp_path):
    assert write_pack(tmp_path / "set", iter(RECORDS), NAMES, SIZE) == 5
    folder = tmp_path / "set"
    found = read_all((folder / "train.rec").read_bytes())
    lines = [line.split("\t") for line in (folder / "train.idx").read_text().splitlines()]
    assert [(int(key), int(offset)) for key, offset in lines] == [(i, begin) for i, (begin, _) in enumerate(found)]
    header = struct.unpack("<IfQQ2f", found[0][1])
    assert header == (2, 0, 0, 0, 6, 9)
    for key, (label, _, content) in enumerate(RECORDS, start=1):
        assert found[key][1] == struct.pack("<IfQQ", 0, label, key, 0) + content
    assert [struct.unpack("<IfQQ2f", payload) for _, payload in found[6:]] == [
        (2, 0, 6, 0, 1, 3),
        (2, 0, 7, 0, 3, 4),
        (2, 0, 8, 0, 4, 6),
    ]
    assert (folder / "property").read_text() == f"3,{SIZE},{SIZE}"
    assert (folder / "train.lst").read_text(encoding="utf-8").splitlines()[3] == "1\t최/ü ß.jpg\t2"
    rows = (folder / "identities.csv").read_text(encoding="utf-8").splitlines()
    assert rows == ["label,identity,images", "0,anna,2", "1,борис,1", "2,최,2"]


def test_no_part_contains_the_magic_word_where_a_reader_looks_for_the_next_record(tmp_path):
    write_pack(tmp_path / "set", RECORDS, NAMES, SIZE)
    words = np.frombuffer((tmp_path / "set" / "train.rec").read_bytes(), "<u4")
    begins = np.flatnonzero(words == 0xCED7230A)
    position, expected = 0, []
    while position < len(words):
        expected.append(position)
        position += 2 + ((int(words[position + 1]) & 0x1FFFFFFF) + 3) // 4
    assert begins.tolist() == expected
    assert len(expected) > 1 + len(RECORDS) + len(NAMES)


def test_our_reader_gives_the_same_bytes(tmp_path):
    write_pack(tmp_path / "set", RECORDS, NAMES, SIZE)
    faces = RecordIOFaces(tmp_path / "set", SIZE)
    assert faces.labels.tolist() == [label for label, _, _ in RECORDS]
    for number, (_, _, content) in enumerate(RECORDS):
        assert faces.encoded(number).tobytes() == content
        assert faces.load(number).shape == (SIZE, SIZE, 3)


def test_dali_gives_the_same_bytes(tmp_path):
    """Of an index of the images alone: identity records have none, and DALI stops at them."""
    dali = pytest.importorskip("nvidia.dali", reason="needs nvidia-dali (pip install 'facelab[dali]')")
    write_pack(tmp_path / "set", RECORDS, NAMES, SIZE)
    lines = (tmp_path / "set" / "train.idx").read_text().splitlines()
    (tmp_path / "images.idx").write_text("\n".join(lines[1 : 1 + len(RECORDS)]) + "\n")
    pipeline = dali.Pipeline(batch_size=len(RECORDS), num_threads=1, device_id=None)
    with pipeline:
        read = dali.fn.readers.mxnet(path=str(tmp_path / "set" / "train.rec"), index_path=str(tmp_path / "images.idx"))
        pipeline.set_outputs(*read)
    pipeline.build()
    images, labels = pipeline.run()
    for number, (label, _, content) in enumerate(RECORDS):
        assert np.array(images[number]).tobytes() == content
        assert np.array(labels[number]).tolist() == [label]


PIECES = st.lists(st.one_of(st.just(MAGIC), st.binary(max_size=9)), max_size=12).map(b"".join)


@given(PIECES)
@settings(max_examples=200)
def test_any_payload_comes_back(payload):
    data = frame(payload)
    assert len(data) % 4 == 0
    assert read_all(data) == [(0, payload)]
    words = np.frombuffer(data, "<u4")
    assert (words == 0xCED7230A).sum() == 1 + sum(payload[at : at + 4] == MAGIC for at in range(0, len(payload) - 3, 4))


def test_a_folder_holds_the_same_images(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    assert fill_folder(folder, RECORDS, NAMES, SIZE) == 5
    faces = FolderFaces(folder, SIZE)
    assert faces.identity_names == NAMES
    assert {faces.name(i): faces.encoded(i).tobytes() for i in range(5)} == {
        f"{NAMES[label]}/{name}": content for label, name, content in RECORDS
    }


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 2], NAMES, "has the label 2 behind 0"),
        ([0, 1, 0], NAMES, "has the label 0 behind 1"),
        ([1], NAMES, "has the label 1 behind -1"),
        ([0, 1], NAMES, "identity '최' has no image"),
        ([0, 1, 2, 3], NAMES, "there are 3 identities"),
        ([], [], "there are 0 identities"),
        ([0, 1], ["a", "a"], "two identities are named 'a'"),
    ],
)
def test_what_no_set_is_is_refused_and_leaves_nothing(tmp_path, labels, names, message):
    records = [(label, f"{number}.jpg", jpeg(0)) for number, label in enumerate(labels)]
    with pytest.raises(ValueError, match=message):
        write_pack(tmp_path / "set", records, names, SIZE)
    assert list(tmp_path.iterdir()) == []


def test_too_many_bytes_are_refused(monkeypatch):
    monkeypatch.setattr(pack, "_LONGEST", 8)
    assert len(frame(bytes(7))) == 16
    with pytest.raises(ValueError, match="too long for RecordIO"):
        frame(bytes(8))


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a\tb", "a\nb", "ü" * 128, "x" * 256, ".."])
def test_a_name_that_no_folder_has_is_refused(name):
    with pytest.raises(ValueError, match=r"^person "):
        check_name(name, "person")


def test_names_of_all_alphabets_are_taken():
    for name in ("Zoë", "최 민수", "a" * 255, "o'neil", "x\udcff"):
        check_name(name, "person")


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="is there already"):
        write_pack(tmp_path / "set", RECORDS, NAMES, SIZE)
    assert (tmp_path / "set" / "mine.txt").read_text() == "kept"
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]
