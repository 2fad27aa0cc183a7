"""What was learnt of a `.rec` is kept, used while it fits, and never changes what a set holds."""

import os
import pickle

import numpy as np
import pytest
from test_recordio import LABELS, SIZE, check, frame, records, write

from facelab.data import record_index, recordio
from facelab.data.recordio import RecordIOFaces


@pytest.fixture(autouse=True)
def _every_set_is_large(monkeypatch, tmp_path):
    monkeypatch.setattr(record_index, "WORTH", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def learnt(monkeypatch):
    """How often a set was gone through anew."""
    times = []
    plain = recordio._learn
    monkeypatch.setattr(recordio, "_learn", lambda opened: times.append(1) or plain(opened))
    return times


def root_of(tmp_path, labels=LABELS, identities=True, **changes):
    return write(tmp_path / "pack", [frame(record) for record in records(labels, identities)], **changes)


def kept(root):
    return root / "train.idx.safetensors"


@pytest.mark.parametrize(
    ("labels", "identities", "keys", "expected", "names"),
    [
        (LABELS, True, None, LABELS, ("0", "1", "2")),
        ([5, 5, 90000, 7, 7, 7], True, None, [0, 0, 2, 1, 1, 1], ("5", "7", "90000")),
        (LABELS, False, [3, 4, 10, 11, 20, 99], LABELS, ("0", "1", "2")),
    ],
)
def test_it_opens_alike_and_goes_through_nothing(tmp_path, learnt, labels, identities, keys, expected, names):
    root = root_of(tmp_path, labels, identities, keys=keys)
    check(RecordIOFaces(root, SIZE), expected, names)
    again = RecordIOFaces(root, SIZE)
    check(again, expected, names)
    assert len(learnt) == 1
    assert again.name(5) == ("key 99" if keys else "key 6")
    for array in (again.labels, again._records.offsets):
        assert not array.flags.writeable, "mapped, not copied"
        assert isinstance(array.base, np.memmap)
    check(pickle.loads(pickle.dumps(again)), expected, names)


def test_an_index_in_any_order(tmp_path, learnt):
    root = root_of(tmp_path)
    lines = (root / "train.idx").read_text().splitlines()
    (root / "train.idx").write_text("\n".join(reversed(lines)))
    for _ in range(2):
        check(RecordIOFaces(root, SIZE))
    assert len(learnt) == 1


def test_another_set_in_the_same_place_is_gone_through_anew(tmp_path, learnt):
    root = root_of(tmp_path)
    RecordIOFaces(root, SIZE)
    root_of(tmp_path, [0, 1, 1, 2, 2, 2])  # of the same size, byte for byte
    check(RecordIOFaces(root, SIZE), [0, 1, 1, 2, 2, 2])
    # The same time, size and index: the ends of the file tell.
    status = (root / "train.rec").stat()
    root_of(tmp_path, [0, 0, 0, 1, 1, 2])
    os.utime(root / "train.rec", ns=(status.st_atime_ns, status.st_mtime_ns))
    check(RecordIOFaces(root, SIZE), [0, 0, 0, 1, 1, 2])
    assert len(learnt) == 3
    RecordIOFaces(root, SIZE)
    os.utime(root / "train.idx", ns=(1, 1))
    RecordIOFaces(root, SIZE)
    assert len(learnt) == 4


def test_a_set_that_has_become_wrong_is_refused_in_spite_of_it(tmp_path):
    root = root_of(tmp_path)
    RecordIOFaces(root, SIZE)
    (root / "property").write_text(f"2,{SIZE},{SIZE}")
    with pytest.raises(ValueError, match=r"says 2 identities, but train\.rec has images of 3"):
        RecordIOFaces(root, SIZE)
    (root / "property").write_text(f"3,{SIZE},{SIZE}")
    whole = (root / "train.rec").read_bytes()
    (root / "train.rec").write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="truncated"):
        RecordIOFaces(root, SIZE)


def damages(content):
    yield b""
    yield b"\xff" * 40
    yield (1 << 40).to_bytes(8, "little") + content[8:]
    for length in range(1, len(content), 23):
        yield content[:length]
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length]
    for old, new in ((b'"I64"', b'"F64"'), (b'"first":"1"', b'"first":"9"'), (b'"last":', b'"lost":'), (b"{", b"[")):
        assert old in header
        yield content[:8] + header.replace(old, new) + content[8 + length :]


def test_a_damaged_one_is_made_anew(tmp_path, learnt):
    root = root_of(tmp_path)
    RecordIOFaces(root, SIZE)
    whole = kept(root).read_bytes()
    cases = list(damages(whole))
    for content in cases:
        kept(root).write_bytes(content)
        check(RecordIOFaces(root, SIZE))
    assert len(learnt) == 1 + len(cases) > 20
    RecordIOFaces(root, SIZE)
    assert len(learnt) == 1 + len(cases), "and is whole again"


def test_where_the_folder_cannot_be_written_the_users_cache_is_used(tmp_path, learnt):
    root = root_of(tmp_path)
    kept(root).mkdir()  # in the way, as a missing right would be
    for _ in range(2):
        check(RecordIOFaces(root, SIZE))
    assert len(learnt) == 1
    assert len(list((tmp_path / "cache" / "facelab").iterdir())) == 1
    assert sorted(path.name for path in root.iterdir()) == [
        "property",
        "train.idx",
        "train.idx.safetensors",
        "train.rec",
    ]


def test_where_nothing_can_be_written_it_opens_all_the_same(tmp_path, learnt):
    root = root_of(tmp_path)
    kept(root).mkdir()
    (tmp_path / "cache").write_text("in the way")
    for _ in range(2):
        check(RecordIOFaces(root, SIZE))
    assert len(learnt) == 2


def test_a_small_set_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(record_index, "WORTH", 100)
    root = root_of(tmp_path)
    RecordIOFaces(root, SIZE)
    assert sorted(path.name for path in root.iterdir()) == ["property", "train.idx", "train.rec"]
    assert not (tmp_path / "cache").exists()
