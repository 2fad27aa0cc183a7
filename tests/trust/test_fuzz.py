"""Damage of every kind to what a checkpoint says of itself, to .mat lists and to lists of images and of pairs.

Either it is read, or it is refused in one line: no other exception, no hang, and no memory for what is not there. Packs
and `.bin` have their own: data/test_recordio_fuzz.py and benchmark/test_pair_files_fuzz.py.
"""

import copy
import io
import json
import struct
import tracemalloc

import hydra
import numpy as np
import pytest
from fuzzing import fuzzing
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.numpy import save
from scipy.io import savemat

from facelab.benchmark.image_list import read_list
from facelab.benchmark.pair_files import read_pairs_file
from facelab.benchmark.search_files import read_mat
from facelab.configuration import configuration_folder
from facelab.export.base import described
from facelab.training import checkpoint, taken_over
from facelab.training.trained import meta_of
from facelab.trusted import parse, safe

LARGE = 1 << 25  # bytes that refusing a file of a few kilobytes may take


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "file"


def attempt(function, *arguments):
    """What a function gives, or None where it refuses in one line; any other exception is a failure."""
    refusal = ""
    try:
        return function(*arguments)
    except (ValueError, FileNotFoundError) as error:
        refusal = str(error)
    assert 0 < len(refusal) < 2000  # doors bring it to one line, whatever a name in it holds
    return None


def peak(function, *arguments):
    """Bytes that such an attempt takes."""
    tracemalloc.start()
    try:
        attempt(function, *arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@st.composite
def damaged(draw, content):
    """Cut off, with a changed bit, or with bytes put in, taken out or overwritten."""
    at = draw(st.integers(0, len(content) - 1))
    match draw(st.sampled_from(("cut", "bit", "bytes", "word"))):
        case "cut":
            return content[:at]
        case "bit":
            return content[:at] + bytes([content[at] ^ 1 << draw(st.integers(0, 7))]) + content[at + 1 :]
        case "bytes":
            return content[:at] + draw(st.binary(max_size=8)) + content[at + draw(st.integers(0, 8)) :]
        case _:
            extremes = (0, 1, 2**31 - 1, 2**31, 2**32 - 1)
            word = draw(st.sampled_from(extremes) | st.integers(0, 2**32 - 1))
            at -= at % 4
            return content[:at] + struct.pack("<I", word) + content[at + 4 :]


# Checkpoints

STRANGE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["${oc.env:HOME}", "???", "os.system", "../../x", 2**70, -1, 1e300]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["x", "_target_"]), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


def composed(name, *overrides):
    OmegaConf.register_new_resolver("facelab.job", lambda: "small", replace=True)
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        return hydra.compose(name, ["logger=csv", *overrides])


META = {
    **{"format": 1, "shards": [], "step": 3, "num_classes": 8, "progress": {"step": 3}},
    "input": {"color": "rgb", "mean": 127.5, "std": 127.5},
    "config": OmegaConf.to_container(composed("config", "job=small"), resolve=True),
}
OWN = composed("evaluate", "checkpoint=x.ckpt", "job=small")


def bytes_of(meta):
    return save({"model.x": np.zeros(2, np.float32)}, {"facelab": meta if isinstance(meta, str) else json.dumps(meta)})


def use(path):
    """What an evaluation asks of a checkpoint, before a network is built."""
    meta = meta_of(path)
    if meta is None:
        return None
    taken_over.take_over(OWN.copy(), meta, set())
    for group in ("backbone", "head", "loss"):
        safe("checkpoint", meta["config"][group], group, path)
    checkpoint.Tensors([path])
    return meta


def places(tree, way=()):
    yield way
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(value, (*way, key))


WAYS = [way for way in places(META) if way]


def test_a_checkpoint_that_is_whole(place):
    place.write_bytes(bytes_of(META))
    assert use(place) == META


@fuzzing(40)
@given(data=st.data())
def test_a_checkpoint_that_says_other_things(place, data):
    meta = copy.deepcopy(META)
    *way, last = data.draw(st.sampled_from(WAYS))
    node = meta
    for key in way:
        node = node[key]
    if data.draw(st.booleans()) and isinstance(node, dict):
        del node[last]
    else:
        node[last] = data.draw(STRANGE)
    place.write_bytes(bytes_of(meta))
    attempt(use, place)


@fuzzing(150)
@given(data=st.data())
def test_a_checkpoint_that_is_damaged(place, data):
    place.write_bytes(data.draw(damaged(bytes_of(META))))
    attempt(use, place)
    attempt(checkpoint.read_meta, place)


@fuzzing(60)
@given(st.one_of(st.text(max_size=60), STRANGE.map(json.dumps), st.integers(1, 200_000).map(lambda n: "[" * n)))
def test_a_checkpoint_whose_words_are_noise(place, text):
    place.write_bytes(bytes_of(text))
    assert attempt(use, place) is None
    attempt(described, text, place)
    attempt(parse, text)


# Lists

NAMES = ["1_a.jpg", "1_b.jpg", "22_c.jpg"]


def mat(compressed):
    out = io.BytesIO()
    cells = np.array([[name] for name in NAMES], dtype=object)
    savemat(out, {"probe_set": cells, "probe_ids": np.array([[1], [1], [22]])}, do_compression=compressed)
    return out.getvalue()


MATS = {compressed: mat(compressed) for compressed in (False, True)}


@pytest.mark.parametrize("compressed", MATS)
def test_a_mat_list_that_is_whole(place, compressed):
    place.write_bytes(MATS[compressed])
    assert read_mat(place, "probe") == (NAMES, [1, 1, 22])


@pytest.mark.parametrize("compressed", MATS)
@fuzzing(150)
@given(data=st.data())
def test_a_mat_list_that_is_damaged(place, compressed, data):
    place.write_bytes(data.draw(damaged(MATS[compressed])))
    found = attempt(read_mat, place, "probe")
    assert peak(read_mat, place, "probe") < LARGE
    assert found is None or len(found[0]) == len(found[1])


CSV = b"image,person,set,failed\na.jpg,anna,enrol,1\nb.jpg,anna,verify,1\nc/d.jpg,boris,verify,yes\n"


@fuzzing(150)
@given(damaged(CSV) | st.binary(max_size=80) | st.text(alphabet=',"\n\r\0aä ', max_size=60).map(str.encode))
def test_a_list_of_images_that_is_damaged(place, content):
    place.write_bytes(content)
    arguments = {"name": "x", "size": 16, "accept_unreadable": False}
    found = attempt(lambda: read_list(place.parent, place, None, [], **arguments))
    assert found is None or 1 <= len(found.people) <= len(found)


PAIRS = b"2\t2\nanna\t1\t2\nboris 1 2\nanna\t1\tboris\t2\ncleo 1 dora 2\n" + b"a 1 2\nb 1 2\na 1 b 1\na 2 b 2\n"


@fuzzing(150)
@given(damaged(PAIRS) | st.binary(max_size=80) | st.text(alphabet="0123456789\t\n a-٣", max_size=40).map(str.encode))
def test_a_list_of_pairs_that_is_damaged(place, content):
    place.write_bytes(content)
    found = attempt(read_pairs_file, place, 2)
    assert found is None or len(found[0]) == len(found[1]) == len(found[2])
