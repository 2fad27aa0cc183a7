"""Several sets as one: numbered through, named, joined by name where that is asked for, looked at and loaded."""

import pickle
import struct
from functools import partial

import cv2
import numpy as np
import pytest

from facelab.data.albumentation import Albumentations
from facelab.data.folder import FolderFaces
from facelab.data.imagefolder import ImageFolder
from facelab.data.inspect import inspect
from facelab.data.plan import Plan
from facelab.data.process_loader import ProcessLoader
from facelab.data.recordio import RecordIOFaces
from facelab.data.synthetic import SyntheticFaces
from facelab.data.torch_loader import TrainLoader
from facelab.data.union import UnionFaces

SIZE = 8


def picture(seed, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def png(seed, size=SIZE):
    return cv2.imencode(".png", picture(seed, size)[..., ::-1])[1].tobytes()


def write_folder(root, people, first=0, size=SIZE):
    """A folder for each person (name → images), with pictures first, first + 1, …"""
    for name in sorted(people):
        (root / name).mkdir(parents=True)
        for number in range(people[name]):
            (root / name / f"{number}.png").write_bytes(png(first, size))
            first += 1
    return root


def write_pack(root, labels, first=0, size=SIZE, stored=SIZE):
    root.mkdir(parents=True)
    payloads = [struct.pack("<IfQQ", 0, label, 0, 0) + png(first + i, stored) for i, label in enumerate(labels)]
    frames = [struct.pack("<II", 0xCED7230A, len(p)) + p + bytes(-len(p) % 4) for p in payloads]
    (root / "train.rec").write_bytes(b"".join(frames))
    ends = np.cumsum([len(frame) for frame in frames])
    (root / "train.idx").write_text("".join(f"{i}\t{end - len(frames[i])}\n" for i, end in enumerate(ends)))
    (root / "property").write_text(f"{max(labels) + 1},{size},{size}")
    return root


def drawn(seed=0, size=32):
    return SyntheticFaces(3, 2, size, long_tail=1, nuisance=1, seed=seed)


def union(*roots, sets=(), size=SIZE, identities="separate"):
    return UnionFaces([str(root) for root in roots], list(sets), size, identities)


@pytest.fixture
def three(tmp_path):
    """Two folders and a pack: 5 + 3 + 4 images."""
    first = write_folder(tmp_path / "mine", {"ada": 2, "ben": 3}, 0)
    second = write_folder(tmp_path / "yours", {"ben": 1, "cleo": 2}, 5)
    return first, second, write_pack(tmp_path / "pack", [0, 0, 2, 2], 8)


def test_images_and_people_are_numbered_through(three):
    faces = union(*three)
    assert len(faces) == len(faces.labels) == 12
    assert faces.labels.dtype == np.int64
    assert faces.labels.tolist() == [0, 0, 1, 1, 1, 2, 3, 3, 4, 4, 5, 5]
    assert faces.num_classes == 6
    assert faces.identity_names == ["mine/ada", "mine/ben", "yours/ben", "yours/cleo", "pack/0", "pack/2"]
    names = ["mine/ada/1.png", "mine/ben/2.png", "yours/ben/0.png", "yours/cleo/1.png", "pack/key 0", "pack/key 3"]
    assert [faces.name(index) for index in (1, 4, 5, 7, 8, 11)] == names
    for index in range(12):
        assert np.array_equal(faces.load(index), picture(index))
        assert faces.encoded(index).tobytes() == png(index)
    assert faces.of(6)[1] == 1
    assert isinstance(faces.of(8)[0], RecordIOFaces)
    for index in (-1, 12):
        with pytest.raises(IndexError, match="of 12"):
            faces.load(index)


def test_by_name_people_of_one_name_are_one(three):
    faces = union(*three[:2], identities="by_name")
    assert faces.identity_names == ["ada", "ben", "cleo"]
    assert faces.labels.tolist() == [0, 0, 1, 1, 1, 1, 2, 2]
    assert faces.num_classes == 3
    assert faces.name(5) == "yours/ben/0.png"


def test_names_are_one_however_a_system_writes_their_letters(tmp_path):
    composed, taken_apart = "민", "\u1106\u1175\u11ab"
    first = write_folder(tmp_path / "a", {composed: 1, "x": 1})
    second = write_folder(tmp_path / "b", {taken_apart: 1, "y": 1})
    assert union(first, second, identities="by_name").num_classes == 3
    assert union(first, second).num_classes == 4


def test_sets_of_one_name_are_told_apart(tmp_path):
    roots = [write_folder(tmp_path / name / "faces", {"a": 1, "b": 1}) for name in ("old", "new")]
    faces = union(*roots)
    assert faces.identity_names == ["faces/a", "faces/b", "faces (2)/a", "faces (2)/b"]
    both = UnionFaces([], [drawn(0), drawn(1)], 32, "separate")
    assert both.identity_names[0] == "SyntheticFaces/person 0"
    assert both.name(7) == "SyntheticFaces (2)/image 1"


def test_a_set_of_another_kind_stands_behind_the_folders(tmp_path):
    root = write_folder(tmp_path / "mine", {"ada": 2, "ben": 3})
    faces = union(root, sets=[drawn()], size=32)
    assert faces.labels.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4]
    assert np.array_equal(faces.load(6), drawn().load(1))
    assert not hasattr(faces, "encoded"), "not all of its images are files"
    assert hasattr(union(root), "encoded")


def test_folders_are_resized_and_packs_are_not(tmp_path, three):
    large = write_folder(tmp_path / "large", {"a": 1, "b": 1}, size=12)
    assert union(large, three[2]).load(0).shape == (SIZE, SIZE, 3)
    assert union(large).resizes
    assert not union(large, three[2]).resizes
    with pytest.raises(ValueError, match=r"^data\.roots: .*property: says images of 8×8 pixels, but size is 16"):
        union(large, three[2], size=16)
    with pytest.raises(ValueError, match=r"images of SyntheticFaces have 32×32 pixels, but data\.size is 8"):
        union(large, sets=[drawn()])


def test_it_is_looked_at_set_by_set(tmp_path):
    large = write_folder(tmp_path / "large", {"a": 1, "b": 2}, size=12)
    (large / "b" / "0.png").write_bytes(b"nothing")
    (large / "nobody").mkdir()
    odd = write_pack(tmp_path / "pack", [0, 1], stored=12)
    faces = union(large, odd)
    assert faces.empty == ["large/nobody"]
    found = inspect(faces, True, "skip", "keep", 1, lambda done, total: None)
    told = [(one.image, one.identity, one.name, one.kind, one.why) for one in found.odd]
    assert told == [
        (None, "large/nobody", "large/nobody", "empty folder", ""),
        (0, "large/a", "large/a/0.png", "PNG", ""),
        (1, "large/b", "large/b/0.png", "unreadable", "is no image"),
        (2, "large/b", "large/b/1.png", "PNG", ""),
        (3, "pack/0", "pack/key 0", "unreadable", "is 12×12 pixels, not 8×8"),
        (4, "pack/1", "pack/key 1", "unreadable", "is 12×12 pixels, not 8×8"),
    ]
    assert found.kept.tolist() == [True, False, True, False, False]


def test_threads_and_processes_load_it(three):
    faces = pickle.loads(pickle.dumps(union(*three)))
    assert faces.encoded(9).tobytes() == png(9)
    known = {"source": union(*three), "subset": np.arange(12), "labels": faces.labels, "plan": Plan(12, 4, 0)}
    known |= {"seed": 7, "draws": 1, "start": 0, "stop": 3, "rank": 0, "world": 1, "prefetch": 2, "pin": False}
    nothing = Albumentations([{"ToGray": {"p": 0.0}}])
    for made in (partial(TrainLoader, threads=2), partial(ProcessLoader, nothing, 1)):
        seen = set()
        for batch in made(**known):
            for image, label, index in zip(batch.images, batch.labels, batch.indices, strict=True):
                assert np.array_equal(image.numpy(), picture(int(index)))
                assert label == faces.labels[index]
                seen.add(int(index))
        assert len(seen) == 12


def test_all_missing_folders_are_told_at_once_and_before_any_is_opened(tmp_path, three):
    (tmp_path / "empty").mkdir()
    roots = [tmp_path / "nowhere", three[0], tmp_path / "empty", tmp_path / "gone"]
    with pytest.raises(FileNotFoundError, match=rf"^data\.roots: no such folder: {roots[0]}, {roots[3]}; each is"):
        union(*roots)
    with pytest.raises(ValueError, match=rf"^data\.roots: {roots[2]}: expected .*it is empty"):
        union(*roots[1:3])


def test_what_is_no_union_is_refused(tmp_path, three, monkeypatch):
    mine, yours, pack = three
    with pytest.raises(ValueError, match=r"data=union has no sets: name their folders, data\.roots="):
        union()
    with pytest.raises(ValueError, match=rf"data\.roots names {mine} twice: its images would count twice"):
        union(mine, yours, mine)
    (tmp_path / "link").symlink_to(mine)
    with pytest.raises(ValueError, match=rf"data\.roots names {mine} and {tmp_path}/link, one folder"):
        union(mine, tmp_path / "link")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="one folder"):
        union(mine, "mine")
    with pytest.raises(ValueError, match=r"^data\.identities=by_name: pack has no folders whose names are names"):
        union(mine, pack, identities="by_name")
    with pytest.raises(ValueError, match=r"data\.identities is 'merged': give one of separate, by_name"):
        union(mine, identities="merged")
    things = ImageFolder(mine, SIZE, "train", None)
    with pytest.raises(ValueError, match="ImageFolder is divided into parts of its own"):
        union(yours, sets=[things])


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folder(tmp_path / "mine", {"a": 1, "b": 1})
    faces = union("~/mine")
    assert faces.name(0) == "mine/a/0.png"
    assert isinstance(faces.of(0)[0], FolderFaces)
