"""IJB in its official layout, made here: every figure against loops over the lists' own lines."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import ijb
from test_templates import pooled

from facelab.alignment import similarities, warp
from facelab.benchmark import searching
from facelab.benchmark.ijb import IJBBenchmark
from facelab.benchmark.scores import compare_stamps, load_counted, save_scores
from facelab.benchmark.searching import average_precision, identified, look_up, mates_of, shares

FARS, RANKS, FPIR = [1e-6, 0.01, 0.1, 0.3], [1, 2, 5], [0.05, 0.3]
PLAIN = {
    "name": "ijbc", "prefix": "ijbc", "galleries": ["G1", "G2"], "mirror": True, "norm": True, "detector_weight": True,
    "pooling": "media", "far": FARS, "far_rule": "at_most", "fpir": FPIR, "ranks": RANKS, "size": 16,
    "bootstrap": 0, "seed": 0, "known": {},
}  # fmt: skip


def benchmark(root, **changes):
    return IJBBenchmark(**{**PLAIN, "path": None if root is None else str(root), **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return ijb(tmp_path_factory.mktemp("ijb") / "IJBC")


def embeddings(made, seed=0, dim=6, noise=1.0):
    """Near a direction of the subject, of any length."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(40, dim))
    rows = [directions[template // 10 - 100] + noise * rng.normal(size=dim) for template, _ in made.rows]
    return (np.array(rows) * rng.uniform(1, 9, (len(rows), 1))).astype(np.float32)


def features(made, vectors, norm=True, weigh=True, pooling="media"):
    """template → its feature, float64."""
    template, media = np.array(made.rows).T
    found = pooled(vectors, template, media, made.detector, norm, weigh, pooling)
    return dict(zip(np.unique(template).tolist(), found, strict=True))


def slow_tar(genuine, impostor, far, rule):
    """Over every threshold that can matter."""
    best = None
    for t in [math.inf, *sorted({*genuine, *impostor}, reverse=True)]:
        fa, ta = (sum(s >= t for s in kind) / len(kind) for kind in (impostor, genuine))
        away = abs(fa - far)
        if rule == "nearest" and (best is None or away <= best[0]):
            best = away, ta
        if rule == "at_most" and fa <= far:
            best = away, ta
    return best[1]


def slow_search(by_template, probes, gallery, rule):
    """rank-k and TPIR by whole rows of scores."""
    ranks, mated, others = [], [], []
    enrolled = {subject for _, subject in gallery}
    for template, subject in probes:
        scores = {t: float(by_template[template] @ by_template[t]) for t, _ in gallery}
        mates = [scores[t] for t, s in gallery if s == subject]
        rest = [scores[t] for t, s in gallery if s != subject]
        if subject not in enrolled:
            others.append(max(rest))
            continue
        ranks.append(1 + sum(s >= max(mates) for s in rest))
        mated.append(max(mates))
    found = {}
    for fpir in FPIR:
        candidates = [math.inf, *sorted({*mated, *others, *np.nextafter(others, math.inf)}, reverse=True)]
        rates = [(t, sum(s >= t for s in others) / len(others)) for t in candidates]
        if rule == "at_most":
            threshold = min(t for t, rate in rates if rate <= fpir)
        else:
            threshold = min(rates, key=lambda one: (abs(one[1] - fpir), -one[1], one[0]))[0]
        hits = [rank == 1 and s >= threshold for rank, s in zip(ranks, mated, strict=True)]
        found[f"tpir@fpir={fpir:g}"] = np.mean(hits)
    return found | {f"rank{k}": np.mean([rank <= k for rank in ranks]) for k in RANKS}


@pytest.mark.parametrize("rule", ["at_most", "nearest"])
@pytest.mark.parametrize(("norm", "weigh", "pooling"), [(True, True, "media"), (False, False, "images")])
def test_every_figure_is_that_of_the_lists_lines(made, rule, norm, weigh, pooling):
    bench = benchmark(made.root, far_rule=rule, norm=norm, detector_weight=weigh, pooling=pooling)
    opened, vectors = bench.open(None), embeddings(made)
    result = bench.evaluate(vectors, opened)
    by_template = features(made, vectors, norm, weigh, pooling)
    genuine, impostor = ([float(by_template[a] @ by_template[b]) for a, b, s in made.pairs if s == k] for k in (1, 0))
    expected = {f"ijbc/tar@{key}": slow_tar(genuine, impostor, far, rule) for key, far in
                zip(("1e-6", "1e-2", "1e-1", "3e-1"), FARS, strict=True)}  # fmt: skip
    searches = {
        gallery: slow_search(by_template, made.probes, made.enrolled[number::2], rule)
        for number, gallery in enumerate(made.galleries)
    }
    for key in searches["G1"]:
        expected[f"ijbc/{key}"] = np.mean([one[key] for one in searches.values()])
        expected |= {f"ijbc/{gallery}/{key}": one[key] for gallery, one in searches.items()}
    assert result.metrics == pytest.approx(expected, abs=1e-12)
    assert 0.05 < result.metrics["ijbc/tar@1e-1"] < 1
    assert 0.1 < result.metrics["ijbc/rank1"] < 1
    if rule == "at_most":
        assert result.notes["ijbc/tar@1e-6"] == f"zero false accepts, N={len(impostor):,}"
    np.testing.assert_allclose(np.sort(result.kept["genuine"]), np.sort(genuine), atol=1e-6)


def test_perfect_and_hopeless_models_get_what_they_deserve(made):
    bench = benchmark(made.root)
    opened = bench.open(None)
    template = np.array(made.rows)[:, 0]
    perfect = np.eye(7, dtype=np.float32)[template // 10 - 100] * 3
    metrics = bench.evaluate(perfect, opened).metrics
    assert {value for key, value in metrics.items()} == {1.0}
    # All embeddings alike: every score ties, no threshold keeps a false accept out, and nobody comes first.
    metrics = bench.evaluate(np.ones((len(template), 4), np.float32), opened).metrics
    assert metrics["ijbc/tar@1e-2"] == metrics["ijbc/rank1"] == metrics["ijbc/tpir@fpir=0.3"] == 0
    assert metrics["ijbc/rank5"] == 1  # three or four are enrolled


def test_neither_order_nor_scale_nor_rotation_changes_a_figure(made):
    bench = benchmark(made.root)
    opened, vectors, rng = bench.open(None), embeddings(made), np.random.default_rng(5)
    expected = bench.evaluate(vectors, opened).metrics
    images, pairs = rng.permutation(len(opened)), rng.permutation(len(opened.pairs))
    mixed = replace(
        opened, names=[opened.names[i] for i in images], template=opened.template[images], media=opened.media[images],
        detector=opened.detector[images], pairs=opened.pairs[pairs], same=opened.same[pairs],
    )  # fmt: skip
    assert bench.evaluate(vectors[images], mixed).metrics == expected
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert bench.evaluate((7 * vectors @ turn).astype(np.float32), opened).metrics == expected


def test_images_are_warped_by_their_five_points(made):
    opened = benchmark(made.root).open(None)
    for i in (0, 7):
        photo = cv2.imread(str(made.root / "loose_crop" / made.names[i]))[..., ::-1]
        points = np.round(made.points[i], 6)[None]
        assert np.array_equal(opened.load(i), warp(np.ascontiguousarray(photo), similarities(points, 16)[0], 16))
    assert opened.about == f"{len(made.pairs)} pairs of 28 templates of {len(made.rows)} images"


def test_stamps_differ_where_protocols_do_and_the_record_comes_back(made, tmp_path):
    def run(**changes):
        bench = benchmark(made.root, **changes)
        return bench.evaluate(embeddings(made), bench.open(None))

    plain = run(bootstrap=200)
    for change in ({"mirror": False}, {"norm": False}, {"detector_weight": False}, {"pooling": "images"},
                   {"far_rule": "nearest"}, {"size": 12}):  # fmt: skip
        assert compare_stamps(plain.stamp, run(**change).stamp) == list(change)
    assert {"crop", "color", "source"} <= set(plain.stamp)
    assert "1:N" not in run(galleries=[]).stamp["protocol"]
    save_scores(tmp_path / "ijbc.npz", plain)
    read = load_counted(tmp_path / "ijbc.npz")
    assert (read.metrics, read.stamp, read.notes, read.main) == (
        plain.metrics,
        plain.stamp,
        plain.notes,
        "ijbc/tar@1e-6",
    )
    for key in ("genuine", "impostor_tail", "subject_accepted", "det_fmr", "cmc"):
        assert np.array_equal(read.kept[key], plain.kept[key])
    assert read.stamp["impostor"] == sum(not same for *_, same in made.pairs)
    for key in ("tar@1e-1", "rank1", "G1/rank1", "tpir@fpir=0.05"):
        low, value, high = (plain.metrics[f"ijbc/{key}{end}"] for end in ("_low", "", "_high"))
        assert low <= value <= high
        assert "95 %" in plain.notes[f"ijbc/{key}"]
    assert plain.metrics["ijbc/rank1_low"] < plain.metrics["ijbc/rank1_high"]


def test_ijbb_has_other_names(tmp_path):
    made = ijb(tmp_path / "IJBB", prefix="ijbb", galleries=("S1", "S2"), subjects=4)
    bench = benchmark(made.root, name="ijbb", prefix="ijbb", galleries=["S1", "S2"])
    assert "ijbb/S2/rank1" in bench.evaluate(embeddings(made), bench.open(None)).metrics


# Bad lists


def test_the_doctor_names_all_that_is_missing_at_once(made, tmp_path):
    known = {"images": len(made.rows), "templates": 28, "pairs": 9, "genuine": 21}
    assert benchmark(made.root, known={**known, "pairs": len(made.pairs)}).check() == []
    (off,) = benchmark(made.root, known=known).check()
    assert off.endswith(f"{len(made.pairs)} pairs, published are 9")
    root = tmp_path / "IJBC"
    ijb(root)
    for name in (
        "meta/ijbc_1N_gallery_G2.csv",
        "meta/ijbc_name_5pts_score.txt",
        "loose_crop/3.jpg",
        "loose_crop/5.jpg",
    ):
        (root / name).unlink()
    bench = benchmark(root, known=known)
    found = bench.check()
    assert len(found) == 4
    for words in ("5pts_score.txt is missing", "gallery_G2.csv is missing", "images are missing", "published are 9"):
        assert sum(words in line for line in found) == 1
    with pytest.raises(
        FileNotFoundError, match=r"5pts_score.txt is missing; .*G2.csv is missing; .*2 of \d+ .*\.jpg"
    ) as raised:
        bench.open(None)
    assert {"3.jpg", "5.jpg"} <= set(str(raised.value).replace(",", " ").replace(";", " ").split())
    everything = benchmark(tmp_path / "nowhere").check()
    assert len(everything) == 7
    with pytest.raises(ValueError, match=r"^benchmark\.path is null: give the folder that holds meta and loose_crop$"):
        benchmark(None).open(None)


def changed(tmp_path, file, edit):
    made = ijb(tmp_path / "IJBC", subjects=4)
    path = made.root / "meta" / f"ijbc_{file}"
    path.write_text(edit(path.read_text()))
    return benchmark(made.root)


@pytest.mark.parametrize(
    ("file", "edit", "line"),
    [
        ("template_pair_label.txt", lambda t: t + "77 1000 0\n78 1001 0\n",
         r"pair_label\.txt: names 2 templates that have no image in ijbc_face_tid_mid\.txt: 77, 78"),
        ("template_pair_label.txt", lambda t: t + "1000 1001 2\n", r"pair \d+: is labelled 2; 1 is genuine"),
        ("template_pair_label.txt", lambda t: t.replace(" 1\n", " 0\n"), "0 genuine of .* both kinds are needed"),
        ("template_pair_label.txt", lambda t: t + "1000 x 0\n", "cannot be read as template, template, 1 or 0 .*'x'"),
        ("template_pair_label.txt", lambda t: t + "1000 1\n", "cannot be read as template, template"),
        ("template_pair_label.txt", lambda t: t + "1000 1001 0.5\n", "cannot be read as template, template"),
        ("template_pair_label.txt", lambda t: t + "1000 -1001 0\n", "whole numbers from 0 on"),
        ("template_pair_label.txt", lambda t: "", "cannot be read as template, template"),
        ("1N_gallery_G2.csv", lambda t: t + "79,5,a.png,0\n", r"G2\.csv: names 1 templates that have no image .*: 79"),
        ("1N_gallery_G1.csv", lambda t: t + t.splitlines()[1].replace(",100,", ",5,") + "\n", "template 1000 is of"),
        ("1N_probe_mixed.csv", lambda t: t + "a,b,c\n", "do not begin with two whole numbers"),
        ("1N_probe_mixed.csv", lambda t: t.splitlines()[0] + "\n", "lists no template"),
        ("face_tid_mid.txt", lambda t: t + "a.jpg 5\n", r"face_tid_mid\.txt, line \d+: is not a name and 2 numbers"),
        ("name_5pts_score.txt", lambda t: t.replace("2.jpg", "x.jpg", 1), "images are not those of ijbc_face_tid_mid"),
        ("name_5pts_score.txt", lambda t: "\n".join(t.splitlines()[:-1]) + "\n", "images are not those of"),
        ("name_5pts_score.txt", lambda t: t.replace(t.split()[1], "left", 1), "5pts_score.txt, line 1: is not a name"),
        ("name_5pts_score.txt", lambda t: t.replace(t.split()[11], "nan", 1), "1 scores of the detector are"),
    ],
)  # fmt: skip
def test_lists_that_do_not_fit_are_refused(tmp_path, file, edit, line):
    bench = changed(tmp_path, file, edit)
    (tmp_path / "IJBC" / "loose_crop" / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=line):
        bench.open(None)


def test_probes_whom_nobody_knows_are_refused(tmp_path):
    bench = changed(tmp_path, "1N_gallery_G1.csv", lambda t: t.replace(",100,", ",1,").replace(",102,", ",3,"))
    opened = bench.open(None)
    with pytest.raises(ValueError, match="gallery G1: none of the 12 probes is of a subject that is enrolled in it"):
        bench.evaluate(np.ones((len(opened), 3), np.float32) + np.eye(len(opened), 3, dtype=np.float32), opened)


def test_an_embedding_that_is_not_finite_is_named_by_its_image(made):
    bench = benchmark(made.root)
    vectors = embeddings(made)
    vectors[4] = np.nan
    with pytest.raises(ValueError, match=r"ijbc: 1 of \d+ embeddings are not finite, the first is that of 5\.jpg"):
        bench.evaluate(vectors, bench.open(None))


@pytest.mark.parametrize(
    ("changes", "line"),
    [({"far": []}, "far is empty"), ({"far": [2]}, "between 0 and 1"), ({"far_rule": "close"}, "far_rule='close'"),
     ({"bootstrap": -1}, "bootstrap=-1"),
     ({"ranks": [0]}, r"ranks is \[0\]"), ({"ranks": []}, "ranks is"), ({"size": 0}, "size=0"),
     ({"fpir": [-1]}, "far=-1")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        benchmark(None, **changes)


# Searches


def drawn(seed, probes=7, gallery=15, people=4, dim=3):
    """Vectors of few integers, so that scores tie; identities of which some are in the gallery alone, or nowhere."""
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (probes + gallery, dim)).astype(np.float32)
    vectors[~vectors.any(axis=1)] = 1
    identity = rng.integers(0, people, probes + gallery)
    identity[probes:][rng.random(gallery) < 0.3] = -100
    return vectors[:probes], vectors[probes:], identity[:probes], identity[probes:]


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_a_search_is_a_walk_down_the_sorted_row(seed):
    probes, gallery, who, whose = drawn(seed)
    found = look_up(probes, gallery, who, whose)
    scores = probes.astype(float) @ gallery.T.astype(float)
    for i, row in enumerate(scores):
        mates = np.flatnonzero(whose == who[i])
        assert found.mated[i] == (len(mates) > 0)
        rest = row[whose != who[i]]
        assert found.other[i] == (rest.max() if len(rest) else -np.inf)
        if not len(mates):
            assert (found.rank[i], found.score[i], found.precision[i]) == (len(gallery) + 1, -np.inf, 0)
            continue
        # Those who are no mates stand first among equals.
        order = sorted(range(len(gallery)), key=lambda j: (-row[j], whose[j] == who[i]))
        hits = [whose[j] == who[i] for j in order]
        assert found.rank[i] == hits.index(True) + 1
        assert found.score[i] == row[mates].max()
        assert found.precision[i] == pytest.approx(market_precision(hits))


def market_precision(hits):
    """As TinyFace's compute_AP walks: the trapezium between one place and the next, until all mates are there."""
    total, before, recall, precision, seen = sum(hits), 0.0, 0.0, 1.0, 0
    for place, hit in enumerate(hits, start=1):
        seen += hit
        now = seen / total
        before += (now - recall) * (precision + seen / place) / 2
        recall, precision = now, seen / place
    return before


def test_precision_by_hand():
    # One mate at rank 1; one at rank 3; two at ranks 1 and 4.
    found = average_precision(np.array([0, 1, 2, 2]), np.array([0, 2, 2, 0]), 4)
    np.testing.assert_allclose(found, [1, 1 / 6, ((1 + 1) / 2 + (1 / 3 + 2 / 4) / 2) / 2, 0])


def test_mates_are_all_pairs_of_an_identity():
    found = mates_of(np.array([5, 9, 5, 1]), np.array([1, 5, -100, 5, 1]))
    assert found.tolist() == [[0, 1], [0, 3], [2, 1], [2, 3], [3, 0], [3, 4]]
    assert mates_of(np.array([3]), np.array([1])).shape == (0, 2)


def test_nobody_is_identified_at_zero_fpir_below_the_best_stranger():
    found = searching.Search(
        mated=np.array([True, True, False]), rank=np.array([1, 1, 9]), score=np.array([0.9, 0.5, -np.inf]),
        other=np.array([0.1, 0.2, 0.6]), precision=np.ones(3),
    )  # fmt: skip
    hits = identified(found, [0, 1], "at_most")
    assert {key: value.tolist() for key, value in hits.items()} == {
        "tpir@fpir=0": [True, False], "tpir@fpir=1": [True, True],
    }  # fmt: skip
    assert identified(found._replace(mated=np.ones(3, bool)), [0.1], "at_most") == {}


def test_intervals_are_over_subjects():
    """Twenty hits of one subject and twenty misses of another: the interval is from none to all of them."""
    hits, subject = np.repeat([1.0, 0.0], 20), np.repeat([3, 8], 20)
    metrics, notes = shares({"a/rank1": hits}, np.ones(40), subject, 500, 0)
    assert metrics == {"a/rank1": 0.5, "a/rank1_low": 0, "a/rank1_high": 1}
    assert notes == {"a/rank1": "95 % interval 0.00 to 100.00"}
    many, _ = shares({"a/rank1": hits}, np.ones(40), np.arange(40), 500, 0)
    assert 0.3 < many["a/rank1_low"] < many["a/rank1_high"] < 0.7
    assert shares({"a/rank1": hits}, np.ones(40), subject, 0, 0) == ({"a/rank1": 0.5}, {})
