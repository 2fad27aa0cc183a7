"""A set is read and judged: what is wrong with it is found, named in a file, and makes the exit status."""

import csv
import json
import struct

import cv2
import numpy as np
import pytest
from sets import SIZE, door, folder_set, jpeg, pack_set, picture

from facelab.prepare.records import scan
from facelab.prepare.verify import verify

CONTENT = {"anna": [jpeg(0), jpeg(1)], "bo": [jpeg(2)], "cy": [jpeg(3), jpeg(4), jpeg(5)]}


def judged(root, **choices):
    """The report, what was found as (grave, kind, name), and the refusal."""
    given = {"out": None, "size": None, "alike": "bytes", "threads": 1, "progress": False, **choices}
    refusal = ""
    try:
        verify(str(root), **given)
    except ValueError as error:
        refusal = str(error)
    folder = root.with_name(f"{root.name}.verify")
    with open(folder / "found.csv", newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    report = json.loads((folder / "verify.json").read_text())
    assert report["damaged"] == bool(refusal) == any(row["grave"] == "damage" for row in found)
    return report, [(row["kind"], row["identity"], row["name"]) for row in found], refusal


@pytest.mark.parametrize("make", [pack_set, folder_set])
def test_a_sound_set(tmp_path, make):
    report, found, refusal = judged(make(tmp_path / "set", CONTENT))
    assert (found, refusal) == ([], "")
    assert (report["identities"], report["images"]) == (3, 6)
    assert report["images per identity"] == {"fewest": 1, "median": 2, "most": 3, "identities with one image": 1}
    assert report["sizes"] == {f"{SIZE}×{SIZE}": 6}
    assert report["copies"] == {"told by": "bytes", "within identities": 0, "across identities": 0}
    if make is pack_set:
        assert report["records"] == {
            "records": 10, "with images": 6, "breaks": 0, "in the index": 10, "index points nowhere": 0,
            "not in the index": 0,
        }  # fmt: skip
        assert report["labels"] == {"highest": 2, "property": 3, "without images": 0}


def test_copies_by_bytes_and_by_pixels(tmp_path):
    png = cv2.imencode(".png", picture(9))[1].tobytes()
    followed = jpeg(0) + b"a maker's note"  # other bytes, the same pixels
    content = {"anna": [jpeg(0), jpeg(0), jpeg(1)], "bo": [jpeg(1), followed], "cy": [png, png]}
    root = folder_set(tmp_path / "set", content)
    report, found, refusal = judged(root)
    assert refusal == ""
    copies = [one for one in found if "copy" in one[0]]
    assert copies == [("copy", "anna", "anna/1.jpg"), ("ambiguous copy", "bo", "bo/0.jpg"), ("copy", "cy", "cy/1.jpg")]
    assert report["copies"] == {"told by": "bytes", "within identities": 2, "across identities": 1}
    assert sum(kind == "PNG" for kind, _, _ in found) == 2
    report, found, _ = judged(root, alike="pixels")
    assert ("ambiguous copy", "bo", "bo/1.jpg") in found
    assert report["copies"]["across identities"] == 2


def test_unreadable_images_are_damage_and_empty_folders_are_not(tmp_path):
    root = folder_set(tmp_path / "set", {**CONTENT, "dan": [b"no image", jpeg(7), jpeg(8)[:-40]]})
    (root / "nobody").mkdir()
    report, found, refusal = judged(root)
    assert [one for one in found if one[0] == "unreadable"] == [
        ("unreadable", "dan", "dan/0.jpg"),
        ("unreadable", "dan", "dan/2.jpg"),
    ]
    assert ("empty folder", "nobody", "nobody") in found
    assert report["unreadable"] == 2
    assert "2 things are wrong, the first is unreadable dan/0.jpg: is no image; all are named in" in refusal


def test_mixed_sizes_are_counted(tmp_path):
    report, found, _ = judged(folder_set(tmp_path / "set", {"a": [jpeg(0), jpeg(1, 32)], "b": [jpeg(2, 32)]}))
    assert report["sizes"] == {"32×32": 2, "16×16": 1}
    assert found == []


def change(file, position, content):
    whole = bytearray(file.read_bytes())
    whole[position : position + len(content)] = content
    file.write_bytes(whole)


def offsets(root):
    return [int(line.split()[1]) for line in (root / "train.idx").read_text().splitlines()]


def test_a_pack_whose_records_are_damaged(tmp_path):
    root = pack_set(tmp_path / "set", CONTENT)
    at = offsets(root)
    change(root / "train.rec", at[3] + 4, struct.pack("<I", 40))  # a length that leads nowhere
    _, found, refusal = judged(root)
    assert ("record", "", f"byte {at[3]}") in found
    assert ("index", "", "key 3") in found
    assert ("unreadable", "bo", "key 3") in found or ("set", "", "set") in found
    assert "is damaged" in refusal


def test_a_pack_that_is_cut_off_or_has_something_behind_its_end(tmp_path):
    root = pack_set(tmp_path / "set", CONTENT)
    whole, at = (root / "train.rec").read_bytes(), offsets(root)
    (root / "train.rec").write_bytes(whole[: at[5] + 50])
    report, found, refusal = judged(root)
    assert report["records"]["records"] == 5
    assert found[0][0] == "set"
    assert ("record", "", f"byte {at[5]}") in found
    assert "truncated" in refusal
    (root / "train.rec").write_bytes(whole + bytes(64))
    _, found, refusal = judged(root)
    assert ("record", "", f"byte {at[-1]}") in found  # nobody knows whether that record ends where it says
    assert "does not end where another one begins" in refusal


def test_an_index_a_list_and_names_that_do_not_agree(tmp_path):
    root = pack_set(tmp_path / "set", CONTENT)
    at = offsets(root)
    lst, idx, named = root / "train.lst", root / "train.idx", root / "identities.csv"
    lines = lst.read_text().splitlines()
    lst.write_text("\n".join(lines[:-1]))
    assert ("list", "", "train.lst") in judged(root)[1]
    lst.write_text("\n".join([*lines[:-1], lines[-1][:-1] + "1"]))
    assert "other numbers of images for its labels" in judged(root)[2]
    lst.write_text("\n".join([*lines[:-1], "what is this"]))
    assert "line 6 is neither" in judged(root)[2]
    lst.write_text("\n".join(reversed(lines)))  # as im2rec's shuffled lists
    _, found, refusal = judged(root)
    assert (found, refusal) == ([("list", "", "train.lst")], "")
    lst.write_text("\n".join(f"{key}\t{float(line.split()[-1])}\tpath" for key, line in enumerate(lines)))
    assert judged(root)[1] == []
    named.write_text(named.read_text().replace("bo,1", "bo,4"))
    assert ("identities", "1", "identities.csv") in judged(root)[1]
    named.unlink()
    idx.write_text(idx.read_text().replace(f"\t{at[3]}\n", f"\t{at[3] + 4}\n"))
    report, found, _ = judged(root)
    assert ("index", "", "key 3") in found
    assert report["records"]["not in the index"] == 1


def test_labels_with_gaps(tmp_path):
    root = pack_set(tmp_path / "set", CONTENT)
    (root / "property").write_text(f"7,{SIZE},{SIZE}")
    report, found, refusal = judged(root)
    assert report["labels"] == {"highest": 2, "property": 7, "without images": 4}
    assert (found, refusal) == ([("label", "", "property")], "")


def test_what_an_interrupted_pack_leaves(tmp_path, monkeypatch, capsys):
    root = pack_set(tmp_path / "set", CONTENT)
    (tmp_path / ".unfinished-set").mkdir()
    (root / ".unfinished-train-x.lst").write_text("")
    _, found, refusal = judged(root)
    assert found == [("leftover", "", ".unfinished-set"), ("leftover", "", ".unfinished-train-x.lst")]
    assert refusal == ""
    (tmp_path / ".unfinished-other").mkdir()
    cases = {tmp_path / "other": "is not finished: its making was interrupted, and what is done lies in"}
    for missing, advice in (("property", "write 'identities,height,width'"), ("train.idx", "copy that file again")):
        made = pack_set(tmp_path / f"without {missing}", CONTENT)
        (made / missing).unlink()
        cases[made] = f"but no {missing}: the pack was interrupted, or copied in part; .*{advice}"
    for place, message in cases.items():
        with pytest.raises(FileNotFoundError, match=message):
            verify(str(place), None, None, "bytes", 1, False)
    code, _, said = door(monkeypatch, capsys, "task=verify", f"source={tmp_path / 'other'}")
    assert code == 1
    assert said.count("\n") == 1
    assert "started again, finishes it" in said


def test_the_door_says_what_a_set_is_and_exits_with_its_state(tmp_path, monkeypatch, capsys):
    root = pack_set(tmp_path / "set", CONTENT)
    code, output, said = door(monkeypatch, capsys, "task=verify", f"source={root}", f"out={tmp_path / 'told'}")
    assert (code, said) == (0, "")
    assert "6 of 3 identities, 1 to 3 each, median 2" in output
    assert (tmp_path / "told" / "verify.json").is_file()
    change(root / "train.rec", offsets(root)[2] + 60, bytes(200))
    code, output, said = door(monkeypatch, capsys, "task=verify", f"source={root}", f"out={tmp_path / 'told'}")
    assert code == 1
    assert said.startswith("facelab: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["source=nowhere"], "source=nowhere: no such folder"),
        (["source=.", "alike=names"], "alike is 'names': give one of bytes, pixels"),
        (["source=.", "threads=two"], "threads is 'two'"),
        ([], "source has no value"),
    ],
)
def test_bad_input_ends_in_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    code, _, said = door(monkeypatch, capsys, "task=verify", *words)
    assert code == 1
    assert message in said
    assert said.count("\n") == 1


def test_a_scan_finds_every_record_and_goes_on_behind_damage(tmp_path):
    root = pack_set(tmp_path / "set", CONTENT)
    at = offsets(root)
    found = scan(root / "train.rec", lambda done, total: None)
    assert found.offsets.tolist() == at
    assert np.flatnonzero(found.images).tolist() == [1, 2, 3, 4, 5, 6]
    assert found.breaks == []
    change(root / "train.rec", at[4], b"\0")
    found = scan(root / "train.rec", lambda done, total: None)
    assert found.offsets.tolist() == at[:3] + at[5:]  # of the one before, nobody knows whether it ends there
    assert found.breaks == [(at[3], at[5])]
