"""FRVT's numbers on folders whose answers are known: built so, or counted by loops over every pair in float64."""

import csv
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from facelab.benchmark import frvt, impostors
from facelab.benchmark.frvt import FrvtBenchmark
from facelab.benchmark.operating_points import tar_at_far
from facelab.benchmark.scores import load_counted, save_all
from facelab.benchmark.streaming import pair_scores, unit

CONF = Path(__file__).resolve().parents[2] / "conf" / "benchmark" / "frvt.yaml"
SIZE = 4  # pixels: an image is 48 numbers, and these are its embedding


def options(**changed):
    settings = yaml.safe_load(CONF.read_text())
    del settings["_target_"]
    return FrvtBenchmark(**{**settings, "size": SIZE, "device": "cpu", "bootstrap": 200, **changed})


def embed(images):
    return np.stack([images.load(i).astype(np.float32).ravel() - 127.5 for i in range(len(images))])


def write(folder, rows, pixels, name="images.csv"):
    """Images of 48 numbers each, and the list of them."""
    folder.mkdir(exist_ok=True)
    for row, values in zip(rows, pixels, strict=True):
        image = np.clip(np.rint(127.5 + values.reshape(SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
        if not row.get("failed"):
            cv2.imwrite(str(folder / row["image"]), image[..., ::-1])
    with (folder / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def directions(count):
    """Orthogonal embeddings, Walsh functions, of numbers that pixels can show: all cosines of equals are equal."""
    matrix = np.ones((1, 1))
    while len(matrix) < 16:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.tile(99.5 * matrix[:count], (1, 3))


@pytest.fixture
def known(tmp_path):
    """Ten people, each with an enrolment and a verification image, in two sexes. Everybody is alike to himself (1) and
    to nobody else (about 0, see below), but for: person 9 whose verification image looks like person 8; person 7, who
    fails. So of 10 genuine comparisons two are wrong, and one of 90 − 9 impostor comparisons is 1.
    """
    faces = directions(10)
    rows, pixels = [], []
    for who in range(10):
        for part in ("enrol", "verify"):
            sex = "f" if who in (0, 1, 2, 3, 8) else "m"
            failed = "1" if (who, part) == (7, "verify") else ""
            rows.append({"image": f"{who}{part}.png", "person": f"p{who}", "set": part, "sex": sex, "failed": failed})
            pixels.append(faces[8] if (who, part) == (9, "verify") else faces[who])
    write(tmp_path / "faces", rows, pixels)
    return tmp_path / "faces"


def test_a_folder_whose_answers_are_known(known, tmp_path):
    benchmark = options(path=str(known), fmr=[0.02, 0.001], by=["sex"], fpir=[0.2], name="mine")
    images = benchmark.open()
    assert images.about == "10 enrolment and 10 verification images of 10 people"
    result = benchmark.evaluate(embed(images), images)
    metrics = result.metrics
    assert result.stamp["impostor"] == 10 * 9 - 9
    assert result.stamp["genuine"] == 10
    # One false match is allowed of 81 at 2 %: the threshold is just above 0. At 0.1 % none: it is just above 1.
    assert metrics["mine/fmr@2e-2"] == 1 / 81
    assert metrics["mine/threshold@2e-2"] < 0.01
    assert metrics["mine/fnmr@2e-2"] == 2 / 10
    assert metrics["mine/threshold@1e-3"] > 0.99
    assert metrics["mine/fnmr@1e-3"] == 1.0
    assert result.notes["mine/fnmr@1e-3"].startswith("zero false matches, N=81")
    assert metrics["mine/failures"] == 1 / 20
    assert metrics["mine/fnmr@2e-2_low"] <= 0.2 <= metrics["mine/fnmr@2e-2_high"]
    # 1:N: all are enrolled. p7's search has failed; p9's finds p8 with 1, the highest of strangers; ten percent of
    # positives are allowed twice, so that the threshold is next above 0.
    assert metrics["mine/fnir@2e-1"] == 2 / 10
    assert metrics["mine/rank1"] == 8 / 10
    own = {(row["fmr_target"], row["group"]): row for row in result.tables["groups"]}
    assert own[0.02, "f"]["false_non_matches"] == 0
    assert own[0.02, "m"]["false_non_matches"] == 2
    assert own[0.02, "m"]["false_matches"] == 0
    cross = {(row["enrol"], row["verify"]): row for row in result.tables["cross_groups"] if row["fmr_target"] == 0.02}
    assert cross["f", "m"]["false_matches"] == 1  # p8 is enrolled, p9 verified
    assert {pair: row["comparisons"] for pair, row in cross.items()} == {
        ("f", "f"): 20, ("m", "m"): 16, ("f", "m"): 20, ("m", "f"): 25,
    }  # fmt: skip
    assert result.tables["failures"] == [{"image": "7verify.png", "why": "listed"}]
    written = {path.name for path in save_all(tmp_path / "scores", result)}
    assert written == {
        "mine.npz", "mine_thresholds.csv", "mine_groups.csv", "mine_cross_groups.csv", "mine_failures.csv",
        "mine_identification.csv",
    }  # fmt: skip
    with (tmp_path / "scores" / "mine_thresholds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["fnmr"]) for row in rows] == [0.2, 1.0]
    again = load_counted(tmp_path / "scores" / "mine.npz")
    assert again.metrics == metrics
    assert again.stamp == result.stamp
    assert again.headline == 1.0
    assert again.choosing == -1.0
    np.testing.assert_array_equal(again.kept["subject_errors"][:, 0], [0] * 7 + [1, 0, 1])
    np.testing.assert_array_equal(again.kept["det_fnmr"], result.kept["det_fnmr"])


def test_the_rule_says_which_impostors_count(known):
    found = {}
    for rule in ("same_group", "cross_group"):
        benchmark = options(path=str(known), fmr=[0.02], impostors=rule, group="sex", by=["sex"])
        images = benchmark.open()
        result = benchmark.evaluate(embed(images), images)
        found[rule] = result.stamp["impostor"]
        assert result.stamp["impostors"] == f"{rule} by sex"
        pairs = {(row["enrol"], row["verify"]) for row in result.tables["cross_groups"]}
        assert pairs == ({("f", "f"), ("m", "m")} if rule == "same_group" else {("f", "m"), ("m", "f")})
        assert result.metrics["frvt/fmr@2e-2"] == 0  # 36 and 45 comparisons: none is allowed
    assert found == {"same_group": 36, "cross_group": 45}


def random_list(folder, seed, sets, count=60, people=12):
    rng = np.random.default_rng(seed)
    person = rng.integers(0, people, count)
    centres = rng.normal(size=(people, 48))
    pixels = 40 * (centres[person] + 0.9 * rng.normal(size=(count, 48)))
    rows = [
        {
            "image": f"{i}.png", "person": f"p{who:02}", **({"set": rng.choice(["enrol", "verify"])} if sets else {}),
            "sex": "fm"[who % 2], "age": str(rng.choice(["", "young", "old"])),
        }
        for i, who in enumerate(person)
    ]  # fmt: skip
    write(folder, rows, pixels)
    return rows


def pairs_of(rows, sets):
    every = range(len(rows))
    return np.array([
        (i, j) for i in every for j in every
        if (rows[i]["set"] == "enrol" and rows[j]["set"] == "verify" if sets else i < j)
    ])  # fmt: skip


@pytest.mark.parametrize("sets", [True, False], ids=["two sets", "one list"])
@pytest.mark.parametrize("rule", ["all", "same_group", "cross_group"])
def test_all_numbers_by_loops_over_every_pair(tmp_path, sets, rule):
    rows = random_list(tmp_path / "faces", 3, sets)
    group = {} if rule == "all" else {"group": "sex"}
    targets = [0.1, 0.01]
    benchmark = options(path=str(tmp_path / "faces"), fmr=targets, impostors=rule, by=["age", "sex"], **group)
    images = benchmark.open()
    embeddings = embed(images)
    embeddings[5] = embeddings[11]  # repeated scores
    result = benchmark.evaluate(embeddings, images)
    pairs = pairs_of(rows, sets)
    vectors = unit(embeddings)
    scores = pair_scores(vectors, vectors, pairs)
    one, other = ([rows[i] for i in side] for side in pairs.T)
    same = np.array([a["person"] == b["person"] for a, b in zip(one, other, strict=True)])
    within = np.array([a["sex"] == b["sex"] for a, b in zip(one, other, strict=True)])
    counts = ~same & {"all": True, "same_group": within, "cross_group": ~within}[rule]
    assert (result.stamp["genuine"], result.stamp["impostor"]) == (same.sum(), counts.sum())
    for target in targets:
        key = f"{target:.0e}".replace("e-0", "e-")
        point = tar_at_far(scores[same], scores[counts], target, "at_most")
        assert result.metrics[f"frvt/threshold@{key}"] == point.threshold
        assert result.metrics[f"frvt/fmr@{key}"] == point.far
        assert result.metrics[f"frvt/fnmr@{key}"] == pytest.approx(1 - point.tar, abs=1e-12)
        accepted = scores >= point.threshold
        for row in result.tables["cross_groups"]:
            if row["fmr_target"] == target:
                column, names = row["groups"], (row["enrol"], row["verify"])
                cells = [((a[column] or "unknown"), (b[column] or "unknown")) for a, b in zip(one, other, strict=True)]
                inside = counts & np.array([cell == names or (not sets and cell == names[::-1]) for cell in cells])
                assert (row["comparisons"], row["false_matches"]) == (inside.sum(), (inside & accepted).sum())
        for row in result.tables["groups"]:
            if row["fmr_target"] == target:
                inside = same & np.array([(a[row["groups"]] or "unknown") == row["group"] for a in one])
                assert (row["genuine_comparisons"], row["false_non_matches"]) == (
                    inside.sum(), (inside & ~accepted).sum(),
                )  # fmt: skip
    for threshold, fmr, fnmr in zip(*(result.kept[f"det_{key}"] for key in ("threshold", "fmr", "fnmr")), strict=True):
        assert fmr == np.mean(scores[counts] >= threshold)
        assert fnmr == pytest.approx(np.mean(scores[same] < threshold), abs=1e-12)
    assert result.kept["det_fmr"][-1] == 1
    assert (np.diff(result.kept["det_fmr"]) >= 0).all()


def test_more_scores_than_are_kept(tmp_path, monkeypatch):
    """Behind the tail the DET curve is that of a sample; the numbers are the same."""
    random_list(tmp_path / "faces", 4, True, count=200)
    benchmark = options(path=str(tmp_path / "faces"), fmr=[0.01, 0.001])
    images = benchmark.open()
    embeddings = embed(images)
    whole = benchmark.evaluate(embeddings, images)
    monkeypatch.setattr(frvt, "KEPT", 10)
    part = benchmark.evaluate(embeddings, images)
    assert part.metrics == whole.metrics
    assert len(part.kept["tail_scores"]) < 0.02 * whole.stamp["impostor"]
    assert part.stamp["det"].startswith("exact to FMR 1.0e-02")
    exact = part.kept["det_exact"]
    assert 0 < exact.sum() < len(exact)
    assert (np.diff(part.kept["det_fmr"]) >= 0).all()
    assert (np.diff(part.kept["det_threshold"]) < 0).all()
    every = whole.kept["impostor_sample"]
    assert len(every) == whole.stamp["impostor"]
    for i in np.flatnonzero(~exact):  # here the sample is everything, in float32
        share = np.mean(every >= part.kept["det_threshold"][i])
        assert part.kept["det_fmr"][i] == pytest.approx(share, abs=2 / len(every))


def test_morphs(tmp_path):
    """Three morphs of two: as like both, as like one, like nobody."""
    faces = directions(8)
    rows = [
        {"image": f"{who}{part}.png", "person": f"p{who}", "set": part}
        for who in range(6) for part in ("enrol", "verify")
    ]  # fmt: skip
    write(tmp_path / "faces", rows, [faces[int(row["person"][1])] for row in rows])
    morphs = [{"image": f"m{i}.png", "person": f"p{who}"} for i in range(3) for who in (2 * i, 2 * i + 1)]
    blends = [(faces[0] + faces[1]) / 2, faces[2], faces[7]]
    write(tmp_path / "faces", morphs, np.repeat(blends, 2, axis=0), "morphs.csv")
    found = {}
    for rule in ("all", "either"):
        benchmark = options(
            path=str(tmp_path / "faces"), fmr=[0.01], morphs=str(tmp_path / "faces" / "morphs.csv"), morph_rule=rule
        )
        images = benchmark.open()
        assert len(images) == 15
        result = benchmark.evaluate(embed(images), images)
        assert result.metrics["frvt/fnmr@1e-2"] == 0
        found[rule] = result.metrics["frvt/mmpmr@1e-2"]
        assert result.tables["thresholds"][0]["mmpmr"] == found[rule]
    assert found == {"all": 1 / 3, "either": 2 / 3}
    assert result.stamp["morphs"] == "3, accepted: either"


def test_strangers_are_searched(tmp_path):
    """Two of six verified people are not enrolled; one of them looks like p0. One such search may find somebody."""
    faces = directions(6)
    rows = [{"image": f"{who}e.png", "person": f"p{who}", "set": "enrol"} for who in range(4)]
    rows += [{"image": f"{who}v.png", "person": f"p{who}", "set": "verify"} for who in range(6)]
    pixels = [*faces[:4], *faces[:4], faces[0], faces[5]]
    pixels[7] = 0.5 * faces[3] + faces[2]  # p3 finds p2 first
    write(tmp_path / "faces", rows, pixels)
    benchmark = options(path=str(tmp_path / "faces"), fmr=[0.1], fpir=[0.5, 0.1], rank=1)
    images = benchmark.open()
    result = benchmark.evaluate(embed(images), images)
    assert result.metrics["frvt/fnir@5e-1"] == 1 / 4
    assert result.metrics["frvt/fnir@1e-1"] == 1.0  # no false positive: above 1, where nobody is found
    assert result.metrics["frvt/rank1"] == 3 / 4
    assert result.kept["cmc"][:2].tolist() == [0.75, 1.0]
    row = result.tables["identification"][0]
    assert (row["non_mated"], row["false_positives"], row["mated"], row["missed"]) == (2, 1, 4, 1)
    assert result.stamp["searches"].endswith("non-mated: people who are not enrolled")
    easier = options(path=str(tmp_path / "faces"), fmr=[0.1], fpir=[0.5], rank=2)
    assert easier.evaluate(embed(images), images).metrics["frvt/fnir@5e-1"] == 0


def test_failures_to_enrol(tmp_path):
    rows = random_list(tmp_path / "faces", 5, True)

    def mates(i):
        return sum(row["person"] == rows[i]["person"] and row["set"] != rows[i]["set"] for row in rows)

    lost = next(i for i in range(10, 60) if mates(i) > 1)
    (tmp_path / "faces" / f"{lost}.png").write_bytes(b"no image at all")
    settings = {"path": str(tmp_path / "faces"), "fmr": [0.05]}
    strict = options(**settings, failures=["listed"])
    with pytest.raises(ValueError, match=rf"{lost}\.png: is not a readable image; .* \(benchmark\.failures\)"):
        embed(strict.open())
    benchmark = options(**settings)
    images = benchmark.open()
    embeddings = embed(images)
    embeddings[lost] = np.nan  # what a network makes of a black image counts for nothing
    result = benchmark.evaluate(embeddings, images)
    assert result.tables["failures"] == [{"image": f"{lost}.png", "why": "unreadable"}]
    rejected = result.kept["genuine"] == -np.inf
    assert rejected.sum() == mates(lost)
    assert result.metrics["frvt/fnmr@5e-2"] >= mates(lost) / len(rejected)
    zero = embeddings.copy()
    zero[[8, 9]] = 0
    with pytest.raises(ValueError, match=r"2 of 60 embeddings are zero, those of 8\.png, 9\.png; check"):
        benchmark.evaluate(zero, images)
    lenient = options(**settings, failures=["unreadable", "zero"])
    found = lenient.evaluate(zero, images)
    assert [row["why"] for row in found.tables["failures"]] == ["unreadable", "zero", "zero"]
    assert found.metrics["frvt/failures"] == 3 / 60
    assert "unreadable, zero: false non-matches" in found.stamp["failures"]
    zero[7] = np.inf
    with pytest.raises(ValueError, match=r"1 of 60 embeddings are not finite, those of 7\.png"):
        lenient.evaluate(zero, images)
    with pytest.raises(ValueError, match=r"embeddings of shape \(59, 48\) for 60 images"):
        lenient.evaluate(zero[1:], images)


def test_all_have_failed(known):
    benchmark = options(path=str(known), failures=["listed", "zero"], fmr=[0.02])
    images = benchmark.open()
    with pytest.raises(ValueError, match="20 of 20 images have failed, and none of the others are impostors"):
        benchmark.evaluate(np.zeros((20, 48), np.float32), images)


def test_more_scores_than_can_be_kept_are_refused_before_anything_is_embedded(known, monkeypatch):
    monkeypatch.setattr(impostors, "MOST", 10)
    with pytest.raises(ValueError, match=r"fmr=0\.1 of 90 impostor comparisons asks for the 10 largest .* at most 5"):
        options(path=str(known), fmr=[0.1]).open()


def test_the_order_of_the_list_changes_nothing(tmp_path):
    random_list(tmp_path / "faces", 6, True)
    file = tmp_path / "faces" / "images.csv"
    found = []
    for turn in range(2):
        benchmark = options(path=str(tmp_path / "faces"), fmr=[0.05, 0.005], fpir=[0.1])
        images = benchmark.open()
        found.append(benchmark.evaluate(embed(images) * (1 + turn), images).metrics)  # and norms mean nothing
        head, *lines = file.read_text().splitlines()
        file.write_text("\n".join([head, *np.random.default_rng(0).permutation(lines)]) + "\n")
    # Which image of a person is the gallery's depends on the order: 1:N is another experiment.
    pairs = [{key: value for key, value in one.items() if "fnir" not in key and "rank" not in key} for one in found]
    assert pairs[0] == pairs[1]


def test_a_state_makes_it_go_on(known, tmp_path):
    benchmark = options(path=str(known), fmr=[0.02], state=str(tmp_path / "state.npz"))
    images = benchmark.open()
    told = []
    benchmark.evaluate(embed(images), images, progress=lambda *numbers: told.append(numbers))
    assert told[-1] == (90, 90)
    assert not (tmp_path / "state.npz").exists()


def test_lists_that_cannot_be_used(known, tmp_path):
    def refused(kind, match, **changed):
        with pytest.raises(kind, match=match):
            options(**{"path": str(known), **changed}).open()

    text = (known / "images.csv").read_text()

    def listed(content):
        (tmp_path / "list.csv").write_text(content)
        return {"list": str(tmp_path / "list.csv")}

    refused(ValueError, "benchmark.path is null: give the folder", path=None)
    refused(FileNotFoundError, "no such folder of images", path=str(tmp_path / "nowhere"))
    refused(FileNotFoundError, r"none\.csv: no such list; give a CSV file", list=str(tmp_path / "none.csv"))
    refused(ValueError, "has no group age; its groups are sex: mend", by=["age"])
    refused(ValueError, "has no group person", by=["person"])
    refused(ValueError, "1 images are listed as failed", failures=["unreadable"])
    missing = text + "a.png,p1,enrol,f,\n" + "b.png,p2,verify,f,\n"
    refused(FileNotFoundError, r"2 of 21 listed images are missing: a\.png, b\.png; check", **listed(missing))
    refused(ValueError, r"1 images stand there twice: 0enrol\.png", **listed(text + "0enrol.png,p0,enrol,f,\n"))
    refused(ValueError, "must name the columns image and person; it names file, who", **listed("file,who\na,b\n"))
    refused(ValueError, "2 lines have no image or no person: 22, 23", **listed(text + ",p1,enrol,f,\nx,,enrol,f,\n"))
    refused(ValueError, "says enrol or verify, here also 'gallery'", **listed(text.replace("p3,enrol", "p3,gallery")))
    refused(ValueError, "0 enrolment and 20 verification", **listed(text.replace(",enrol", ",verify")))
    refused(ValueError, "the column failed says .* 'maybe'", **listed(text.replace("m,1", "m,maybe")))
    refused(ValueError, "names no image", **listed("image,person\n"))
    stranger = "image,person,set\n0enrol.png,p0,enrol\n1verify.png,p1,verify\n"
    refused(ValueError, r"0 genuine and 1 impostor comparisons \(all\); both are needed", **listed(stranger))
    nameless = text.replace("p3,enrol,f", "p3,enrol,")
    refused(ValueError, "some images have no sex, by which", impostors="same_group", group="sex", **listed(nameless))
    morphs = tmp_path / "morphs.csv"
    for content, match in (
        ("m.png,p1\nm.png,q\n", "1 contributors are not in the list of images: q"),
        ("m.png,p1\n", r"1 morphs have fewer than two contributors: m\.png"),
        ("0enrol.png,p1\n0enrol.png,p2\n", r"1 morphs are in the list of images too: 0enrol\.png"),
    ):
        morphs.write_text("image,person\n" + content)
        refused(ValueError, match, morphs=str(morphs))
    morphs.write_text("image,person\nm.png,p1\nm.png,p2\n")
    refused(FileNotFoundError, r"1 of 20 listed images are missing: m\.png", morphs=str(morphs))
    cv2.imwrite(str(known / "m.png"), np.zeros((4, 4, 3), np.uint8))
    gone = "\n".join(line for line in text.splitlines() if not line.startswith("2verify"))
    refused(ValueError, "1 contributors have no image to compare a morph with: p2", morphs=str(morphs), **listed(gone))


def test_settings_out_of_range():
    for changed, match in (
        ({"fmr": []}, "benchmark.fmr is empty"),
        ({"fmr": [0.0]}, r"benchmark\.fmr is \[0\.0\]: a target rate lies between"),
        ({"fpir": [1.0]}, r"benchmark\.fpir is"),
        ({"impostors": "some"}, "choose all without a group"),
        ({"impostors": "same_group"}, "same_group or cross_group with the column"),
        ({"group": "sex"}, "choose all without a group"),
        ({"failures": ["blurred"]}, "benchmark.failures names blurred: choose among listed, unreadable, zero"),
        ({"rank": 0}, "benchmark.rank=0"),
        ({"device": "tpu"}, "benchmark.device=tpu"),
        ({"morph_rule": "some"}, "morph_rule='some'"),
        ({"size": 0}, "benchmark.size=0"),
    ):
        with pytest.raises(ValueError, match=match):
            options(**changed)


def test_without_intervals(known):
    benchmark = options(path=str(known), fmr=[0.02], bootstrap=0)
    images = benchmark.open()
    result = benchmark.evaluate(embed(images), images)
    assert not [key for key in result.metrics if key.endswith(("_low", "_high"))]
    assert math.isnan(result.tables["thresholds"][0]["fnmr_low"])
