"""Streaming search against a score matrix in float64: the same rows, ranks and ties, whatever the blocks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from facelab.benchmark import products, streaming
from facelab.benchmark.streaming import pair_scores, rank_mates, rank_scores, top_k, unit


def matrix(probes, gallery):
    """Every score, in float64 and in the order of summation of `pair_scores`."""
    every = np.stack(np.meshgrid(np.arange(len(probes)), np.arange(len(gallery)), indexing="ij"), axis=-1)
    return pair_scores(probes, gallery, every.reshape(-1, 2)).reshape(len(probes), len(gallery))


def best_of(scores, k):
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(scores, order, axis=1)
    return found, np.where(np.isneginf(found), -1, order)


@st.composite
def searches(draw):
    """Embeddings with repeated rows, or of few integers: ties everywhere; or anything at all."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    count, size, dim = draw(st.integers(1, 9)), draw(st.integers(1, 40)), draw(st.integers(1, 6))
    kind = draw(st.sampled_from(["random", "integers", "repeated", "same"]))
    probes, gallery = rng.normal(size=(count, dim)), rng.normal(size=(size, dim))
    if kind == "integers":
        probes, gallery = np.rint(probes), np.rint(gallery)
    if kind == "repeated":
        gallery = gallery[rng.integers(0, max(1, size // 4), size)]
    if kind == "same":
        gallery = gallery[np.zeros(size, int)]
    tile = draw(st.tuples(st.integers(1, 5), st.integers(1, 17)))
    mates = np.argwhere(rng.random((count, size)) < draw(st.sampled_from([0, 0.1, 0.5])))
    return probes.astype(np.float32), gallery.astype(np.float32), mates[rng.permutation(len(mates))], tile


@settings(max_examples=60, deadline=None)
@given(searches(), st.integers(1, 8), st.booleans())
def test_top_k_is_that_of_a_sorted_matrix(search, k, spares):
    probes, gallery, excluded, tile = search
    scores = matrix(probes, gallery)
    scores[tuple(excluded.T)] = -np.inf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "SPARE", 2 if spares else 0)
        patch.setattr(products, "SEGMENT", 4 if spares else 128)
        found = top_k(probes, gallery, k, excluded=excluded, tile=tile)
    shown = min(k, len(gallery))
    expected = best_of(scores, k)
    np.testing.assert_array_equal(found.scores[:, :shown], expected[0])
    np.testing.assert_array_equal(found.rows[:, :shown], expected[1])
    assert (found.rows[:, shown:] == -1).all()
    assert np.isneginf(found.scores[:, shown:]).all()


@settings(max_examples=60, deadline=None)
@given(searches())
def test_ranks_are_those_of_a_sorted_matrix(search):
    probes, gallery, mates, tile = search
    scores = matrix(probes, gallery)
    found = rank_mates(probes, gallery, mates, tile=tile)
    np.testing.assert_array_equal(found.scores, scores[tuple(mates.T)])
    others = scores.copy()
    others[tuple(mates.T)] = -np.inf
    above = [(others[probe] >= scores[probe, row]).sum() for probe, row in mates]
    np.testing.assert_array_equal(found.above, above)
    np.testing.assert_array_equal(found.other, others.max(axis=1))
    np.testing.assert_array_equal(found.other_row, best_of(others, 1)[1][:, 0])


def test_scores_of_mates_elsewhere():
    rng = np.random.default_rng(1)
    probes, gallery = (unit(rng.normal(size=(count, 8))) for count in (7, 50))
    who, scores = np.array([3, 0, 3, 6]), np.array([0.2, -1.0, 2.0, 0.5])
    found = rank_scores(probes, gallery, who, scores, tile=(4, 16))
    np.testing.assert_array_equal(found.above, (matrix(probes, gallery)[who] >= scores[:, None]).sum(axis=1))
    assert found.above[1] > found.above[2] == 0
    with pytest.raises(ValueError, match="each score has a probe"):
        rank_scores(probes, gallery, who + 1, scores)


def test_float32_decides_nothing():
    """Differences of 1e-10, which no float32 product can show, order the rows."""
    rng = np.random.default_rng(2)
    probe = unit(rng.normal(size=(1, 64)))
    gallery = np.repeat(unit(rng.normal(size=(1, 64))), 200, axis=0)
    gallery[:, 0] += (rng.permutation(200) * 1e-7).astype(np.float32)
    scores = matrix(probe, gallery)
    assert np.ptp(scores) < 1e-4
    found = top_k(probe, gallery, 5, tile=(1, 64))
    np.testing.assert_array_equal(found.rows, best_of(scores, 5)[1])
    ranks = rank_mates(probe, gallery, np.array([[0, 77]]), tile=(1, 64))
    assert ranks.above[0] == (np.delete(scores[0], 77) >= scores[0, 77]).sum()


def test_blocks_and_types_change_nothing(tmp_path):
    rng = np.random.default_rng(3)
    probes, gallery = unit(rng.normal(size=(30, 16))), unit(rng.normal(size=(300, 16)))
    whole = top_k(probes, gallery, 4)
    told = []
    blocks = top_k(probes, gallery, 4, tile=(7, 31), progress=lambda *numbers: told.append(numbers))
    np.testing.assert_array_equal(whole.rows, blocks.rows)
    np.testing.assert_array_equal(whole.scores, blocks.scores)
    assert told[-1] == (9000, 9000)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    file = np.memmap(tmp_path / "gallery", np.float32, "w+", shape=gallery.shape)
    file[:] = gallery
    file.flush()
    mapped = np.memmap(tmp_path / "gallery", np.float32, "r", shape=gallery.shape)
    np.testing.assert_array_equal(top_k(probes, mapped, 4).rows, whole.rows)
    half = gallery.astype(np.float16)
    np.testing.assert_array_equal(top_k(probes, half, 4).rows, top_k(probes, half.astype(np.float32), 4).rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_same():
    rng = np.random.default_rng(6)
    probes, gallery = unit(rng.normal(size=(50, 64))), unit(rng.normal(size=(3000, 64)))
    gallery[1500:1600] = gallery[:100]
    mates = np.stack([np.arange(50), np.arange(50) * 7], axis=1)
    for tile in ((16, 512), None):
        for found, expected in (
            (top_k(probes, gallery, 9, device="cuda", tile=tile), top_k(probes, gallery, 9)),
            (rank_mates(probes, gallery, mates, device="cuda", tile=tile), rank_mates(probes, gallery, mates)),
        ):
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)


def test_precision_is_put_back():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with products.full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_rounding_is_a_bound():
    rng = np.random.default_rng(4)
    one, other = unit(rng.normal(size=(100, 512))), unit(rng.normal(size=(100, 512)))
    assert np.abs(one @ other.T - matrix(one, other)).max() < products.rounding(512, 1.0, 1.0) < 3.2e-5


def test_what_is_refused():
    probes, gallery = np.ones((2, 4), np.float32), np.ones((5, 4), np.float32)
    gallery[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"^gallery: 1 of 5 embeddings are not finite, the first is row 3;"):
        top_k(probes, gallery, 1)
    with pytest.raises(ValueError, match="4 numbers each, the gallery 3"):
        top_k(probes, np.ones((5, 3), np.float32), 1)
    with pytest.raises(ValueError, match="at least one neighbour"):
        top_k(probes, np.ones((5, 4), np.float32), 0)
    with pytest.raises(ValueError, match="1 pairs name rows that are not there"):
        rank_mates(probes, np.ones((5, 4), np.float32), np.array([[0, 5]]))
    with pytest.raises(ValueError, match=r"of shape \(2,\) and type int"):
        top_k(np.array([1, 2]), np.ones((5, 4), np.float32), 1)


def test_nobody_to_find():
    empty = np.empty((0, 4), np.float32)
    found = top_k(np.ones((2, 4), np.float32), empty, 3)
    assert found.rows.tolist() == [[-1] * 3] * 2
    assert top_k(empty, np.ones((2, 4), np.float32), 3).rows.shape == (0, 3)
