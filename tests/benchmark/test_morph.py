"""Rates of morphs by loops over every morph; detection errors by hand and by counting at every threshold."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelab.benchmark import morph as module
from facelab.benchmark.morph import apcer_at_bpcer, bpcer_at_apcer, detection_errors, mmpmr, read_detection


def by_loop(morph, contributor, scores, threshold, rule):
    found = []
    for one in np.unique(morph):
        shares = []
        for person in np.unique(contributor[morph == one]):
            shares.append(np.mean(scores[(morph == one) & (contributor == person)] >= threshold))
        if rule == "product":
            found.append(np.prod(shares))
        else:
            found.append((min if rule == "all" else max)(shares) > 0)
    return np.mean(found)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from(module.RULES))
def test_every_rule_against_loops(seed, count, rule):
    rng = np.random.default_rng(seed)
    morph, contributor = rng.integers(0, 5, count), rng.integers(0, 4, count)
    scores = np.rint(rng.normal(size=count) * 2) / 2  # ties with the thresholds
    thresholds = np.array([-1.0, 0.0, 0.5, 3.0])
    found = mmpmr(morph, contributor, scores, thresholds, rule)
    np.testing.assert_allclose(found, [by_loop(morph, contributor, scores, t, rule) for t in thresholds])
    order = rng.permutation(count)
    np.testing.assert_array_equal(found, mmpmr(morph[order], contributor[order], scores[order], thresholds, rule))


def test_the_rates_of_the_paper_by_hand():
    """Two morphs of two people: the first is accepted as both, the second as one; one of its probes is rejected."""
    morph = np.array([0, 0, 1, 1, 1])
    contributor = np.array([7, 8, 7, 9, 9])
    scores = np.array([0.6, 0.5, 0.9, 0.1, 0.4])
    assert mmpmr(morph, contributor, scores, [0.5], "all").tolist() == [0.5]
    assert mmpmr(morph, contributor, scores, [0.4], "all").tolist() == [1.0]
    assert mmpmr(morph, contributor, scores, [0.4], "product").tolist() == [0.75]
    assert mmpmr(morph, contributor, scores, [0.5], "either").tolist() == [1.0]
    assert mmpmr(morph, contributor, np.full(5, -np.inf), [-1.0], "either").tolist() == [0.0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.01, 0.1, 0.3, 1.0]))
def test_operating_points_are_the_best_of_all_thresholds(seed, target):
    rng = np.random.default_rng(seed)
    attack, bona_fide = (np.rint(rng.normal(shift, 1, 15) * 3) / 3 for shift in (0.5, 0))
    every = np.unique([*attack, *bona_fide, np.inf, -np.inf, *np.nextafter([*attack, *bona_fide], np.inf)])
    apcer = np.array([np.mean(attack < t) for t in every])
    bpcer = np.array([np.mean(bona_fide >= t) for t in every])
    assert apcer_at_bpcer(attack, bona_fide, target)[1] == apcer[bpcer <= target].min()
    assert bpcer_at_apcer(attack, bona_fide, target)[1] == bpcer[apcer <= target].min()


def test_the_worst_kind_counts():
    scores = np.array([3.0, 4, 1, 2, 0, 1.5, 0.5, 0.2])
    attack = np.array([1, 1, 1, 1, 0, 0, 0, 0], bool)
    kind = np.array(["glasses", "glasses", "warp", "warp", "", "", "", ""])
    found = detection_errors(scores, attack, kind)
    assert found["glasses/d_eer"] == 0
    assert found["d_eer"] == found["warp/d_eer"] > 0
    assert (
        found["apcer@bpcer=1e-2"] == 0.5
    )  # no bona fide image rejected: above 1.5, half of the warped ones are missed
    assert found["bpcer@apcer=1e-2"] == 0.25
    assert "warp/d_eer" not in detection_errors(scores, attack)
    with pytest.raises(ValueError, match="4 attacks and 0 bona fide"):
        detection_errors(scores[:4], attack[:4])
    with pytest.raises(ValueError, match="1 of 8 detection scores are not finite"):
        detection_errors(np.where(scores == 4, np.nan, scores), attack)


def test_a_file_of_scores(tmp_path, monkeypatch, capsys):
    file = tmp_path / "scores.csv"
    file.write_text("score,label\n0.9,morph\n0.8,attack\n0.1,bona_fide\n0.2,bona_fide\n")
    scores, attack, kind = read_detection(file)
    assert attack.tolist() == [True, True, False, False]
    assert scores.tolist() == [0.9, 0.8, 0.1, 0.2]
    assert set(kind) == {"attack"}
    monkeypatch.setattr(sys, "argv", ["morph", str(file)])
    module.main()
    assert "d_eer                            0.00 %" in capsys.readouterr().out
    file.write_text("score,label\nhigh,morph\n0.8,real\n0.1,bona_fide\n")
    with pytest.raises(ValueError, match="lines 2, 3 have no number as score, or another label"):
        read_detection(file)
    with pytest.raises(SystemExit, match=r"error: .*lines 2, 3"):
        module.main()
    file.write_text("value,label\n")
    with pytest.raises(ValueError, match="must name the columns score and label, it names value, label"):
        read_detection(file)
    with pytest.raises(FileNotFoundError, match="no such file of scores"):
        read_detection(tmp_path / "none.csv")


def test_what_is_refused():
    with pytest.raises(ValueError, match="morph_rule='any': choose all"):
        mmpmr([0], [0], [0.5], [0.5], "any")
    with pytest.raises(ValueError, match="no comparison of a morph"):
        mmpmr([], [], [], [0.5], "all")
    with pytest.raises(ValueError, match="1 of 1 scores of morphs are NaN"):
        mmpmr([0], [0], [np.nan], [0.5], "all")
