"""Quantiles and densities out of histograms, against numpy on the values themselves."""

import numpy as np
import pytest

from facelab.report.spread import Spread, quantiles

EDGES = np.linspace(0, 10, 201)
SHARES = (0.002, 0.1, 0.5, 0.9, 1.0)


def histogram(values):
    return np.histogram(values, EDGES)[0]


def test_quantiles_are_numpys_within_a_bin():
    values = np.random.default_rng(0).normal([[3], [6]], [[0.2], [1]], (2, 30_000)).clip(0, 10)
    found = quantiles(np.stack([histogram(row) for row in values]), EDGES, SHARES)
    assert found.shape == (2, 5)
    np.testing.assert_allclose(found, np.quantile(values, SHARES, axis=1).T, atol=0.05)


def test_quantiles_of_few_values_never_lie_in_an_empty_bin():
    counts = np.array([[0, 2, 0, 0, 0, 2, 0], [0, 0, 0, 0, 0, 0, 0]])
    found = quantiles(counts, np.arange(8.0), (0.0, 0.25, 0.5, 0.75, 1.0))
    np.testing.assert_allclose(found[0], [1, 1.5, 2, 5.5, 6])
    assert np.isnan(found[1]).all()


def test_the_bin_without_end_is_its_beginning():
    found = quantiles(np.array([[1, 0, 3]]), np.array([0, 1, 2, np.inf]), (0.5, 1.0))
    np.testing.assert_array_equal(found, [[2, 2]])


@pytest.mark.parametrize("number", [10, 700, 100_000])
def test_density_adds_up_and_is_smooth_where_images_are_few(number):
    values = np.random.default_rng(1).normal(5, 1, (8, number))
    counts = np.stack([histogram(row) for row in values])
    spread = Spread(np.arange(9) * number, EDGES, counts)
    density = spread.density()
    np.testing.assert_allclose(density.sum(axis=1), 1, atol=1e-3)
    truth = np.exp(-0.5 * ((EDGES[1:] + EDGES[:-1]) / 2 - 5) ** 2) * 0.05 / np.sqrt(2 * np.pi)
    raw = counts / counts.sum(axis=1, keepdims=True)
    assert np.abs(density - truth).mean() < 0.5 * np.abs(raw - truth).mean()
    assert np.abs(density - truth).max() < {10: 0.7, 700: 0.2, 100_000: 0.04}[number] * truth.max()


def test_values_in_one_bin_stay_there():
    counts = np.zeros((3, 200), dtype=int)
    counts[:, 40] = 64
    np.testing.assert_array_equal(Spread(np.arange(4), EDGES, counts).density(), counts / 64)
