"""QMagFace: fit and similarity against the numbers of its authors' code, and by trying every threshold."""

from pathlib import Path

import numpy as np
import pytest

from facelab.benchmark.quality_aware import QualityAware
from facelab.quality.qmagface import WEIGHTS, cosines_and_quality, fit

GOLDEN = (
    Path(__file__).parents[1] / "golden" / "protocols_qmagface.npz"
)  # its fit has false match rates of 1e-3 to 1e-1
RANGE = {"lowest": 1e-5, "highest": 1e-2}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return {name.removeprefix("qmagface/"): file[name] for name in file.files}


def test_the_fit_is_the_authors(golden):
    similarity, quality = cosines_and_quality(golden["emb"], golden["pairs"])
    found = fit(similarity, quality, golden["y"] == 1, lowest=1e-3, highest=1e-1, scale="sigmoid")
    np.testing.assert_allclose(found.omegas, golden["omegas"], rtol=1e-12)
    np.testing.assert_allclose(found.thresholds, golden["thresholds"], rtol=1e-12)
    assert found.alpha == pytest.approx(golden["alpha_fit"].item(), rel=1e-9)
    assert found.beta == pytest.approx(golden["beta_fit"].item(), rel=1e-9)


def test_the_similarity_is_the_authors(golden):
    """With the published numbers."""
    similarity, quality = cosines_and_quality(golden["emb"], golden["pairs"][:2000])
    published = QualityAware({"alpha": 0.077428, "beta": 0.125926}, "x")
    found = similarity + published.added(similarity, quality)
    np.testing.assert_allclose(found, golden["sim_fixed_first2000"], atol=1e-12)


def test_the_fit_by_trying_every_threshold():
    """On the scale of cosines, with scores that repeat."""
    rng = np.random.default_rng(0)
    same = rng.random(500) < 0.4
    similarity, quality = (rng.normal(0.1, 0.2, 500) + 0.3 * same).round(2), rng.integers(10, 40, 500).astype(float)
    largest = 0.5 / quality.max()
    omegas, thresholds = [], []
    for rate in np.logspace(-4, -1, 50):
        best = (2.0, 0, 0)
        for omega in np.linspace(-largest, largest, WEIGHTS):
            scores = similarity + omega * quality
            points = [
                ((scores[same] < t).mean(), omega, t)
                for t in np.unique(scores[same]) if (scores[~same] >= t).mean() < rate
            ]  # fmt: skip
            point = min(points, key=lambda point: (point[0], -point[2]))
            best = point if point[0] < best[0] else best
        omegas.append(best[1])
        thresholds.append(best[2])
    found = fit(similarity, quality, same, lowest=1e-4, highest=0.1, scale="cosine")
    np.testing.assert_allclose(found.omegas, omegas)
    np.testing.assert_allclose(found.thresholds, thresholds)
    beta, intercept = np.polyfit(thresholds, omegas, 1)
    assert (found.alpha, found.beta) == (pytest.approx(-intercept), pytest.approx(beta))


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match="0 genuine of 3 pairs"):
        fit(np.ones(3), np.ones(3), np.zeros(3, bool), **RANGE, scale="cosine")
    with pytest.raises(ValueError, match="scale is 'none': give one of sigmoid, cosine"):
        fit(np.ones(2), np.ones(2), np.array([True, False]), **RANGE, scale="none")
    with pytest.raises(ValueError, match=r"false match rates from 0\.1 to 0\.01"):
        fit(np.ones(2), np.ones(2), np.array([True, False]), lowest=0.1, highest=0.01, scale="cosine")
    with pytest.raises(ValueError, match="1 of 2 embeddings are zero or not finite, the first is that of image 1"):
        cosines_and_quality(np.array([[1.0, 0], [0, 0]]), np.array([[0, 1]]))
    for wrong in ({"alpha": np.nan, "beta": 0.0}, {"alpha": 0.0, "beta": np.inf}):
        with pytest.raises(ValueError, match=r"benchmark\.quality has alpha"):
            QualityAware(wrong, "benchmark.quality")
