"""A gallery finds who is enrolled, and its threshold keeps the share of strangers that it states."""

import csv

import numpy as np
import pytest
from recognising import SIZE, faces, recogniser

from facelab.configuration import defaults
from facelab.data.synthetic import render
from facelab.verify import enrolment, identification
from facelab.verify.gallery import Gallery, calibrate, make
from facelab.verify.identification import check_model, limit
from facelab.verify.thresholds import Point, Thresholds, beside


def drawn(people=40, images=3, dimension=16, seed=0):
    """(M,D) unit vectors around a centre for each person, and whose each is."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(people), images)
    rows = rng.normal(size=(people, dimension))[person] + 0.6 * rng.normal(size=(len(person), dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), person


def gallery_of(rows, person, index="exact"):
    names = [f"p{i}" for i in range(person.max() + 1)]
    return make(names, rows, person, {"sha256": "a", "checkpoint_sha256": "a", "size": SIZE, "mirror": True}, index)


def test_templates_and_search_against_the_definition():
    rows, person = drawn()
    gallery = gallery_of(rows, person)
    sums = np.stack([rows[person == i].astype(np.float64).sum(0) for i in range(40)])
    templates = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    np.testing.assert_allclose(gallery.templates, templates, atol=1e-6)
    probes = drawn(seed=1)[0][:7]
    found = gallery.search(probes, 5)
    scores = probes.astype(np.float64) @ gallery.templates.astype(np.float64).T
    np.testing.assert_array_equal(found.people, np.argsort(-scores, axis=1, kind="stable")[:, :5])
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1)[:, :5], atol=1e-12)


def test_an_index_finds_the_same_people():
    pytest.importorskip("faiss", reason="needs faiss: pip install 'facelab[mining]'")
    rows, person = drawn(people=500, images=1, dimension=8)
    exact, indexed = gallery_of(rows, person), gallery_of(rows, person, "faiss")
    assert len(indexed.index) > 0
    mine, theirs = (one.search(rows[:50], 2) for one in (exact, indexed))
    np.testing.assert_array_equal(theirs.people[:, 0], np.arange(50))
    np.testing.assert_array_equal(theirs.scores[:, 0], mine.scores[:, 0])  # scored exactly in the end
    assert (theirs.people[:, 1] == mine.people[:, 1]).mean() > 0.9


def test_the_threshold_keeps_its_fpir_with_and_without_strangers():
    rows, person = drawn()
    gallery = gallery_of(rows, person)
    scores, how = calibrate(gallery, rows, person, None)
    brute = [
        max(float(row @ gallery.templates[j]) for j in range(40) if j != own)
        for row, own in zip(rows, person, strict=True)
    ]
    np.testing.assert_allclose(scores, sorted(brute, reverse=True), atol=1e-6)
    assert how == "120 enrolled images, each without its own person"
    strangers = drawn(seed=9)[0]
    best = (strangers @ gallery.templates.T).max(1)
    for measured, searches in ((scores, np.array(brute)), (calibrate(gallery, rows, person, strangers)[0], best)):
        one = Gallery(gallery.names, gallery.templates, gallery.images, measured, gallery.stamp)
        for fpir in (0.01, 0.1, 0.5):
            share = (searches.astype(np.float64) >= one.threshold(fpir) - 1e-6).mean()
            assert fpir - 2 / 120 <= share <= fpir + 1 / 120  # to a float32 score
        with pytest.raises(ValueError, match=r"fpir=0\.001: .* 120 strangers, too few .* ask for 0\.009 or more"):
            one.threshold(0.001)


@pytest.fixture
def opened(monkeypatch, tmp_path):
    monkeypatch.setattr(enrolment, "open_recogniser", lambda config: recogniser(tmp_path))
    monkeypatch.setattr(identification, "open_recogniser", lambda config: recogniser(tmp_path))
    return tmp_path


def choices(name, **given):
    return {**defaults("detection", "recognition", name), "model": None, "progress": False, **given}


def test_enrolled_from_a_folder_and_found_again(opened, capsys):
    people = faces(opened / "people")
    (people / "p1" / "bad.jpg").write_text("no image")
    (people / "ghost").mkdir()
    (people / "ghost" / "a.jpg").write_text("no image")
    (people / ".hidden.png").write_text("")
    (people / "p0" / "0.png").rename(people / "solo.png")  # one photograph, by its name
    out = opened / "staff.gallery"
    enrolment.enrol(choices("enrol", people=[str(people)], out=str(out)))
    told = capsys.readouterr().out
    assert "5 people, 12 photographs, D=32, exact search" in told
    assert "NOT ENROLLED, since no photograph of theirs can be used: ghost" in told
    listed = list(csv.reader((opened / "staff.gallery.failures.csv").open()))
    assert [row[0].rsplit("/", 2)[1:] for row in listed[1:]] == [["ghost", "a.jpg"], ["p1", "bad.jpg"]]
    gallery = Gallery.load(str(out))
    assert list(gallery.names) == ["p0", "p1", "p2", "p3", "solo"]
    assert gallery.images.tolist() == [2, 3, 3, 3, 1]
    assert len(gallery.strangers) == 12
    photographs = [str(people / "p2" / "1.png"), str(people / "p3" / "0.png")]
    answers = identification.identify(
        choices("identify", photographs=photographs, gallery=str(out), fpir=0.1, out=str(opened / "a.json"))
    )
    assert [answer["candidates"][0]["person"] for answer in answers] == ["p2", "p3"]
    assert (opened / "a.json").is_file()
    nobody = identification.identify(
        choices("identify", photographs=photographs[:1], gallery=str(out), threshold=0.9999, top=99)
    )
    assert nobody[0]["person"] is None
    assert len(nobody[0]["candidates"]) == 5
    with pytest.raises(FileExistsError, match="is there already"):
        enrolment.enrol(choices("enrol", people=[str(people)], out=str(out)))


def test_a_small_gallery_takes_the_models_own_threshold(tmp_path):
    rows, person = drawn(people=4, images=1)
    gallery = gallery_of(rows, person)
    model = recogniser(tmp_path)
    with pytest.raises(ValueError, match="searched for 0 strangers, too few"):
        limit(model, gallery, 0.01, None)
    points = (Point(0.01, 0.3, 0.0), Point(0.002, 0.5, 0.0))
    Thresholds("lfw", 1000, True, "a", {}, points).save(beside(model.path))
    threshold, words = limit(recogniser(tmp_path), gallery, 0.01, None)
    assert (threshold, words) == (0.5, "FPIR at most 4 people × FMR 2e-3 = 0.008, by lfw")
    with pytest.raises(ValueError, match="too few"):
        limit(recogniser(tmp_path), gallery, 0.001, None)
    assert limit(model, gallery, 0.01, 0.2)[0] == 0.2


@pytest.mark.parametrize(
    ("stamp", "message"),
    [
        ({"size": 112}, "made of faces of 112 pixels, model=.* takes 48"),
        ({"mirror": False}, "made with mirror=false, this is mirror=true"),
        (
            {"sha256": "0" * 64, "checkpoint_sha256": "0" * 64, "model": "old.onnx"},
            "embeddings of two models do not compare",
        ),
    ],
)
def test_a_gallery_of_another_model_is_refused(tmp_path, stamp, message):
    model = recogniser(tmp_path)
    own = enrolment.stamp_of(model)
    rows, person = drawn(people=3)
    check_model(model, make(list("abc"), rows, person, own, "exact"), "g")
    same_origin = {**own, "sha256": "1" * 64}  # another format of the same checkpoint
    check_model(model, make(list("abc"), rows, person, same_origin, "exact"), "g")
    with pytest.raises(ValueError, match=message):
        check_model(model, make(list("abc"), rows, person, {**own, **stamp}, "exact"), "g")


def test_what_is_no_gallery_is_told(opened):
    (opened / "x.gallery").write_text("no gallery")
    with pytest.raises(ValueError, match="is no gallery of facelab"):
        Gallery.load(str(opened / "x.gallery"))
    with pytest.raises(FileNotFoundError, match="no such file; make one"):
        Gallery.load(str(opened / "y.gallery"))
    gallery = gallery_of(*drawn(people=3))
    with pytest.raises(ValueError, match="embeddings of 16 numbers, the model gives 8"):
        gallery.search(np.ones((1, 8), np.float32), 1)
    (opened / "empty").mkdir()
    with pytest.raises(ValueError, match="no photographs"):
        enrolment.enrol(choices("enrol", people=[str(opened / "empty")], out=str(opened / "g")))
    bad = opened / "people" / "a"
    bad.mkdir(parents=True)
    (bad / "1.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"of nobody there is a face; the first: .*1\.jpg"):
        enrolment.enrol(choices("enrol", people=[str(bad.parent)], out=str(opened / "g")))
    assert not (opened / "g").exists()
    assert render(0, 1, 0, SIZE, 0.3).shape == (SIZE, SIZE, 3)
