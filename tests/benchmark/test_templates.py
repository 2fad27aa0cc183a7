"""Pooling and scores against loops in float64, as public scripts write them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelab.benchmark import operating_points as op
from facelab.benchmark import tallies, templates
from facelab.benchmark.templates import Pooling, lengths_of, places, template_scores, units

OPTIONS = list(itertools.product([True, False], [True, False], ["media", "images"]))


def pooled(embeddings, template, media, detector, norm, weigh, pooling):
    """A loop over templates and their media, in float64."""
    rows = embeddings.astype(np.float64)
    if not norm:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    if weigh:
        rows = rows * detector[:, None]
    found = []
    for one in np.unique(template):
        own, of = rows[template == one], media[template == one]
        parts = [own[of == m].mean(axis=0) for m in np.unique(of)] if pooling == "media" else [own.mean(axis=0)]
        total = np.sum(parts, axis=0)
        found.append(total / np.linalg.norm(total))
    return np.array(found)


def case(seed, count=60, dim=9):
    rng = np.random.default_rng(seed)
    template, media = rng.choice([3, 7, 20, 21, 400], count), rng.integers(0, 4, count)
    scale = rng.uniform(0.1, 30, (count, 1))
    return (rng.normal(size=(count, dim)) * scale).astype(np.float32), template, media, rng.uniform(0.2, 1, count)


def named(i):
    return f"{i}.jpg"


@pytest.mark.parametrize("rows", [1, 4, 512])
@pytest.mark.parametrize(("norm", "weigh", "pooling"), OPTIONS)
def test_pooling_is_the_loop_over_media(monkeypatch, norm, weigh, pooling, rows):
    """Templates begin and end within blocks and across them."""
    monkeypatch.setattr(templates, "ROWS", rows)
    embeddings, template, media, detector = case(rows)
    found = Pooling(norm, weigh, pooling)(embeddings, template, media, detector, "set", named)
    assert found.features.dtype == np.float32
    assert found.ids.tolist() == np.unique(template).tolist()
    expected = pooled(embeddings, template, media, detector, norm, weigh, pooling)
    np.testing.assert_allclose(found.features, expected, atol=1e-6)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from(OPTIONS))
def test_the_order_of_images_does_not_matter(seed, options):
    embeddings, template, media, detector = case(seed, 25)
    order = np.random.default_rng(seed).permutation(25)
    pooling = Pooling(*options)
    one = pooling(embeddings, template, media, detector, "set", named)
    other = pooling(embeddings[order], template[order], media[order], detector[order], "set", named)
    assert one.ids.tolist() == other.ids.tolist()
    np.testing.assert_allclose(one.features, other.features, atol=2e-7)


def test_options_differ_where_they_should():
    """Two frames of one video and a still image, and a length of 3: every option gives another direction."""
    embeddings = np.array([[1, 0], [3, 0], [0, 1]], np.float32)
    template, media, detector = np.zeros(3, int), np.array([5, 5, 6]), np.array([1.0, 1.0, 0.5])
    expected = {
        (True, False, "media"): (2, 1), (True, False, "images"): (4, 1), (False, False, "media"): (1, 1),
        (False, False, "images"): (2, 1), (True, True, "media"): (2, 0.5), (False, True, "images"): (2, 0.5),
    }  # fmt: skip
    for options, direction in expected.items():
        found = Pooling(*options)(embeddings, template, media, detector, "set", named).features[0]
        np.testing.assert_allclose(found, np.array(direction) / np.hypot(*direction), rtol=1e-6)
    stamps = [tuple(Pooling(*options).stamp.values()) for options in OPTIONS]
    assert len(set(stamps)) == len(OPTIONS)


def test_embeddings_that_say_nothing_are_counted_and_named():
    embeddings, template, media, detector = case(0)
    pooling = Pooling(True, True, "media")
    for bad, words in ((np.nan, "not finite"), (np.inf, "not finite"), (0, "zero")):
        broken = embeddings.copy()
        broken[[5, 17]] = bad
        with pytest.raises(ValueError, match=rf"^set: 2 of 60 embeddings are {words}, the first is that of 5\.jpg"):
            pooling(broken, template, media, detector, "set", named)
    with pytest.raises(ValueError, match=r"embeddings of shape \(59, 9\) for 60 images"):
        pooling(embeddings[1:], template, media, detector, "set", named)
    with pytest.raises(ValueError, match="1 of 5 templates add up to nothing, the first is template 20;"):
        pooling(embeddings, template, media, np.where(template == 20, 0, detector), "set", named)
    opposite = np.array([[1, 2], [-1, -2]], np.float32)
    with pytest.raises(ValueError, match="template 9"):
        pooling(opposite, np.array([9, 9]), np.array([0, 0]), np.ones(2), "set", named)
    with pytest.raises(ValueError, match=r"benchmark\.pooling is 'max': give one of media, images"):
        Pooling(True, True, "max")


def test_units_are_of_length_one_and_lengths_are_of_float64():
    embeddings, *_ = case(3)
    np.testing.assert_allclose(
        lengths_of(embeddings, 60, "set", named), np.linalg.norm(embeddings.astype(float), axis=1)
    )
    found = units(embeddings, 60, "set", named)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found.astype(float), axis=1), 1, atol=1e-6)


def test_places_tell_what_is_not_there():
    assert places(np.array([2, 5, 9]), np.array([9, 2, 3, 10, 0, 5])).tolist() == [2, 0, -1, -1, -1, 1]


@pytest.mark.parametrize("worth", [0, 10**9])  # gathered, or picked from products
@pytest.mark.parametrize("entries", [1, 30, 2**22])
def test_scores_are_the_cosines_of_float64(monkeypatch, worth, entries):
    monkeypatch.setattr(templates, "WORTH", worth)
    monkeypatch.setattr(templates, "ENTRIES", entries)
    monkeypatch.setattr(templates, "GATHERED", 7)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 64)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    pairs = np.stack([rng.integers(0, 13, 500), rng.integers(9, 40, 500)], axis=1).astype(np.int32)
    found = template_scores(features, pairs)
    one, other = features.astype(np.float64)[pairs.T]
    np.testing.assert_allclose(found, (one * other).sum(axis=1), atol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize("seed", range(5))
def test_who_is_joined_is_one(seed):
    rng = np.random.default_rng(seed)
    edges = rng.integers(0, 30, (22, 2))
    group = list(range(30))
    for a, b in edges:
        low, high = sorted((group[a], group[b]))
        group = [low if one == high else one for one in group]
    assert tallies.joined(30, edges).tolist() == group


@pytest.mark.parametrize("seed", range(3))
def test_counts_of_subjects_are_plain_counts(seed):
    rng = np.random.default_rng(seed)
    ids = np.array([4, 6, 7, 11, 15, 20])
    subject = np.array([4, 4, 7, 7, 15, 15])  # the least template of each
    pairs = np.array([(a, b) for a in range(6) for b in range(6) if a < b])[rng.permutation(15)]
    same = subject[pairs[:, 0]] == subject[pairs[:, 1]]
    scores = np.round(rng.normal(size=15), 1).astype(np.float32)
    points = op.tars_at_fars(scores[same], scores[~same], [0.1, 0.4], "at_most")
    thresholds = np.array([point.threshold for point in points])
    found = tallies.by_subject(ids, pairs, same, scores, thresholds)
    assert found["subject"].tolist() == [4, 7, 15]
    for s, one in enumerate((4, 7, 15)):
        left = subject[pairs[:, 0]] == one
        assert found["subject_genuine"][s] == (left & same).sum()
        assert found["subject_impostor"][s] == (left & ~same).sum()
        for p, threshold in enumerate(thresholds):
            assert found["subject_accepted"][s, p] == (left & same & (scores.astype(float) >= threshold)).sum()
            assert found["subject_false"][s, p] == (left & ~same & (scores.astype(float) >= threshold)).sum()
    for p, point in enumerate(points):
        assert found["subject_false"][:, p].sum() / (~same).sum() == point.far
        assert found["subject_accepted"][:, p].sum() / same.sum() == point.tar


def test_the_tail_and_the_quantiles(monkeypatch):
    monkeypatch.setattr(tallies, "TAIL", 4)
    found = tallies.summary(np.arange(100, dtype=np.float32))
    assert found["impostor_tail"].tolist() == [99, 98, 97, 96]
    assert (found["impostor_sample"][[0, -1]] == [0, 99]).all()


FARS = [0, 1e-6, 0.003, 1 / 300, 0.01, 0.1, 0.5, 1]


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from(["at_most", "nearest"]), st.sampled_from([1, 3, 1000]))
def test_many_targets_at_once_are_each_by_itself_and_monotone_maps_change_nothing(seed, rule, grid):
    rng = np.random.default_rng(seed)
    genuine, impostor = (np.round(rng.normal(m, 1, n) * grid) / grid for m, n in ((1, 40), (0, 300)))
    genuine, impostor = genuine.astype(np.float32), impostor.astype(np.float32)
    found = op.tars_at_fars(genuine, impostor, FARS, rule)
    assert found == [op.tar_at_far(genuine, impostor, far, rule) for far in FARS]
    order = rng.permutation(300)
    assert op.tars_at_fars(genuine, impostor[order], FARS, rule) == found
    bent = op.tars_at_fars(np.exp(genuine * 3), np.exp(impostor * 3), FARS, rule)
    assert [point[1:] for point in bent] == [point[1:] for point in found]
    for far, point in zip(FARS, found, strict=True):
        assert rule == "nearest" or point.far <= far
        assert point.far == (impostor.astype(float) >= point.threshold).mean()
        assert point.tar == (genuine.astype(float) >= point.threshold).mean()
