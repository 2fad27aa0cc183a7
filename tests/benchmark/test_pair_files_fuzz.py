"""A `.bin` that is damaged: an error, or the images and labels that it holds; never another image, and nothing else."""

import io
import pickle
import tracemalloc

import numpy as np
import pytest
import simplejpeg
from fuzzing import fuzzing
from hypothesis import given
from hypothesis import strategies as st

from facelab.benchmark.pair_files import read_bin
from facelab.benchmark.safe_pickle import read_pickle

PAIRS = 6


def jpeg(seed):
    small = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(small.repeat(8, 0).repeat(8, 1)), 80)


IMAGES = [jpeg(seed) for seed in range(2 * PAIRS)]
SAME = [True] * (PAIRS // 2) + [False] * (PAIRS - PAIRS // 2)


def without_memo(content):
    out = io.BytesIO()
    pickler = pickle.Pickler(out, 4)
    pickler.fast = True
    pickler.dump(content)
    return out.getvalue()


# As Python 3 writes them, as for Python 2, with arrays, and as our own writer does.
FILES = {
    "protocol 4": pickle.dumps((IMAGES, SAME), 4),
    "protocol 2": pickle.dumps((IMAGES, SAME), 2),
    "protocol 0": pickle.dumps((IMAGES, SAME), 0),
    "arrays": pickle.dumps(([np.frombuffer(image, np.uint8) for image in IMAGES], np.array(SAME)), 4),
    "without memo": without_memo((IMAGES, SAME)),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def attempt(function, *arguments):
    """What a function gives, and the message of its refusal; any other exception is a failure."""
    try:
        return function(*arguments), ""
    except ValueError as error:
        return None, str(error)


def read(place, content):
    """The pairs as (first image, second image, same); None where the file is refused."""
    path = place / "x.bin"
    path.write_bytes(content)
    pairs, refusal = attempt(read_bin, path, "x", 2, 16)
    if pairs is None:
        assert str(path) in refusal or refusal.startswith("x: ")
        return None
    images = next(cell.cell_contents for cell in pairs.load.__closure__ if isinstance(cell.cell_contents, list))
    for number in range(len(pairs)):
        image, refusal = attempt(pairs.load, number)
        assert image.shape == (16, 16, 3) if image is not None else str(path) in refusal
    return [(images[a], images[b], bool(same)) for (a, b), same in zip(pairs.pairs, pairs.same, strict=True)]


WHOLE = [(IMAGES[2 * k], IMAGES[2 * k + 1], SAME[k]) for k in range(PAIRS)]


@pytest.mark.parametrize("kind", FILES)
def test_whole(place, kind):
    assert read(place, FILES[kind]) == WHOLE


@pytest.mark.parametrize("kind", FILES)
@fuzzing(100)
@given(data=st.data())
def test_a_changed_bit_changes_what_it_lies_in_and_nothing_else(place, kind, data):
    content = bytearray(FILES[kind])
    # Half of them where images do not lie.
    anywhere = st.integers(0, len(content) - 1)
    position = data.draw(st.one_of(anywhere, st.sampled_from(between_images(kind))))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    got = read(place, bytes(content))
    if got is None:
        return
    assert len(got) == PAIRS
    changed = [
        (new, old, part)
        for pair, whole in zip(got, WHOLE, strict=True)
        for part, (new, old) in enumerate(zip(pair, whole, strict=True))
        if new != old
    ]
    assert len(changed) <= 1 or kind == "arrays"
    for new, _, part in changed:
        assert part == 2 or new not in IMAGES, "another image in its place"


def between_images(kind):
    content = FILES[kind]
    inside = np.zeros(len(content), dtype=bool)
    for image in IMAGES:
        at = content.find(image)
        if at >= 0:
            inside[at : at + len(image)] = True
    return np.flatnonzero(~inside).tolist()


@pytest.mark.parametrize("kind", FILES)
@fuzzing(100)
@given(data=st.data())
def test_cut_off(place, kind, data):
    assert read(place, FILES[kind][: data.draw(st.integers(0, len(FILES[kind]) - 1))]) is None


@pytest.mark.parametrize("kind", FILES)
@fuzzing(100)
@given(data=st.data())
def test_bytes_put_in_taken_out_or_overwritten(place, kind, data):
    content = FILES[kind]
    first, end = sorted(data.draw(st.tuples(*[st.sampled_from(between_images(kind))] * 2)))
    other = data.draw(st.binary(max_size=12))
    got = read(place, content[:first] + other + content[min(end, first + data.draw(st.integers(0, 12))) :])
    if got is not None:
        assert len(got) <= PAIRS + len(other)


@fuzzing(100)
@given(st.binary(max_size=200))
def test_noise(place, content):
    assert read(place, content) is None
    assert read(place, b"\x80\x04" + content) is None


def test_a_memo_s_number_takes_no_memory(place):
    """One changed bit of a LONG_BINPUT: Python's own unpickler in C fills memory for as many objects."""
    path = place / "x.bin"
    number = 1 << 22
    path.write_bytes(b"\x80\x02]r" + number.to_bytes(4, "little") + b".")
    tracemalloc.start()
    try:
        assert read_pickle(path) == []
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_pickle_cannot_ask_for_zeros(place):
    path = place / "x.bin"
    path.write_bytes(b"\x80\x02cbuiltins\nbytes\nJ\x00\x00\x00\x40\x85R.")
    with pytest.raises(ValueError, match=r"x\.bin"):
        read_pickle(path)


@pytest.mark.parametrize("labels", [np.array(True), np.ones((2, 1), dtype=bool)])
def test_labels_that_are_no_list(place, labels):
    path = place / "x.bin"
    path.write_bytes(pickle.dumps((IMAGES[:4], labels), 4))
    with pytest.raises(ValueError, match="no list of"):
        read_bin(path, "x", 2, 16)
