"""The largest impostor scores against all of them, sorted in float64: ties, rules, targets, going on after a kill."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from facelab.benchmark import impostors, products
from facelab.benchmark.comparisons import RULES, Comparisons
from facelab.benchmark.impostors import Tail, largest, needed
from facelab.benchmark.operating_points import allowed_false_accepts, tar_at_far
from facelab.benchmark.streaming import pair_scores, unit


def every(sides, comparisons, person, group, rule):
    """All impostor scores by a loop, descending, and their pairs in the order of images among equals."""
    single = comparisons.single
    pairs = np.array([
        (i, j)
        for i in range(len(person[0]))
        for j in range(i + 1 if single else 0, len(person[1]))
        if person[0][i] != person[1][j]
        and {"all": True, "same_group": group[0][i] == group[1][j], "cross_group": group[0][i] != group[1][j]}[rule]
    ], int).reshape(-1, 2)  # fmt: skip
    scores = pair_scores(*sides, pairs)
    order = np.argsort(-scores, kind="stable")
    return scores[order], pairs[order]


@st.composite
def works(draw):
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    sizes = draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    single, dim = draw(st.booleans()), draw(st.integers(1, 6))
    sides = [rng.normal(size=(size, dim)).astype(np.float32) for size in sizes]
    kind = draw(st.sampled_from(["random", "integers", "repeated", "same"]))
    if kind == "integers":
        sides = [np.rint(side) for side in sides]
    if kind == "repeated":
        sides = [side[rng.integers(0, max(1, len(side) // 4), len(side))] for side in sides]
    if kind == "same":
        sides = [np.ones_like(side) for side in sides]
    person = [rng.integers(0, 8, size) for size in sizes]
    group = [rng.integers(0, 3, size) for size in sizes]
    if single:
        sides, person, group = [sides[0]] * 2, [person[0]] * 2, [group[0]] * 2
    rule = draw(st.sampled_from(RULES))
    second = (None, None) if single else (person[1], group[1])
    return sides, Comparisons(person[0], second[0], rule, group[0], second[1]), person, group, rule


@settings(max_examples=100, deadline=None)
@given(works(), st.integers(0, 60), st.tuples(st.integers(1, 6), st.integers(1, 6)), st.sampled_from([1, 2, 128]))
def test_they_are_the_largest(work, count, tile, segment):
    sides, comparisons, *rest = work
    scores, pairs = every(sides, comparisons, *rest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "SEGMENT", segment)  # short stretches and a small store: everything happens often
        patch.setattr(impostors, "PIECE", max(4, segment))
        found = largest(sides[0], None if comparisons.single else sides[1], comparisons, count, tile=tile)
    assert found.comparisons == len(scores)
    shown = np.count_nonzero(scores >= scores[min(count, len(scores)) - 1]) if min(count, len(scores)) else 0
    np.testing.assert_array_equal(found.scores, scores[:shown])
    np.testing.assert_array_equal(np.stack([found.enrol, found.verify], axis=1), pairs[:shown])


@settings(max_examples=60, deadline=None)
@given(works(), st.sampled_from([0.0, 0.01, 0.1, 0.29, 0.5, 1.0]))
def test_thresholds_are_those_of_all_scores(work, fmr):
    sides, comparisons, *rest = work
    scores, _ = every(sides, comparisons, *rest)
    if not len(scores):
        return
    tail = largest(sides[0], None if comparisons.single else sides[1], comparisons, needed(fmr, len(scores)))
    threshold = tail.threshold(fmr)
    point = tar_at_far(np.zeros(1), scores, fmr, "at_most")
    assert threshold == point.threshold
    assert np.count_nonzero(scores >= threshold) <= allowed_false_accepts(fmr, len(scores))
    if threshold > -math.inf:
        assert tail.matches(threshold) / len(scores) == point.far
        lower = np.nextafter(threshold, -math.inf)  # the lowest: one step below there are too many
        assert np.count_nonzero(scores >= lower) > allowed_false_accepts(fmr, len(scores))


def faces(count, people, seed=0, dim=16):
    rng = np.random.default_rng(seed)
    person = rng.integers(0, people, count)
    centres = rng.normal(size=(people, dim))
    return unit(centres[person] + rng.normal(size=(count, dim))), person


def test_targets_below_one_impostor_are_zero_false_matches():
    embeddings, person = faces(40, 10)
    comparisons = Comparisons(person, None)
    total = comparisons.impostors()
    assert needed(0.5 / total, total) == 1
    tail = largest(embeddings, None, comparisons, 1)
    assert tail.matches(tail.threshold(0.5 / total)) == 0
    assert tail.threshold(0.0) == tail.threshold(0.5 / total) == np.nextafter(tail.scores[0], np.inf)
    with pytest.raises(ValueError, match=r"fmr=0\.1 needs the .* largest scores; 1 were kept"):
        tail.threshold(0.1)


def test_a_monotone_map_and_a_permutation_change_nobody():
    """Twice the embeddings is four times every score: another threshold, the same false matches."""
    embeddings, person = faces(60, 12)
    first = largest(embeddings, None, Comparisons(person, None), 100)
    scaled = largest(2 * embeddings, None, Comparisons(person, None), 100)
    np.testing.assert_array_equal(4 * first.scores, scaled.scores)
    np.testing.assert_array_equal(first.enrol, scaled.enrol)
    order = np.random.default_rng(1).permutation(60)
    moved = largest(embeddings[order], None, Comparisons(person[order], None), 100)
    np.testing.assert_array_equal(first.scores, moved.scores)
    pairs = {frozenset(pair) for pair in zip(order[moved.enrol], order[moved.verify], strict=True)}
    assert pairs == {frozenset(pair) for pair in zip(first.enrol, first.verify, strict=True)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("tile", [(64, 256), None])
def test_a_gpu_finds_the_same(tile):
    embeddings, person = faces(2000, 300)
    other, those = faces(1500, 300, seed=1)
    for second, comparisons in ((other, Comparisons(person, those)), (None, Comparisons(person, None))):
        found = largest(embeddings, second, comparisons, 5000, device="cuda", tile=tile)
        expected = largest(embeddings, second, comparisons, 5000)
        np.testing.assert_array_equal(found.scores, expected.scores)
        np.testing.assert_array_equal(found.enrol, expected.enrol)
        np.testing.assert_array_equal(found.verify, expected.verify)


class Killed(Exception):
    pass


def test_killed_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(impostors, "PIECE", 256)
    embeddings, person = faces(300, 30)
    other, those = faces(200, 30, seed=1)
    comparisons = Comparisons(person, those)
    plain = largest(embeddings, other, comparisons, 500, tile=(32, 64))
    state, told = tmp_path / "state.npz", []

    def progress(done, total):
        told.append((done, total))
        if len(told) % 7 == 0:
            raise Killed

    settings = {"tile": (32, 64), "state": state, "save_every": 0.0}
    for _ in range(100):
        try:
            found = largest(embeddings, other, comparisons, 500, progress=progress, **settings)
            break
        except Killed:
            assert state.exists()
    np.testing.assert_array_equal(found.scores, plain.scores)
    np.testing.assert_array_equal(found.enrol, plain.enrol)
    np.testing.assert_array_equal(found.verify, plain.verify)
    tiles = len(comparisons.tiles(32, 64))
    assert len(told) == tiles > 14, "no tile twice"
    assert told[-1][0] == told[-1][1] == 60_000
    assert not state.exists()


def test_a_state_of_something_else_is_refused(tmp_path):
    embeddings, person = faces(100, 10)
    state = tmp_path / "state.npz"

    def stop(*_):
        raise Killed

    def begin(images, people, count=10, progress=None):
        comparisons = Comparisons(people, None)
        return largest(images, None, comparisons, count, tile=(16, 16), state=state, save_every=0, progress=progress)

    with pytest.raises(Killed):
        begin(embeddings, person, progress=stop)
    changed = embeddings.copy()
    changed[7, 3] += 1e-6
    for images, people, count in (
        (changed, person, 10),
        (embeddings, person[::-1].copy(), 10),
        (embeddings, person, 9),
    ):
        with pytest.raises(ValueError, match="is of other embeddings or options; delete it to begin anew"):
            begin(images, people, count)
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a state of this work"):
        begin(embeddings, person)


def test_nearly_one_embedding_for_everybody(monkeypatch):
    monkeypatch.setattr(impostors, "PIECE", 256)
    embeddings, person = np.ones((100, 4), np.float32), np.arange(100)
    assert len(largest(embeddings, None, Comparisons(person, None), 5, tile=(16, 16)).scores) == 4950
    monkeypatch.setattr(impostors, "MOST", 1000)
    with pytest.raises(ValueError, match="nearly the same embedding to everybody"):
        largest(embeddings, None, Comparisons(person, None), 5, tile=(16, 16))


def test_what_is_refused():
    embeddings, person = faces(20, 4)
    comparisons = Comparisons(person, None)
    with pytest.raises(ValueError, match="19 and 19 embeddings for 20 enrolment and 20 verification images"):
        largest(embeddings[:19], None, comparisons, 1)
    embeddings[3, 2] = np.inf
    with pytest.raises(ValueError, match="enrol: 1 of 20 embeddings are not finite, the first is row 3"):
        largest(embeddings, None, comparisons, 1)
    with pytest.raises(ValueError, match=r"fmr=0\.01 of 10,000,000,000 impostor comparisons asks for the 100,000,001"):
        needed(0.01, 10**10)
    assert needed(1e-4, 10**10) == 1_000_001
    assert Tail(np.array([0.5]), np.array([0]), np.array([1]), 1).threshold(1.0) == -math.inf
