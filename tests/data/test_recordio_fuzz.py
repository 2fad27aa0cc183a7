"""Damage of every kind to a pack: an error, or the images that were packed; never another image, and nothing else.

What no reader can see, since nothing in the file says otherwise, is a changed bit within an image's own bytes (they are
handed out as they lie there) or within its label.
"""

import struct
from typing import NamedTuple

import numpy as np
import pytest
import simplejpeg
from fuzzing import fuzzing
from hypothesis import given
from hypothesis import strategies as st

from facelab.data.recordio import RecordIOFaces
from facelab.pixels import decode

SIZE = 16
LABELS = [0, 0, 1, 2, 2, 2]
FRAMING = 32  # bytes of a record in front of its image: magic, length, flag, label, id, id2
KINDS = ("with identity records", "images alone", "images alone, without ids")


class Pack(NamedTuple):
    """The three files of a set, and where its records and images lie."""

    rec: bytes
    idx: bytes
    described: bytes
    offsets: list[int]
    images: dict[int, tuple[int, int]]  # key → first and last byte + 1 of the encoded image


def picture(seed):
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.ascontiguousarray(small.repeat(SIZE // 4, 0).repeat(SIZE // 4, 1))


def jpeg(seed):
    return simplejpeg.encode_jpeg(picture(seed), 80 + seed % 7)


def make(kind, first_seed=0):
    images = [jpeg(first_seed + number) for number in range(len(LABELS))]
    headed = kind == KINDS[0]
    payloads = [(0, float(label), b"", image) for label, image in zip(LABELS, images, strict=True)]
    if headed:
        ranges = [(7, 10), (1, 3), (3, 4), (4, 7)]
        listed = [(2, 0.0, struct.pack("<2f", *bounds), b"") for bounds in ranges]
        payloads = [listed[0], *payloads, *listed[1:]]
    rec, offsets, where = b"", [], {}
    for key, (flag, label, labels, image) in enumerate(payloads):
        content = struct.pack("<IfQQ", flag, label, 0 if kind == KINDS[2] else key, 0) + labels + image
        offsets.append(len(rec))
        if image:
            where[key] = (len(rec) + FRAMING, len(rec) + FRAMING + len(image))
        rec += struct.pack("<II", 0xCED7230A, len(content)) + content + bytes(-len(content) % 4)
    idx = "".join(f"{key}\t{offset}\n" for key, offset in enumerate(offsets)).encode()
    return Pack(rec, idx, f"3,{SIZE},{SIZE}".encode(), offsets, where)


PACKS = {kind: make(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def attempt(function, *arguments):
    """What a function gives, and the message of its refusal; any other exception is a failure."""
    try:
        return function(*arguments), ""
    except ValueError as error:
        return None, str(error)


def opened(place, pack, **changed):
    """The set with other bytes in some of its files; None where it is refused."""
    for name, field in (("train.rec", "rec"), ("train.idx", "idx"), ("property", "described")):
        (place / name).write_bytes(changed.get(field, getattr(pack, field)))
    faces, refusal = attempt(RecordIOFaces, place, SIZE)
    assert faces is not None or (str(place) in refusal and "\n" not in refusal)
    return faces


def pixels(encoded):
    return decode(np.frombuffer(encoded, np.uint8))


def check_images(faces, pack, rec):
    """Each image is what the file holds under its key, or is refused; and those that are read together are the same."""
    refused = []
    together = np.zeros((len(faces), SIZE, SIZE, 3), np.uint8)
    left = faces.load_plain(np.arange(len(faces)), together)
    for index in range(len(faces)):
        key = int(faces.name(index).removeprefix("key "))
        image, refusal = attempt(faces.load, index)
        assert index in left or np.array_equal(image, together[index]), f"key {key} is otherwise among others"
        if image is None:
            assert f"key {key} " in refusal
            refused.append(key)
            continue
        bytes_read = faces.encoded(index).tobytes()
        assert key in pack.images, "an image that was never packed"
        first, end = pack.images[key]
        # A length that is wrong by no more than the padding leaves the pixels as they are.
        if bytes_read != rec[first:end]:
            assert np.array_equal(image, pixels(pack.rec[first:end])), f"key {key} is another image"
    return refused


def check_labels(faces, pack, but=None):
    """Each image has the identity that it was packed with."""
    firstborn = min(pack.images)
    for index in range(len(faces)):
        key = int(faces.name(index).removeprefix("key "))
        if key != but and key in pack.images:
            assert faces.identity_names[faces.labels[index]] == str(LABELS[key - firstborn])


def flipped(content, position, bit):
    return content[:position] + bytes([content[position] ^ (1 << bit)]) + content[position + 1 :]


def record_of(pack, position):
    return int(np.searchsorted(pack.offsets, position, side="right")) - 1


def check_flip(place, pack, position, bit):
    rec = flipped(pack.rec, position, bit)
    faces = opened(place, pack, rec=rec)
    if faces is None:
        return
    assert len(faces) == len(LABELS)
    key = record_of(pack, position)
    refused = check_images(faces, pack, rec)
    assert set(refused) <= {key, key - 1}, "one changed bit costs no other image"
    in_label = position - pack.offsets[key] in range(12, 16)
    check_labels(faces, pack, but=key if in_label else None)


@pytest.mark.parametrize("kind", KINDS)
@fuzzing(100)
@given(data=st.data())
def test_a_changed_bit_of_the_framing(place, kind, data):
    pack = PACKS[kind]
    record = data.draw(st.integers(0, len(pack.offsets) - 1))
    position = pack.offsets[record] + data.draw(st.integers(0, FRAMING + 7))
    check_flip(place, pack, min(position, len(pack.rec) - 1), data.draw(st.integers(0, 7)))


@pytest.mark.parametrize("kind", KINDS)
@fuzzing(60)
@given(data=st.data())
def test_a_changed_bit_anywhere(place, kind, data):
    pack = PACKS[kind]
    check_flip(place, pack, data.draw(st.integers(0, len(pack.rec) - 1)), data.draw(st.integers(0, 7)))


@pytest.mark.parametrize("kind", KINDS)
@fuzzing(60)
@given(data=st.data())
def test_a_length_that_is_wrong(place, kind, data):
    """Whatever is written in the place of a record's length: too short, too long, or just up to another record."""
    pack = PACKS[kind]
    record = data.draw(st.integers(0, len(pack.offsets) - 1))
    at = pack.offsets[record]
    to_another = [offset - at - 8 for offset in [*pack.offsets, len(pack.rec)] if offset - at >= 8]
    words = st.one_of(st.integers(0, 2**32 - 1), st.integers(0, len(pack.rec)), st.sampled_from(to_another))
    length = data.draw(words)
    rec = pack.rec[: at + 4] + struct.pack("<I", length) + pack.rec[at + 8 :]
    faces = opened(place, pack, rec=rec)
    if faces is not None:
        assert len(faces) == len(LABELS)
        check_images(faces, pack, rec)
        check_labels(faces, pack)


@pytest.mark.parametrize("kind", KINDS)
@fuzzing(60)
@given(data=st.data())
def test_a_file_that_is_cut_off(place, kind, data):
    pack = PACKS[kind]
    rec = pack.rec[: data.draw(st.integers(0, len(pack.rec) - 1))]
    faces = opened(place, pack, rec=rec)
    if faces is not None:  # no more than padding was lost
        assert len(pack.rec) - len(rec) < 4
        assert check_images(faces, pack, rec) == []
        check_labels(faces, pack)


@pytest.mark.parametrize("kind", KINDS)
@fuzzing(60)
@given(data=st.data())
def test_an_index_that_is_cut_off(place, kind, data):
    pack = PACKS[kind]
    faces = opened(place, pack, idx=pack.idx[: data.draw(st.integers(0, len(pack.idx) - 1))])
    if faces is not None:  # a line end was lost, or identity records, which are not needed
        assert len(faces) == len(LABELS), "images were lost without a word"
        assert check_images(faces, pack, pack.rec) == []
        check_labels(faces, pack)


@pytest.mark.parametrize("kind", KINDS)
@fuzzing(100)
@given(data=st.data())
def test_a_changed_bit_of_the_index(place, kind, data):
    pack = PACKS[kind]
    position, bit = data.draw(st.integers(0, len(pack.idx) - 1)), data.draw(st.integers(0, 7))
    idx = flipped(pack.idx, position, bit)
    faces = opened(place, pack, idx=idx)
    if faces is None:
        return
    before = dict(line.split() for line in pack.idx.splitlines())
    now = dict(line.split() for line in idx.splitlines() if len(line.split()) == 2)
    for index in range(len(faces)):
        name = faces.name(index).removeprefix("key ").encode()
        try:
            got = faces.encoded(index).tobytes()
        except ValueError:
            continue
        # A key that was changed itself names its image anew, and no other is touched by it.
        original = name if name in before else next(old for old in before if before[old] == now[name])
        first, end = pack.images[int(original)]
        assert got == pack.rec[first:end]


@pytest.mark.parametrize("kind", KINDS)
@fuzzing(60)
@given(data=st.data())
def test_lines_of_the_index_in_another_order_or_twice(place, kind, data):
    pack = PACKS[kind]
    lines = pack.idx.splitlines(keepends=True)
    faces = opened(place, pack, idx=b"".join(data.draw(st.permutations(lines))))
    assert len(faces) == len(LABELS)
    assert check_images(faces, pack, pack.rec) == []
    check_labels(faces, pack)
    line, at = data.draw(st.sampled_from(lines)), data.draw(st.integers(0, len(lines)))
    assert opened(place, pack, idx=b"".join([*lines[:at], line, *lines[at:]])) is None


@pytest.mark.parametrize("kind", KINDS)
@fuzzing(60)
@given(data=st.data())
def test_keys_that_have_changed_places(place, kind, data):
    """Two keys point to each other's records: told by the ids of the records, and where these have none, the images at
    least keep their own labels."""
    pack = PACKS[kind]
    keys = list(pack.images)
    one = data.draw(st.sampled_from(keys[:-1]))
    other = data.draw(st.sampled_from([key for key in keys if key > one]))
    moved = list(pack.offsets)
    moved[one], moved[other] = moved[other], moved[one]
    faces = opened(place, pack, idx="".join(f"{key}\t{offset}\n" for key, offset in enumerate(moved)).encode())
    if kind != KINDS[2]:
        assert check_images(faces, pack, pack.rec) == [one, other]
        return
    names = [faces.identity_names[label] for label in faces.labels]
    got = {(faces.encoded(index).tobytes(), name) for index, name in enumerate(names)}
    assert got == {(pack.rec[slice(*pack.images[key])], str(LABELS[key])) for key in keys}


@pytest.mark.parametrize("kind", KINDS)
def test_two_keys_for_one_record(place, kind):
    pack = PACKS[kind]
    for one in list(pack.images)[:-1]:
        moved = [*pack.offsets[: one + 1], pack.offsets[one], *pack.offsets[one + 2 :]]
        idx = "".join(f"{key}\t{offset}\n" for key, offset in enumerate(moved)).encode()
        (place / "train.idx").write_bytes(idx)
        assert opened(place, pack, idx=idx) is None
        with pytest.raises(ValueError, match=rf"keys {one} and {one + 1} point to the same byte"):
            RecordIOFaces(place, SIZE)


@pytest.mark.parametrize("kind", KINDS)
@fuzzing(30)
@given(seed=st.integers(10, 500))
def test_an_index_of_another_file(place, kind, seed):
    pack = PACKS[kind]
    for other in KINDS:
        idx = make(other, seed).idx
        faces = opened(place, pack, idx=idx)
        if faces is not None:
            check_images(faces, pack, pack.rec)


@pytest.mark.parametrize("kind", KINDS)
@fuzzing(60)
@given(data=st.data())
def test_a_property_that_is_damaged(place, kind, data):
    pack = PACKS[kind]
    position, bit = data.draw(st.integers(0, len(pack.described) - 1)), data.draw(st.integers(0, 7))
    for described in (flipped(pack.described, position, bit), pack.described[:position]):
        faces = opened(place, pack, described=described)
        if faces is not None:  # it promises more identities than have images
            assert check_images(faces, pack, pack.rec) == []
            check_labels(faces, pack)


def test_only_what_is_not_plain_is_read_one_by_one(place):
    for kind, left in ((KINDS[0], []), (KINDS[1], [len(LABELS) - 1])):  # behind the last no record says where it ends
        faces = opened(place, PACKS[kind])
        assert faces.load_plain(np.arange(len(LABELS)), np.empty((len(LABELS), SIZE, SIZE, 3), np.uint8)) == left
        few = np.empty((2, SIZE // 2, SIZE // 2, 3), np.uint8)
        assert faces.load_plain(np.array([1, 2]), few) == [0, 1]


def test_an_index_without_its_last_lines_names_the_first_image_that_it_lacks(place):
    pack = PACKS["images alone"]
    (place / "train.rec").write_bytes(pack.rec)
    (place / "train.idx").write_bytes(b"".join(pack.idx.splitlines(keepends=True)[:4]))
    (place / "property").write_bytes(pack.described)
    with pytest.raises(ValueError, match=rf"behind that of key 3 \(byte {pack.offsets[4]}\)"):
        RecordIOFaces(place, SIZE)


def test_one_wrong_label_does_not_merge_two_identities(place):
    """Of identity 1, whose only image is the one that is read for its label."""
    pack = PACKS[KINDS[0]]
    at = pack.offsets[3] + 12
    rec = pack.rec[:at] + struct.pack("<f", 2.0) + pack.rec[at + 4 :]
    faces = opened(place, pack, rec=rec)
    check_labels(faces, pack, but=3)
