"""A folder, a list and a pack give the same images; what is wrong with them is said in one line that names it."""

import os
import unicodedata

import cv2
import numpy as np
import pytest

from facelab.prepare.pack import write_pack
from facelab.prepare.sources import open_source

JPEG = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()


def fill(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(JPEG)
    return root


def content(source):
    return [(source.identities[label], source.photograph(i)) for i, label in enumerate(source.labels)]


def reasons(source):
    return {(failure.photograph, failure.reason) for failure in source.refused}


def opened(source, links="refuse"):
    return open_source(str(source), links)


def test_a_folder_gives_its_images_by_name_and_tells_what_it_leaves_out(tmp_path):
    root = fill(tmp_path / "in", "b/2.jpg", "b/10.JPEG", "a/x.png", "c/.hidden.jpg", "b/notes.txt", "b/deeper/1.jpg",
                "loose.jpg", ".git/a.jpg")  # fmt: skip
    (root / "readme.md").write_text("not an image, and not where one would be")
    source = opened(root)
    assert content(source) == [("a", "a/x.png"), ("b", "b/10.JPEG"), ("b", "b/2.jpg")]
    assert [source.name(i) for i in range(3)] == ["x.png.jpg", "10.jpg", "2.jpg"]
    assert source.encoded(0).tobytes() == JPEG
    assert reasons(source) == {
        ("loose.jpg", "not in an identity's folder"),
        ("b/notes.txt", "no image by its name"),
        ("b/deeper", "a folder in an identity's folder"),
        ("c", "a folder without images"),
    }


def test_images_of_one_identity_have_names_that_differ_even_without_case(tmp_path):
    names = ["1.jpg", "1.jpeg", "1.JPG", "1.png", "n\new\tline.jpg", "ж" * 120 + ".jpg", "ж" * 120 + "x.jpg"]
    source = opened(fill(tmp_path, *(f"a/{name}" for name in names)))
    packed = [source.name(i) for i in range(len(names))]
    assert len({name.casefold() for name in packed}) == len(names)
    assert all(name.endswith(".jpg") and len(name.encode()) < 256 for name in packed)
    assert "n_ew_line.jpg" in packed
    assert sorted(opened(tmp_path).name(i) for i in range(len(names))) == sorted(packed)


@pytest.mark.parametrize(
    "pair",
    [
        ("Anna", "anna"),
        (unicodedata.normalize("NFC", "José"), unicodedata.normalize("NFD", "José")),
        ("Straße", "STRASSE"),
    ],
)
def test_two_identities_of_one_name_are_refused(tmp_path, pair):
    fill(tmp_path / "in", *(f"{name}/1.jpg" for name in pair))
    (tmp_path / "list.csv").write_text("".join(f"in/{name}/1.jpg,{name}\n" for name in pair), encoding="utf-8")
    for source in (tmp_path / "in", tmp_path / "list.csv"):
        with pytest.raises(ValueError, match=r"the identities '.*' and '.*' have one name"):
            opened(source)


def test_links_are_taken_inside_and_refused_or_followed_outside(tmp_path):
    root = fill(tmp_path / "in", "a/1.jpg", "b/1.jpg")
    fill(tmp_path / "elsewhere", "z.jpg", "c/1.jpg")
    (root / "a" / "2.jpg").symlink_to("../b/1.jpg")
    (root / "a" / "gone.jpg").symlink_to("nowhere.jpg")
    source = opened(root)
    assert ("a", "a/2.jpg") in content(source)
    assert ("a/gone.jpg", "a link that leads nowhere") in reasons(source)
    for link, target in (("a/3.jpg", "elsewhere/z.jpg"), ("c", "elsewhere/c")):
        (root / link).symlink_to(tmp_path / target)
        with pytest.raises(ValueError, match=rf"{link} is a link that leads out of .*elsewhere.*links=follow"):
            opened(root)
        assert link.split("/")[0] in {identity for identity, _ in content(opened(root, "follow"))}
        (root / link).unlink()
    with pytest.raises(ValueError, match=r"links is 'maybe': give one of refuse, follow"):
        opened(root, "maybe")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("in/a/1.jpg\t10\nin/a/2.jpg\t9\nin/b/1.jpg\t10\n", "list.txt"),
        ("path,identity\nin/a/1.jpg,10\n in/a/2.jpg , 9\n\nin/b/1.jpg,10", "list.csv"),
        ('"in/a/1.jpg","10"\r\nin/a/2.jpg,9\r\n./in/b/1.jpg,10\r\n', "list.csv"),
        ("\ufeffPath,Identity\nin/a/1.jpg,10\nin/a/2.jpg,9\nin/b/1.jpg,10\n", "list.csv"),
    ],
)
def test_a_list_gives_its_identities_in_the_order_of_their_numbers(tmp_path, text, name):
    fill(tmp_path, "in/a/1.jpg", "in/a/2.jpg", "in/b/1.jpg")
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    source = opened(tmp_path / name)
    assert content(source) == [("9", "in/a/2.jpg"), ("10", "in/a/1.jpg"), ("10", "in/b/1.jpg")]
    assert source.encoded(2).tobytes() == JPEG
    assert len({source.name(1), source.name(2)}) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"list\.csv: is empty"),
        ("path,identity\n", r"list\.csv: is empty"),
        ("in/a/1.jpg\n", r"list\.csv, line 1: has 1 fields"),
        ("in/a/1.jpg,a\nin/a/2.jpg,\n", r"list\.csv, line 2: has 2 fields"),
        ("in/a/1.jpg,a,3\n", r"list\.csv, line 1: has 3 fields"),
        ("in/a/1.jpg,a\nin/a/../a/1.jpg,a\n", r"line 2: in/a/1\.jpg is listed twice"),
        ("in/a/1.jpg,a\nin/a/1.jpg,b\n", r"line 2: in/a/1\.jpg is listed for 'a' and for 'b'"),
        ("gone/1.jpg,a\ngone/2.jpg,b\n", "no file that it names is there; paths are taken from"),
        ("in/a/1.jpg,a/b\n", "identity 'a/b' cannot be a folder's name"),
        ("in/a/1.jpg," + "x" * 300 + "\n", "longer than the 255 bytes"),
    ],
)
def test_what_is_wrong_with_a_list_is_named_with_its_line(tmp_path, text, message):
    fill(tmp_path, "in/a/1.jpg", "in/a/2.jpg")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / "list.csv")


def test_a_pack_gives_its_images_by_identity(tmp_path):
    records = [(0, "a.jpg", JPEG), (0, "b.jpg", JPEG), (1, "c.jpg", JPEG + b"\0")]
    write_pack(tmp_path / "set", records, ["x", "y"], 8)
    for path in (tmp_path / "set", tmp_path / "set" / "train.rec"):
        source = opened(path)
        assert content(source) == [("x", "key 1"), ("x", "key 2"), ("y", "key 3")]
        assert [source.name(i) for i in range(3)] == ["1.jpg", "2.jpg", "3.jpg"]
        assert source.encoded(2).tobytes() == JPEG + b"\0"
    (tmp_path / "set" / "identities.csv").write_text("label,identity\n0,x\n1,x\n")
    with pytest.raises(ValueError, match="the identities 'x' and 'x' have one name"):
        opened(tmp_path / "set")
    (tmp_path / "set" / "identities.csv").unlink()
    assert opened(tmp_path / "set").identities == ["0", "1"]


def test_a_source_that_is_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file or folder; expected a folder with one folder"):
        opened(tmp_path / "nothing")
    with pytest.raises(ValueError, match="has no images in folders"):
        opened(fill(tmp_path / "flat", "1.jpg", "2.jpg"))


def test_the_digest_notices_every_change(tmp_path):
    root = fill(tmp_path, "a/1.jpg", "b/1.jpg")
    digests = [opened(root).digest]
    assert opened(root).digest == digests[0]
    os.utime(root / "a" / "1.jpg", ns=(0, 5))
    digests.append(opened(root).digest)
    (root / "b" / "1.jpg").rename(root / "b" / "2.jpg")
    digests.append(opened(root).digest)
    fill(root, "b/3.jpg")
    digests.append(opened(root).digest)
    assert len(set(digests)) == 4


def test_names_that_are_no_utf8_are_kept(tmp_path):
    root = fill(tmp_path, "a/1.jpg", "b/1.jpg")
    os.rename(root / "a", os.fsencode(root) + b"/\xff\xfe")
    source = opened(root)
    assert source.encoded(1).tobytes() == JPEG
    assert [os.fsencode(name) for name in source.identities] == [b"b", b"\xff\xfe"]
