"""The class-standardised norm, against its definition image by image."""

import math

import numpy as np
import pytest

from facelab.quality.standardised import Standardiser, fit


def sample(seed=0):
    """Classes of 8, 3, 1 and no images, one of which has no spread."""
    rng = np.random.default_rng(seed)
    labels = np.array([0] * 8 + [1] * 3 + [2] + [4] * 6)
    norms = rng.uniform(5, 30, len(labels))
    norms[labels == 4] = 11.0
    order = rng.permutation(len(labels))
    return norms[order], labels[order], rng.normal(size=(5, 6))


def slow_statistics(norms, labels, smallest):
    population = math.sqrt(sum((n - norms.mean()) ** 2 for n in norms) / (len(norms) - 1))
    means, stds = {}, {}
    for label in set(labels.tolist()):
        own = norms[labels == label]
        means[label] = own.mean()
        spread = math.sqrt(((own - own.mean()) ** 2).sum() / (len(own) - 1)) if len(own) > 1 else 0
        stds[label] = spread if len(own) >= smallest and spread > 0 else population
    return means, stds, population


@pytest.mark.parametrize("smallest", [2, 4])
def test_training_images_are_standardised_by_their_own_class(smallest):
    norms, labels, centres = sample()
    means, stds, _ = slow_statistics(norms, labels, smallest)
    expected = [(n - means[y]) / stds[y] for n, y in zip(norms, labels.tolist(), strict=True)]
    made = fit(norms, labels, centres, smallest)
    np.testing.assert_allclose(made.own(norms, labels), expected, rtol=1e-12)
    large = made.own(norms[labels == 0], labels[labels == 0])
    assert large.mean() == pytest.approx(0, abs=1e-12)
    assert large.std(ddof=1) == pytest.approx(1)


@pytest.mark.parametrize("nearest", [1, 2, 9])
def test_an_unseen_face_takes_the_statistics_of_its_nearest_classes(nearest):
    norms, labels, centres = sample()
    means, stds, population = slow_statistics(norms, labels, 2)
    rng = np.random.default_rng(1)
    embeddings, lengths = rng.normal(size=(20, 6)), rng.uniform(1, 40, 20)
    embeddings[0] = -centres.sum(0) * 0
    expected = []
    for length, vector in zip(lengths, embeddings, strict=True):
        cosines = {
            y: vector @ centres[y] / np.linalg.norm(centres[y]) / max(np.linalg.norm(vector), 1e-9) for y in means
        }
        best = sorted(cosines, key=cosines.get, reverse=True)[:nearest]
        weights = {y: max(cosines[y], 0) for y in best}
        total = sum(weights.values())
        if total == 0:
            expected.append((length - norms.mean()) / population)
            continue
        mean = sum(weights[y] * means[y] for y in best) / total
        expected.append((length - mean) / math.sqrt(sum(weights[y] * stds[y] ** 2 for y in best) / total))
    np.testing.assert_allclose(fit(norms, labels, centres, 2).score(lengths, embeddings, nearest), expected, rtol=1e-5)


def test_blocks_change_nothing(monkeypatch):
    made = fit(*sample(), 2)
    vectors, lengths = np.random.default_rng(2).normal(size=(9, 6)), np.linspace(1, 9, 9)
    whole = made.score(lengths, vectors, 2)
    monkeypatch.setattr("facelab.quality.standardised.BLOCK", 8)
    np.testing.assert_allclose(made.score(lengths, vectors, 2), whole, rtol=1e-6)


def test_without_neighbours_it_is_the_populations():
    norms, labels, centres = sample()
    expected = (norms - norms.mean()) / norms.std(ddof=1)
    made = fit(norms, labels, centres, 2)
    np.testing.assert_allclose(made.score(norms, np.ones((len(norms), 6)), 0), expected, rtol=1e-12)


def test_it_is_kept(tmp_path):
    made = fit(*sample(), 3)
    again = Standardiser.load(made.save(tmp_path / "standardised.safetensors"))
    vectors, lengths = np.random.default_rng(2).normal(size=(9, 6)), np.linspace(1, 9, 9)
    np.testing.assert_array_equal(again.score(lengths, vectors, 2), made.score(lengths, vectors, 2))
    assert (again.smallest, again.mean, again.std) == (3, made.mean, made.std)
    assert [file.name for file in tmp_path.iterdir()] == ["standardised.safetensors"]


def test_what_makes_no_sense_is_refused(tmp_path):
    norms, labels, centres = sample()
    with pytest.raises(ValueError, match="smallest is 1"):
        fit(norms, labels, centres, 1)
    with pytest.raises(ValueError, match="same length"):
        fit(np.ones(3), np.zeros(3, int), centres, 2)
    with pytest.raises(ValueError, match="1 of 18 lengths"):
        fit(np.where(norms == norms[0], np.nan, norms), labels, centres, 2)
    made = fit(norms, labels, centres, 2)
    with pytest.raises(ValueError, match="another network's"):
        made.score(norms, np.ones((18, 4)), 1)
    with pytest.raises(ValueError, match="nearest is -1"):
        made.score(norms, np.ones((18, 6)), -1)
    with pytest.raises(FileNotFoundError, match="no such file"):
        Standardiser.load(tmp_path / "none")
    (tmp_path / "other").write_bytes(b"no")
    with pytest.raises(ValueError, match="other: not what"):
        Standardiser.load(tmp_path / "other")
