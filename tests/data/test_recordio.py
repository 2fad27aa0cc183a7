import pickle
import struct
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from facelab.data import recordio
from facelab.data.recordio import RecordIOFaces

MAGIC = struct.pack("<I", 0xCED7230A)
SIZE = 8


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def encoded(seed):
    return cv2.imencode(".png", picture(seed)[..., ::-1])[1].tobytes()


def payload(labels, image=b"", flag=None):
    """A list of labels is stored as an array, a number in the header itself."""
    if isinstance(labels, list):
        return struct.pack("<IfQQ", len(labels), 0, 0, 0) + struct.pack(f"<{len(labels)}f", *labels) + image
    return struct.pack("<IfQQ", flag or 0, labels, 0, 0) + image


def frame(content, part=0):
    return MAGIC + struct.pack("<I", part << 29 | len(content)) + content + bytes(-len(content) % 4)


def records(labels, identities=True, rounded=lambda number: number):
    """Payloads of a set with one image for each label; images of an identity lie together."""
    images = [payload(float(label), encoded(number)) for number, label in enumerate(labels)]
    if not identities:
        return images
    bounds = [1, *(number + 1 for number in range(1, len(labels)) if labels[number] != labels[number - 1])]
    ends = [*bounds[1:], len(labels) + 1]
    first = len(labels) + 1
    header = payload([rounded(first), rounded(first + len(bounds))])
    return [header, *images, *(payload([rounded(a), rounded(b)]) for a, b in zip(bounds, ends, strict=True))]


def write(root, frames, described=None, keys=None, classes=90_001):
    root.mkdir(exist_ok=True, parents=True)
    offsets = np.cumsum([0, *map(len, frames)])[:-1]
    keys = range(len(frames)) if keys is None else keys
    (root / "train.rec").write_bytes(b"".join(frames))
    (root / "train.idx").write_text("".join(f"{key}\t{offset}\n" for key, offset in zip(keys, offsets, strict=True)))
    (root / "property").write_text(described or f"{classes},{SIZE},{SIZE}")
    return root


LABELS = [0, 0, 1, 2, 2, 2]


def check(faces, labels=LABELS, names=("0", "1", "2")):
    assert len(faces) == len(labels)
    assert faces.labels.tolist() == list(labels)
    assert faces.labels.dtype == np.int64
    assert faces.identity_names == list(names)
    assert faces.num_classes == len(names)
    assert faces.size == SIZE
    for index in range(len(labels)):
        assert np.array_equal(faces.load(index), picture(index))
        assert faces.encoded(index).tobytes() == encoded(index)


@pytest.mark.parametrize("identities", [True, False])
def test_sets_with_and_without_identity_records(tmp_path, identities):
    check(RecordIOFaces(write(tmp_path, [frame(record) for record in records(LABELS, identities)]), SIZE))


def test_labels_stored_as_arrays(tmp_path):
    arrays = [payload([float(label), 7.0], encoded(number)) for number, label in enumerate(LABELS)]
    check(RecordIOFaces(write(tmp_path, [frame(record) for record in arrays]), SIZE))
    arrays = [payload([float(label)], encoded(number)) for number, label in enumerate(LABELS)]
    check(RecordIOFaces(write(tmp_path, [frame(record) for record in arrays]), SIZE))


@pytest.mark.parametrize("identities", [True, False])
def test_labels_with_gaps_become_contiguous_and_keep_their_names(tmp_path, identities):
    frames = [frame(record) for record in records([5, 5, 90000, 7, 7, 7], identities)]
    check(RecordIOFaces(write(tmp_path, frames), SIZE), [0, 0, 2, 1, 1, 1], ("5", "7", "90000"))


def test_a_header_without_identity_records(tmp_path):
    frames = [frame(record) for record in [payload([7, 7]), *records([2, 0, 1, 0, 2, 1], identities=False)]]
    check(RecordIOFaces(write(tmp_path, frames), SIZE), [2, 0, 1, 0, 2, 1])


def test_an_index_of_the_images_alone(tmp_path):
    root = write(tmp_path, [frame(record) for record in records(LABELS)])
    lines = (root / "train.idx").read_text().splitlines(keepends=True)
    (root / "train.idx").write_text("".join(lines[1:7]))
    check(RecordIOFaces(root, SIZE))
    (root / "train.idx").write_text("".join(lines[:7]))
    check(RecordIOFaces(root, SIZE))


def test_an_index_in_any_order_with_any_line_ends(tmp_path):
    root = write(tmp_path, [frame(record) for record in records(LABELS)])
    lines = (root / "train.idx").read_text().splitlines()
    (root / "train.idx").write_bytes("\r\n".join(reversed(lines)).encode())
    check(RecordIOFaces(root, SIZE))


def test_keys_with_gaps_are_fine_where_there_is_no_header(tmp_path):
    frames = [frame(record) for record in records(LABELS, identities=False)]
    check(RecordIOFaces(write(tmp_path, frames, keys=[3, 4, 10, 11, 20, 99]), SIZE))


def test_multipart_records_are_joined_with_the_magic_between_them(tmp_path):
    def split(content):
        # A PNG may be followed by anything: the magic word stands twice behind it.
        first, last = content + bytes(-len(content) % 4), b"end"
        return frame(first, 1) + frame(b"", 2) + frame(last, 3), first + MAGIC + MAGIC + last

    contents = records(LABELS, identities=False)
    frames = [frame(content) for content in contents]
    frames[0], joined_first = split(contents[0])
    frames[4], joined = split(contents[4])
    faces = RecordIOFaces(write(tmp_path, frames), SIZE)
    assert faces.labels.tolist() == LABELS
    assert faces.encoded(0).tobytes() == joined_first[24:]
    assert faces.encoded(4).tobytes() == joined[24:]
    assert np.array_equal(faces.load(4), picture(4))
    # Also where the cut goes through the header's labels: the first of them is then the magic word, -1.8e9.
    content = payload([2.0, 7.0], encoded(4))
    frames[4] = frame(content[:24], 1) + frame(content[28:], 3)
    with pytest.raises(ValueError, match=r"key 4 .* has the label"):
        RecordIOFaces(write(tmp_path, frames), SIZE)


@pytest.mark.parametrize("parts", [(2, 3), (1, 1), (3,), (1, 0)])
def test_parts_in_a_wrong_order_are_refused(tmp_path, parts):
    frames = [frame(record) for record in records(LABELS, identities=False)]
    frames[2] = b"".join(frame(payload(1.0, encoded(2)), part) for part in parts)
    with pytest.raises(ValueError, match=r"train\.rec: the record of key 2 .* parts in a wrong order"):
        RecordIOFaces(write(tmp_path, frames), SIZE)


def test_identity_records_rounded_to_float32_still_give_exact_labels(tmp_path, monkeypatch):
    # As beyond 2^24 images, but already from 16 on: numbers are rounded to multiples of 4.
    labels = np.repeat(np.arange(30), np.random.default_rng(0).integers(1, 6, 30)).tolist()
    monkeypatch.setattr(recordio, "_blur", lambda numbers: np.where(numbers >= 16, 2.0, 0.0))
    monkeypatch.setattr(recordio, "_SAMPLE", 3)
    reads = []
    plain = recordio._Records.labels
    monkeypatch.setattr(recordio._Records, "labels", lambda self, rows: reads.append(len(rows)) or plain(self, rows))
    contents = records(labels, rounded=lambda number: number if number <= 16 else round(number / 4) * 4)
    faces = RecordIOFaces(write(tmp_path, [frame(content) for content in contents]), SIZE)
    assert faces.labels.tolist() == labels
    assert len(reads) == 2  # boundaries and sample, not all headers
    for index in (0, 17, len(labels) - 1):
        assert np.array_equal(faces.load(index), picture(index))


def test_blur_is_half_a_step_of_float32():
    numbers = np.array([1, 2**24 - 1, 2**24, 2**24 + 1, 2**25 - 1, 2**25 + 2, 2**25 + 3, 42_474_558])
    rounded = numbers.astype(np.float32).astype(np.float64)
    assert recordio._blur(rounded).tolist() == [0, 0, 1, 1, 2, 2, 2, 2]
    assert (abs(rounded - numbers) <= recordio._blur(rounded)).all()
    assert (rounded != numbers).sum() == 5


def test_only_one_image_of_each_identity_is_read_to_label_a_set_with_ranges(tmp_path, monkeypatch):
    reads = []
    plain = recordio._Records.labels
    monkeypatch.setattr(
        recordio._Records, "labels", lambda self, rows: reads.append(rows.tolist()) or plain(self, rows)
    )
    monkeypatch.setattr(recordio, "_SAMPLE", 2)
    check(RecordIOFaces(write(tmp_path, [frame(record) for record in records(LABELS)]), SIZE))
    assert reads == [[1, 3, 4], [1, 6]]


@pytest.mark.parametrize(
    "ranges",
    [
        [[1, 3], [3, 4], [4, 6]],  # one image in no range
        [[1, 3], [4, 7], [3, 4]],  # in another order
        [[1, 2], [2, 4], [4, 7]],  # a boundary in a wrong place
        [[0, 3], [3, 4], [4, 7]],  # begins with the header
        [[1, 3], [3, 4], [4, float("nan")]],
    ],
)
def test_labels_of_the_images_decide_where_identity_records_do_not_fit(tmp_path, ranges):
    contents = records(LABELS)[:7] + [payload(list(map(float, bounds))) for bounds in ranges]
    check(RecordIOFaces(write(tmp_path, [frame(content) for content in contents]), SIZE))


def test_a_set_can_be_sent_to_another_process(tmp_path):
    check(
        pickle.loads(pickle.dumps(RecordIOFaces(write(tmp_path, [frame(record) for record in records(LABELS)]), SIZE)))
    )


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder; expected one with train\.rec"):
        RecordIOFaces(tmp_path / "nowhere", SIZE)
    for name in ("train.rec", "train.idx", "property"):
        root = write(tmp_path / name, [frame(record) for record in records(LABELS)])
        (root / name).unlink()
        with pytest.raises(FileNotFoundError, match=rf"{name}: no such file; a set is"):
            RecordIOFaces(root, SIZE)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ("3,8", "expected three whole numbers"),
        ("3,8,8,8", "expected three whole numbers"),
        ("three,8,8", "expected three whole numbers"),
        ("-3,8,8", "expected three whole numbers"),
        (" ", "expected three whole numbers"),
        ("3,112,96", "images of 112×96 pixels, but size is 8"),
        ("2,8,8", r"says 2 identities, but train\.rec has images of 3"),
    ],
)
def test_a_property_that_does_not_fit_is_refused(tmp_path, described, message):
    root = write(tmp_path, [frame(record) for record in records(LABELS)], described)
    with pytest.raises(ValueError, match=rf"property: .*{message}"):
        RecordIOFaces(root, SIZE)


def test_labels_outside_the_classes_are_refused(tmp_path):
    for identities in (True, False):
        frames = [frame(record) for record in records([0, 0, 1, 7, 7], identities)]
        first = 4 if identities else 3
        with pytest.raises(ValueError, match=rf"key {first} .* has the label 7, but property says 7 identities, "):
            RecordIOFaces(write(tmp_path / str(identities), frames, classes=7), SIZE)
    # What the message advises is accepted.
    (tmp_path / "False" / "property").write_text("8,8,8")
    assert RecordIOFaces(tmp_path / "False", SIZE).identity_names == ["0", "1", "7"]


def test_one_identity_is_no_training_set(tmp_path):
    frames = [frame(record) for record in records([3, 3, 3])]
    with pytest.raises(ValueError, match=r"train\.rec: has images of one identity only \(label 3\), 2 are needed"):
        RecordIOFaces(write(tmp_path, frames), SIZE)


def test_an_image_is_named_by_its_key(tmp_path):
    frames = [frame(record) for record in records(LABELS, identities=False)]
    faces = RecordIOFaces(write(tmp_path, frames, keys=[3, 4, 10, 11, 20, 99]), SIZE)
    assert faces.name(5) == "key 99"


def test_a_truncated_file_is_refused(tmp_path):
    root = write(tmp_path, [frame(record) for record in records(LABELS)])
    whole = (root / "train.rec").read_bytes()
    for size in (len(whole) - 1, len(whole) - 9, len(whole) - 45, len(whole) // 2, 31, 0):
        (root / "train.rec").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"train\.rec.* truncated"):
            RecordIOFaces(root, SIZE)


@pytest.mark.parametrize("offset", [-4, 2**40, 2**63 - 1, 2**70, 42])
def test_hostile_offsets_are_refused(tmp_path, offset):
    root = write(tmp_path, [frame(record) for record in records(LABELS)])
    lines = (root / "train.idx").read_text().splitlines()
    (root / "train.idx").write_text("\n".join([*lines[:3], f"3\t{offset}", *lines[4:]]))
    with pytest.raises(ValueError, match=r"train\.idx: key 3 points to byte"):
        RecordIOFaces(root, SIZE)


@pytest.mark.parametrize(
    "text", ["", "\n\n", "0\n1\n", "0\t0\t0\n1\t40\n", "0\tx\n", "0\t0\n1\t40.5\n", "0\t0\n\n1\t40\n"]
)
def test_an_index_that_is_none_is_refused(tmp_path, text):
    root = write(tmp_path, [frame(record) for record in records(LABELS)])
    (root / "train.idx").write_text(text)
    with pytest.raises(ValueError, match=r"train\.idx: (is empty|has lines that are not)"):
        RecordIOFaces(root, SIZE)


def change_index(root, change):
    lines = (root / "train.idx").read_text().splitlines()
    (root / "train.idx").write_text("\n".join(change(lines)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines[:4], "4\t4", *lines[5:]], r"key 4 \(byte 4\) does not begin with the magic word"),
        (lambda lines: [*lines, lines[3]], "names key 3 twice"),
        (lambda lines: lines[:3] + lines[4:], "the index lacks records"),
        (lambda lines: lines[:5], "its header says images up to key 7, but its index has them up to 5"),
        (lambda lines: lines[:-1], "its header says identity records up to key 10, but its index has them up to 9"),
        (lambda lines: lines[:1], "holds no images"),
    ],
)
def test_an_index_that_disagrees_is_refused(tmp_path, change, message):
    root = write(tmp_path, [frame(record) for record in records(LABELS)])
    change_index(root, change)
    with pytest.raises(ValueError, match=message):
        RecordIOFaces(root, SIZE)


@pytest.mark.parametrize("label", [-1.0, 0.5, float("nan"), float("inf"), 2.0**24])
def test_a_label_that_is_no_identity_is_refused(tmp_path, label):
    contents = records(LABELS, identities=False)
    contents[3] = payload(label, encoded(3))
    with pytest.raises(ValueError, match=r"key 3 .* has the label"):
        RecordIOFaces(write(tmp_path, [frame(content) for content in contents]), SIZE)


def test_damaged_records_are_refused(tmp_path):
    contents = records(LABELS, identities=False)
    contents[3] = payload(1.0, encoded(3), flag=2**31)
    with pytest.raises(ValueError, match=r"key 3 .* too short for its 2147483648 labels"):
        RecordIOFaces(write(tmp_path, [frame(content) for content in contents]), SIZE)
    contents[3] = b"\0" * 20
    with pytest.raises(ValueError, match=r"key 3 .* shorter than a header"):
        RecordIOFaces(write(tmp_path, [frame(content) for content in contents]), SIZE)
    with pytest.raises(ValueError, match=r"key 0 .* neither an image nor a header"):
        RecordIOFaces(write(tmp_path, [frame(payload(0.0)), *map(frame, contents)]), SIZE)


@pytest.mark.parametrize("image", [b"", b"not an image"])
def test_an_unreadable_image_is_named_when_it_is_loaded(tmp_path, image):
    contents = records(LABELS, identities=False)
    contents[3] = payload(2.0, image)
    faces = RecordIOFaces(write(tmp_path, [frame(content) for content in contents]), SIZE)
    with pytest.raises(ValueError, match=r"train\.rec: the record of key 3 .* holds no readable image"):
        faces.load(3)
    assert np.array_equal(faces.load(4), picture(4))
    for index in (-1, 6):
        with pytest.raises(IndexError):
            faces.load(index)


@pytest.mark.data
def test_celeba(real_data):
    faces = RecordIOFaces(real_data / "celeba", 112)
    assert len(faces) == 15_371
    assert faces.num_classes == 1_165
    assert faces.identity_names == [str(number) for number in range(1_165)]
    counts = np.bincount(faces.labels)
    assert (counts.min(), counts.max()) == (5, 30)
    assert np.array_equal(faces._records.labels(np.arange(1, 15_372)), faces.labels)
    some = list(range(0, 15_371, 97))
    with ThreadPoolExecutor(2) as pool:
        images = list(pool.map(faces.load, some))
    assert all(image.shape == (112, 112, 3) for image in images)
    for index, image in zip(some[::20], images[::20], strict=True):
        assert np.array_equal(image, cv2.imdecode(faces.encoded(index), cv2.IMREAD_COLOR)[..., ::-1])
