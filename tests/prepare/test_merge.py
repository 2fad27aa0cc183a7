"""Sets are made one: who is in it under which name, who is not and why, and what a model has to say about it."""

import csv
import json
import shutil
from typing import ClassVar

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sets import SIZE, door, folder_set, jpeg, pack_set

from facelab.data.folder import FolderFaces
from facelab.data.open import open_faces
from facelab.data.recordio import RecordIOFaces
from facelab.door import configuration_folder
from facelab.prepare import merge as room
from facelab.prepare.embedding import by_identity
from facelab.prepare.existing import people
from facelab.prepare.kept_embeddings import Blocks
from facelab.training import fit
from facelab.training.network import build_backbone

A = {"anna": [jpeg(0), jpeg(1)], "bo": [jpeg(2)], "cy": [jpeg(3), jpeg(4), jpeg(5)]}
B = {"anna": [jpeg(10)], "dee": [jpeg(11), jpeg(0)]}


def made(tmp_path):
    """Identity → the bytes of its images, of the set that was made."""
    faces = open_faces(tmp_path / "out", SIZE)
    names = people(faces)
    content = {name: [] for name in names}
    for index, label in enumerate(faces.labels.tolist()):
        content[names[label]].append(faces.encoded(index).tobytes())
    return content


def removed(tmp_path):
    with open(tmp_path / "out" / "removed.csv", newline="", encoding="utf-8") as file:
        return [tuple(row.values()) for row in csv.DictReader(file)]


def merge(tmp_path, monkeypatch, capsys, *words):
    return door(monkeypatch, capsys, "task=merge", f"out={tmp_path}/out", "threads=1", *words)


def sources(*roots):
    return f"sources=[{','.join(map(str, roots))}]"


@pytest.mark.parametrize("layout", ["pack", "folder"])
def test_separate_people_whose_names_clash_get_their_sets_names(tmp_path, monkeypatch, capsys, layout):
    a, b = folder_set(tmp_path / "A", A), pack_set(tmp_path / "B", B)
    code, output, said = merge(tmp_path, monkeypatch, capsys, sources(a, b), f"layout={layout}", "copies=keep")
    assert (code, said) == (0, "")
    assert "9 images of 5 identities" in output
    expected = {"A_anna": A["anna"], "bo": A["bo"], "cy": A["cy"], "B_anna": B["anna"], "dee": B["dee"]}
    assert made(tmp_path) == expected
    assert isinstance(open_faces(tmp_path / "out", SIZE), RecordIOFaces if layout == "pack" else FolderFaces)
    assert removed(tmp_path) == []
    report = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert [source["images"] for source in report["sources"]] == [6, 3]
    assert report["choices"]["identities"] == "separate"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A", "B", "out"]


def test_people_of_one_name_become_one(tmp_path, monkeypatch, capsys):
    a, b = folder_set(tmp_path / "A", A), pack_set(tmp_path / "B", B)
    words = (sources(a, b), "identities=by_name", "layout=folder")
    code, _, said = merge(tmp_path, monkeypatch, capsys, *words)
    assert (code, said) == (0, "")
    # Of the image that A's anna and B's dee have in common, the first stays.
    assert made(tmp_path) == {"anna": [*A["anna"], *B["anna"]], "bo": A["bo"], "cy": A["cy"], "dee": [jpeg(11)]}
    assert removed(tmp_path) == [("B", "dee", "key 3", "copy", "", "A: anna/0.jpg")]
    assert sorted(path.name for path in (tmp_path / "out" / "anna").iterdir()) == [
        "A_0.jpg", "A_1.jpg", "B_00000001.jpg",
    ]  # fmt: skip


def test_a_name_is_the_same_in_another_case_or_encoding(tmp_path, monkeypatch, capsys):
    a = folder_set(tmp_path / "A", {"Zo\u00eb": [jpeg(0)], "bo": [jpeg(1)]})
    b = folder_set(tmp_path / "B", {"zoe\u0308": [jpeg(2)], "cy": [jpeg(3)]})
    assert merge(tmp_path, monkeypatch, capsys, sources(a, b), "identities=by_name")[0] == 0
    assert made(tmp_path) == {"Zo\u00eb": [jpeg(0), jpeg(2)], "bo": [jpeg(1)], "cy": [jpeg(3)]}
    shutil.rmtree(tmp_path / "out")
    assert merge(tmp_path, monkeypatch, capsys, sources(a, b))[0] == 0
    assert set(made(tmp_path)) == {"A_Zo\u00eb", "bo", "cy", "B_zoe\u0308"}


def test_a_prefix_for_all(tmp_path, monkeypatch, capsys):
    a, b = folder_set(tmp_path / "A", A), folder_set(tmp_path / "x" / "A", B)
    code, _, said = merge(tmp_path, monkeypatch, capsys, sources(a, b), "prefix=true")
    assert (code, said) == (0, "")
    assert list(made(tmp_path)) == ["A_anna", "A_bo", "A_cy", "A2_anna", "A2_dee"]


@pytest.mark.parametrize(
    ("choice", "expected", "reasons"),
    [
        ("keep", {"x": [0, 0, 1], "y": [1, 2], "z": [3, 4]}, []),
        ("first", {"x": [0, 1], "y": [2], "z": [3, 4]}, [("x", "copy"), ("y", "copy")]),
        (
            "ambiguous",
            {"x": [0], "y": [2], "z": [3, 4]},
            [("x", "copy"), ("x", "ambiguous copy"), ("y", "ambiguous copy")],
        ),
    ],
)  # fmt: skip
def test_copies(tmp_path, monkeypatch, capsys, choice, expected, reasons):
    content = {"x": [0, 0, 1], "y": [1, 2], "z": [3, 4]}
    root = folder_set(tmp_path / "A", {name: [jpeg(seed) for seed in seeds] for name, seeds in content.items()})
    code, _, said = merge(tmp_path, monkeypatch, capsys, f"source={root}", f"copies={choice}")
    assert (code, said) == (0, "")
    assert made(tmp_path) == {name: [jpeg(seed) for seed in seeds] for name, seeds in expected.items()}
    assert [(identity, reason) for _, identity, _, reason, _, _ in removed(tmp_path)] == reasons


def test_one_set_is_filtered_and_labels_have_no_gaps(tmp_path, monkeypatch, capsys):
    root = pack_set(tmp_path / "A", A)
    (root / "identities.csv").unlink()
    code, output, said = merge(tmp_path, monkeypatch, capsys, f"source={root}", "min_images=2")
    assert (code, said) == (0, "")
    assert "1 identities (few images)" in output
    assert made(tmp_path) == {"0": A["anna"], "2": A["cy"]}
    faces = RecordIOFaces(tmp_path / "out", SIZE)
    assert faces.identity_names == ["0", "1"]
    assert removed(tmp_path) == [("A", "1", "", "few images", "1", "")]


def test_copies_are_taken_out_before_people_are_counted(tmp_path, monkeypatch, capsys):
    content = {"x": [jpeg(0), jpeg(0)], "y": [jpeg(1), jpeg(2)], "z": [jpeg(3), jpeg(4)]}
    root = folder_set(tmp_path / "A", content)
    assert merge(tmp_path, monkeypatch, capsys, f"source={root}", "min_images=2")[0] == 0
    assert list(made(tmp_path)) == ["y", "z"]


def test_images_of_another_size_are_resized_and_others_keep_their_bytes(tmp_path, monkeypatch, capsys):
    root = folder_set(tmp_path / "A", {"x": [jpeg(0), jpeg(1, 32)], "y": [jpeg(2)]})
    code, _, said = merge(tmp_path, monkeypatch, capsys, f"source={root}")
    assert (code, said) == (0, "")
    content = made(tmp_path)
    assert content["x"][0] == jpeg(0)
    faces = RecordIOFaces(tmp_path / "out", SIZE)
    expected = FolderFaces(root, SIZE).load(1).astype(int)
    assert np.abs(faces.load(1).astype(int) - expected).mean() < 8


def test_unreadable_images(tmp_path, monkeypatch, capsys):
    root = folder_set(tmp_path / "A", {**A, "dan": [b"none", jpeg(7)]})
    code, _, said = merge(tmp_path, monkeypatch, capsys, f"source={root}")
    assert code == 1
    assert "1 of 8 images cannot be read, the first is dan/0.jpg of A (is no image); task=verify" in said
    assert not (tmp_path / "out").exists()
    code, _, said = merge(tmp_path, monkeypatch, capsys, f"source={root}", "unreadable=skip")
    assert (code, said) == (0, "")
    assert made(tmp_path) == {**A, "dan": [jpeg(7)]}
    assert removed(tmp_path) == [("A", "dan", "dan/0.jpg", "unreadable", "", "is no image")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one set with source=…, or several with 'sources=[…,…]'"),
        (["source={A}", "sources=[{B}]"], "give one set with source=…"),
        (["source={A}/nowhere"], "nowhere: no such folder"),
        (["sources=[{A},{A}]"], "is given twice"),
        (["source={A}", "layout=lmdb"], "layout is 'lmdb': give one of pack, folder"),
        (["source={A}", "identities=mixed"], "identities is 'mixed': give one of separate, by_name"),
        (["source={A}", "identities=by_name", "prefix=true"], "leave one of them out"),
        (["sources=[{A},{C}]", "identities=by_name"], "has no identities.csv"),
        (["source={A}", "copies=some"], "copies is 'some': give one of keep, first, ambiguous"),
        (["source={A}", "min_images=0"], "min_images is 0"),
        (["source={A}", "min_images=9"], "fewer than two identities would be left, 3 identities (few images)"),
        (["source={A}", "near=0.9"], "give model="),
        (["source={A}", "model=x"], "has nothing to compare"),
        (["source={A}", "model=x", "near=1.5"], "near is 1.5: a cosine between 0 and 1"),
        (["source={A}", "model=x", "against={B}"], "belong together"),
        (["source={A}", "model=x", "near=0.9"], "model=x: no such file"),
        (["sources=[{A},{B}]", "size=8"], "size is 8"),
        (["source={A}", "out={A}"], "is there already"),
    ],
)
def test_bad_input_ends_in_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, words, message):
    folder_set(tmp_path / "A", A)
    pack_set(tmp_path / "B", B)
    (pack_set(tmp_path / "C", B) / "identities.csv").unlink()
    monkeypatch.chdir(tmp_path)
    given = [word.format(**{name: tmp_path / name for name in "ABC"}) for word in words]
    out = [] if any(word.startswith("out=") for word in given) else [f"out={tmp_path}/out"]
    code, _, said = door(monkeypatch, capsys, "task=merge", *out, *given)
    assert code == 1
    assert message in said
    assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A", "B", "C"]


def test_a_crash_while_writing_leaves_nothing_under_the_name(tmp_path, monkeypatch, capsys):
    root = folder_set(tmp_path / "A", A)

    def crash(*_):
        raise OSError(28, "No space left on device", "train.rec")

    with monkeypatch.context() as patched:
        patched.setitem(room.LAYOUTS, "pack", crash)
        code, _, said = merge(tmp_path, monkeypatch, capsys, f"source={root}")
        assert code == 1
        assert "No space left" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A"]
    # What a kill leaves behind, which nothing can tidy up, is no part of the next set.
    half = tmp_path / ".unfinished-out" / "out"
    half.mkdir(parents=True)
    (half / "train.rec").write_bytes(bytes(10_000))
    assert merge(tmp_path, monkeypatch, capsys, f"source={root}")[0] == 0
    assert made(tmp_path) == A
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A", "out"]


# With a model


class Coded:
    """In the place of a model: the embedding of an image is looked up by its red patch in the corner."""

    about, digest, described = "looked up", "0", "0 in float32"
    vectors: ClassVar[dict] = {}
    asked: ClassVar[list] = []  # how many images, each time

    def __init__(self, *_):
        pass

    def __call__(self, images, what):
        self.asked.append(len(images))
        rows = [self.vectors[images.load(index)[1, 1].tobytes()] for index in range(len(images))]
        rows = np.array(rows, dtype=np.float32)
        yield from np.array_split(rows / np.linalg.norm(rows, axis=1, keepdims=True), 3)


@pytest.fixture
def coded(monkeypatch, tmp_path):
    """People of seeds and vectors: writes a set of them, and has the model know them."""
    monkeypatch.setattr(room, "Embedder", Coded)
    monkeypatch.setattr(Coded, "vectors", {})
    monkeypatch.setattr(Coded, "asked", [])

    def write(name, content):
        folder_set(tmp_path / name, {who: [jpeg(seed) for seed, _ in images] for who, images in content.items()})
        faces = FolderFaces(tmp_path / name, SIZE)
        vectors = [vector for images in content.values() for _, vector in images]
        for index, vector in enumerate(vectors):
            Coded.vectors[faces.load(index)[1, 1].tobytes()] = vector
        return tmp_path / name

    return write


def test_people_of_the_test_set_are_left_out_by_their_mean(tmp_path, monkeypatch, capsys, coded):
    root = coded(
        "A",
        {
            "x": [(0, (1, 0, 0)), (1, (0, 1, 0))],  # mean (1,1,0)/√2: 0.7071 from each
            "y": [(2, (0, 0, 1))],
            "z": [(3, (1, 0, 1)), (4, (1, 0.2, 1))],
        },
    )
    test = coded("T", {"p": [(20, (1, 1, 0))], "q": [(21, (-1, 0, 0))]})
    words = (f"source={root}", "model=known", f"against={test}", "threshold=0.9")
    code, output, said = merge(tmp_path, monkeypatch, capsys, *words)
    assert (code, said) == (0, "")
    assert list(made(tmp_path)) == ["y", "z"]
    assert removed(tmp_path) == [("A", "x", "", "test set", "1.0000", "p/0.jpg")]
    assert "1 identities (test set)" in output
    report = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert report["model"] == {"about": "looked up", "sha256": "0"}
    nearest = report["nearest to the test set of all that stayed"]
    assert nearest["identity"] == "z"
    mean = np.array([1, 0, 1]) / np.sqrt(2) + np.array([1, 0.2, 1]) / np.sqrt(2.04)
    assert nearest["cosine"] == pytest.approx(mean @ [1, 1, 0] / np.linalg.norm(mean) / np.sqrt(2), abs=1e-4)


def test_near_copies_are_told_within_a_person_only(tmp_path, monkeypatch, capsys, coded):
    root = coded(
        "A",
        {
            "x": [(0, (1, 0, 0)), (1, (1, 0.1, 0)), (2, (0, 1, 0)), (3, (1, 0.2, 0))],
            "y": [(4, (1, 0, 0)), (5, (0, 0, 1))],
        },
    )
    code, _, said = merge(tmp_path, monkeypatch, capsys, f"source={root}", "model=known", "near=0.99")
    assert (code, said) == (0, "")
    # The fourth is near to the second, which is out, and 0.981 from the first, which is in.
    assert made(tmp_path) == {"x": [jpeg(0), jpeg(2), jpeg(3)], "y": [jpeg(4), jpeg(5)]}
    assert removed(tmp_path) == [("A", "x", "x/1.jpg", "near copy", f"{1 / np.sqrt(1.01):.4f}", "A: x/0.jpg")]


def test_an_interrupted_merge_does_not_embed_again(tmp_path, monkeypatch, capsys, coded):
    vectors = np.random.default_rng(0).normal(size=(14, 3))
    root = coded("A", {who: [(7 * n + i, vectors[7 * n + i]) for i in range(7)] for n, who in enumerate("xy")})
    monkeypatch.setattr(room, "BLOCK", 4)
    words = (f"source={root}", "model=known", "near=0.9", "batch_size=2")
    assert merge(tmp_path, monkeypatch, capsys, *words)[0] == 0
    expected, left_out = made(tmp_path), removed(tmp_path)
    assert 0 < len(left_out) < 12
    shutil.rmtree(tmp_path / "out")
    whole = Coded.__call__

    def dies(self, images, what):
        for number, batch in enumerate(whole(self, images, what)):
            if number == 2:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(Coded, "__call__", dies)  # behind 10 of 14 images, 8 of which are whole blocks
    assert merge(tmp_path, monkeypatch, capsys, *words)[0] == 130
    (kept,) = [path for path in tmp_path.iterdir() if path.name.startswith(".unfinished")]
    assert len(list(kept.iterdir())) == 2
    next(kept.iterdir()).write_bytes(b"damaged")  # one of them: it and all behind it are made anew
    monkeypatch.setattr(Coded, "__call__", whole)
    code, output, _ = merge(tmp_path, monkeypatch, capsys, *words)
    assert code == 0
    assert Coded.asked[-1] in (10, 14)
    assert ("4 of 14 images were embedded before" in output) == (Coded.asked[-1] == 10)
    assert (made(tmp_path), removed(tmp_path)) == (expected, left_out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A", "out"]


def test_a_merge_that_leaves_nobody_writes_nothing_at_all(tmp_path, monkeypatch, capsys, coded):
    root = coded("A", {"x": [(0, (1, 0, 0)), (1, (0, 1, 0))], "y": [(2, (0, 0, 1))]})
    code, _, said = merge(tmp_path, monkeypatch, capsys, f"source={root}", "model=known", "near=0.9", "min_images=9")
    assert code == 1
    assert "nothing was written" in said
    assert [path.name for path in tmp_path.iterdir()] == ["A"]


def test_blocks_are_of_one_model_and_of_their_images(tmp_path):
    hashes = np.arange(11, dtype=np.uint64)
    rows = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
    asked = []

    def embed(first):
        asked.append(first)
        return iter(np.array_split(rows[first:], 4))

    def found(model, own=hashes):
        return np.concatenate(list(Blocks(tmp_path / "out", model, 4).embeddings(own, embed)))

    for model, own, first in (
        *(("a", hashes, 0), ("a", hashes, None), ("b", hashes, 0), ("b", hashes, None)),
        *(("a", np.append(hashes[:10], np.uint64(99)), 8), ("a", hashes[::-1], 0), ("a", hashes, None)),
    ):
        before = len(asked)
        np.testing.assert_array_equal(found(model, own), rows)
        assert asked[before:] == ([] if first is None else [first])


def test_embeddings_are_handed_out_by_identity_however_they_are_batched():
    rows = np.random.default_rng(0).normal(size=(23, 4)).astype(np.float32)
    labels = np.repeat([0, 2, 3, 7, 8], [1, 9, 2, 8, 3])
    for size in (1, 4, 23):
        batches = iter([rows[first : first + size] for first in range(0, 23, size)])
        got = list(by_identity(labels, batches))
        assert [label for label, _, _ in got] == [0, 2, 3, 7, 8]
        for label, at, own in got:
            assert (labels[at] == label).all()
            np.testing.assert_array_equal(own, rows[labels == label])


def test_published_weights_compare_faces(tmp_path, monkeypatch, capsys):
    """With a real network, if an untrained one: an image of the test set is as near to itself as can be."""
    a = pack_set(tmp_path / "A", {"x": [jpeg(0, 48)], "y": [jpeg(1, 48)], "z": [jpeg(2, 48)]}, 48)
    test = folder_set(tmp_path / "T", {"p": [jpeg(1, 48)], "q": [jpeg(9, 48)]})
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        node = hydra.compose("config", ["backbone=tiny", "data.size=48"]).backbone
    torch.manual_seed(0)
    torch.save(build_backbone(OmegaConf.create(OmegaConf.to_container(node, resolve=True)), load=False).state_dict(),
               tmp_path / "published.pt")  # fmt: skip
    words = (f"source={a}", f"model={tmp_path}/published.pt", f"against={test}", "threshold=0.99999", "accelerator=cpu")
    code, _, said = merge(tmp_path, monkeypatch, capsys, *words)
    assert code == 1
    assert "add network=…, one of" in said
    assert merge(tmp_path, monkeypatch, capsys, *words, "network=nothing")[0] == 1
    code, _, said = merge(tmp_path, monkeypatch, capsys, *words, "network=tiny", "batch_size=2")
    assert (code, said) == (0, "")
    assert ("A", "y", "", "test set", "1.0000", "p/0.jpg") in removed(tmp_path)


def test_a_checkpoint_says_itself_which_network_it_is(tmp_path, monkeypatch, capsys):
    OmegaConf.register_new_resolver("facelab.job", lambda: "small", replace=True)
    small = (
        *("logger=csv", "trainer.progress=false", "trainer.accelerator=cpu", "trainer.max_steps=1", "job=small"),
        *("backbone.widths=[16,16,16,32]", "backbone.embedding_size=16", "trainer.batch_size=16", "data.size=48"),
        *("data.identities=24", "data.images_per_identity=4", "data.holdout.fraction=0.4"),
        *("benchmark.size=48", "benchmark.count=40", "benchmark.folds=2"),
    )
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        config = hydra.compose("config", list(small))
    fit.train(config, OmegaConf.to_container(config, resolve=True), tmp_path / "run", one_process=False)
    model = f"model={tmp_path}/run/checkpoints/best.ckpt"
    content = {name: [jpeg(seed, 48)] for seed, name in enumerate("xyz")}
    a, test = (
        pack_set(tmp_path / "A", content, 48),
        folder_set(tmp_path / "T", {"p": [jpeg(1, 48)], "q": [jpeg(9, 48)]}),
    )
    words = (model, f"against={test}", "threshold=0.99999", "accelerator=cpu")
    code, _, said = merge(tmp_path, monkeypatch, capsys, f"source={a}", *words)
    assert (code, said) == (0, "")
    assert ("A", "y", "", "test set", "1.0000", "p/0.jpg") in removed(tmp_path)
    other = [f"source={pack_set(tmp_path / 'B', B)}", f"out={tmp_path}/other"]
    code, _, said = door(monkeypatch, capsys, "task=merge", *other, *words)
    assert code == 1
    assert "takes images of 48 pixels, but the sets have 16" in said
    named = (f"source={a}", f"out={tmp_path}/named", "network=tiny")
    code, _, said = door(monkeypatch, capsys, "task=merge", *named, *words)
    assert code == 1
    assert "says itself which network it is of: leave network=tiny out" in said


@pytest.mark.data
def test_people_of_lfw_are_found_by_a_published_model(real_data, tmp_path, monkeypatch, capsys):
    """Ten people of LFW hidden among a few of CelebA, by other photographs than the test set holds."""
    lfw, celeba = real_data / "lfw" / "images", RecordIOFaces(real_data / "celeba", 112)
    several = [person for person in sorted(lfw.iterdir()) if len(list(person.iterdir())) in (6, 7)][:10]
    assert len(several) == 10
    hidden, shown = {}, {}
    for person in several:
        files = sorted(person.iterdir())
        hidden[person.name] = [file.read_bytes() for file in files[:3]]
        shown[person.name] = [file.read_bytes() for file in files[3:]]
    for label in range(15):
        own = np.flatnonzero(celeba.labels == label)[:3]
        hidden[f"celeba {label}"] = [celeba.encoded(index).tobytes() for index in own.tolist()]
    mixed, test = folder_set(tmp_path / "mixed", hidden), folder_set(tmp_path / "test", shown)
    model = real_data / "weights" / "mobilefacenet_y1.npz"
    words = (f"source={mixed}", f"model={model}", "network=mobilefacenet", f"against={test}", "threshold=0.55")
    code, _, said = merge(tmp_path, monkeypatch, capsys, *words, "accelerator=cpu")
    assert (code, said) == (0, "")
    found = {identity for _, identity, _, reason, _, _ in removed(tmp_path) if reason == "test set"}
    assert found == {person.name for person in several}


def test_a_group_of_another_door_is_no_choice_here(tmp_path, monkeypatch, capsys):
    code, _, said = merge(tmp_path, monkeypatch, capsys, "source=.", "backbone=r50")
    assert code == 1
    assert "there is no key 'backbone'" in said
    assert said.count("\n") == 1
