"""A .bin may hold images and bools; whatever else it names is refused by name and never called."""

import builtins
import io
import os
import pickle
import pickletools

import numpy as np
import pytest

from facelab.benchmark.safe_pickle import read_pickle


class Hostile:
    def __init__(self, call, *arguments):
        self.answer = (call, arguments)

    def __reduce__(self):
        return self.answer


def written(tmp_path, content):
    path = tmp_path / "pairs.bin"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_hostile_pickle_is_refused_by_name_and_nothing_runs(tmp_path, protocol, wrapped):
    trace = tmp_path / "trace"
    attacks = {
        f"{os.system.__module__}.system": Hostile(os.system, f"touch {trace}"),
        "builtins.eval": Hostile(builtins.eval, f"open({str(trace)!r}, 'w')"),
        "builtins.getattr": Hostile(getattr, os, "name"),
    }
    for name, attack in attacks.items():
        if name == "builtins.getattr":
            attack.answer = (getattr, ("", "join"))
        path = written(tmp_path, pickle.dumps(([b"x", attack], [True]) if wrapped else attack, protocol))
        with pytest.raises(ValueError, match=name) as refusal:
            read_pickle(path)
        assert str(path) in str(refusal.value)
        assert not trace.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cnumpy\nload\n(S'x'\ntR.",  # numpy has functions that read files
        b"cnumpy.f2py\ncapi_maps\n.",
        b"\x80\x04\x8c\x08builtins\x94\x8c\x0dbytes.fromhex\x94\x93.",  # a dotted way through an allowed name
        b"cfacelab.benchmark.safe_pickle\n_Call\n.",
        b"\x82\x01.",  # the copyreg extension registry
        b"Pid\n.",  # persistent id
    ],
)
def test_other_ways_in_are_closed(tmp_path, program):
    with pytest.raises(ValueError, match=r"pairs\.bin"):
        read_pickle(written(tmp_path, program))


def test_the_reader_s_own_functions_cannot_be_changed_by_a_file(tmp_path):
    # BUILD with a (None, {...}) state sets attributes on whatever lies on the stack
    attack = b"c_codecs\nencode\n(N}Vfunction\ncbuiltins\nlist\nstb."
    with pytest.raises(ValueError, match="change one of the reader's functions"):
        read_pickle(written(tmp_path, attack))
    good = (b"\xff\xd8" * 3, True)
    assert read_pickle(written(tmp_path, pickle.dumps(good, 2))) == list(good)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_bytes_and_arrays_of_every_protocol(tmp_path, protocol):
    images = [
        b"\x00\xff\x80jpeg",
        b"",
        np.arange(256, dtype=np.uint8),
        np.arange(6, dtype=np.uint8).reshape(2, 3, order="F"),
    ]
    labels = [True, np.bool_(False)]
    got_images, got_labels = read_pickle(written(tmp_path, pickle.dumps((images, labels), protocol)))
    assert got_images[:2] == images[:2]
    np.testing.assert_array_equal(got_images[2], images[2])
    np.testing.assert_array_equal(got_images[3], images[3])
    assert got_labels == [True, False]
    got = read_pickle(
        written(tmp_path, pickle.dumps([images[:1], np.array(labels), np.arange(3, dtype=">i4")], protocol))
    )
    assert got[1].dtype == bool
    assert got[1].tolist() == [True, False]
    assert got[2].tolist() == [0, 1, 2]


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_a_python_2_pickle_gives_bytes(tmp_path, core):
    """What Python 2 wrote at protocol 2: str by SHORT_BINSTRING, an array by _reconstruct with str arguments."""
    string = lambda raw: b"U" + bytes([len(raw)]) + raw  # noqa: E731
    raw = bytes([255, 216, 0, 10])
    array = (
        b"c" + core + b".multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R"
        b"(K\x01K\x04\x85cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R"
        b"(K\x03" + string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + string(raw) + b"tb"
    )  # fmt: skip
    program = b"\x80\x02](" + string(raw) + array + b"e](\x88e\x86."
    pickletools.dis(program, out=io.StringIO())
    images, labels = read_pickle(written(tmp_path, program))
    assert images[0] == raw
    assert images[1].tobytes() == raw
    assert labels == [True]


@pytest.mark.parametrize(
    "content",
    [
        np.array([b"x", None], dtype=object),
        [np.array([{}], dtype=object)],
        np.zeros(3, dtype=[("a", "O")]),
        np.zeros(3, dtype=np.float32),
        {"images": {1}},
    ],
)
def test_other_contents_are_refused(tmp_path, content):
    if isinstance(content, dict):
        content = Hostile(set, [1])
    with pytest.raises(ValueError, match=r"pairs\.bin"):
        read_pickle(written(tmp_path, pickle.dumps(content, 2)))


def test_truncated_and_foreign_files(tmp_path):
    whole = pickle.dumps(([np.arange(9, dtype=np.uint8), b"abc"], [True]), 4)
    for length in range(len(whole)):
        with pytest.raises(ValueError, match=r"pairs\.bin"):
            read_pickle(written(tmp_path, whole[:length]))
    for foreign in (
        b"\xff\xd8\xff\xe0 a JPEG",
        b"PK\x03\x04 a zip",
        b"10\t300\n",
        np.random.default_rng(0).bytes(4000),
    ):
        with pytest.raises(ValueError, match=r"pairs\.bin"):
            read_pickle(written(tmp_path, foreign))


def test_an_array_whose_bytes_do_not_fit_its_shape(tmp_path):
    whole = pickle.dumps(np.arange(200, dtype=np.uint8), 2)
    assert whole.count(b"K\xc8\x85") == 1  # the shape (200,)
    with pytest.raises(ValueError, match="do not fit"):
        read_pickle(written(tmp_path, whole.replace(b"K\xc8\x85", b"K\xc9\x85")))
