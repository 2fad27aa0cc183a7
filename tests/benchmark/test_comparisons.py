"""Who is compared with whom, against loops over every pair."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelab.benchmark.comparisons import RULES, Comparisons


def allowed(rule, one, other):
    return {"all": True, "same_group": one == other, "cross_group": one != other}[rule]


@st.composite
def lists(draw):
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    sizes = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    people, groups = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    single = draw(st.booleans())
    person = [rng.integers(0, people, size) for size in sizes]
    group = [rng.integers(0, groups, size) for size in sizes]
    if single:
        person[1], group[1] = person[0], group[0]
    other = [rng.integers(0, 3, len(part)) for part in person]  # groups of another kind, to report on
    if single:
        other[1] = other[0]
    return draw(st.sampled_from(RULES)), single, person, group, other


@settings(max_examples=150, deadline=None)
@given(lists(), st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_every_comparison_once(drawn, tile):
    rule, single, person, group, other = drawn
    made = Comparisons(person[0], None if single else person[1], rule, group[0], None if single else group[1])
    pairs = [(i, j) for i in range(len(person[0])) for j in range(i + 1 if single else 0, len(person[1]))]
    genuine = [(i, j) for i, j in pairs if person[0][i] == person[1][j]]
    impostor = [(i, j) for i, j in pairs if person[0][i] != person[1][j] and allowed(rule, group[0][i], group[1][j])]
    assert sorted(map(tuple, made.genuine().tolist())) == genuine
    assert made.impostors() == len(impostor)
    cells = np.zeros((3, 3), np.int64)
    for i, j in impostor:
        cells[other[0][i], other[1][j]] += 1
        if single and other[0][i] != other[1][j]:
            cells[other[1][j], other[0][i]] += 1
    np.testing.assert_array_equal(made.count(*other, 3), cells)
    np.testing.assert_array_equal(made.cells(np.array(impostor, int).reshape(-1, 2), *other, 3), cells)
    seen = []
    for top, bottom, left, right in made.tiles(*tile):
        assert bottom - top <= tile[0]
        assert right - left <= tile[1]
        inside = np.stack(np.meshgrid(np.arange(top, bottom), np.arange(left, right), indexing="ij"), -1).reshape(-1, 2)
        inside = inside[made.impostor(*inside.T)]
        found = np.stack([made.rows[0][inside[:, 0]], made.rows[1][inside[:, 1]]], axis=1)
        seen += map(tuple, (np.sort(found, axis=1) if single else found).tolist())
    assert sorted(seen) == impostor


def test_what_is_refused():
    with pytest.raises(ValueError, match="impostors='some': choose all, same_group or cross_group"):
        Comparisons(np.arange(3), None, "some")
    with pytest.raises(ValueError, match="impostors=same_group needs the groups"):
        Comparisons(np.arange(3), None, "same_group")
