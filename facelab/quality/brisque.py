"""BRISQUE: how natural an image looks, by the statistics of its local contrasts. *Lower is better*.

The 36 features are computed here, in float64; the trained regression that makes one number of them is read from the
package `brisque`, which carries it (its own scoring fails on numpy 2.4, where an array of one number is no number any
more). Nothing of that package is imported or run.

Source: Mittal, Moorthy and Bovik, No-Reference Image Quality Assessment in the Spatial Domain, IEEE TIP 21, 2012.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from facelab.benchmark.safe_pickle import read_pickle

FEATURES = 36
# Of the paper, and of the package whose regression is used: window, weights of the luminance, and C of equation 1.
_SIDE, _SIGMA, _C = 7, 7 / 6, 1 / 255
_LUMINANCE = np.array([0.2125, 0.7154, 0.0721])
# Shapes of the generalised Gaussian whose moments are compared; those beyond 10 count as 10, as in the authors' code.
_SHAPES = np.linspace(0.05, 10, 19901)
_HELP = "pip install 'facelab[quality]', or leave BRISQUE out"


def _log_gamma(values: np.ndarray) -> np.ndarray:
    return np.array([math.lgamma(value) for value in values])


def _window() -> np.ndarray:
    """(7,) Gaussian that sums to one; the two-dimensional one is its product with itself."""
    place = np.arange(_SIDE) - _SIDE // 2
    weight = np.exp(-(place**2) / (2 * _SIGMA**2))
    return weight / weight.sum()


_WINDOW = _window()
_G1, _G2, _G3 = (_log_gamma(k / _SHAPES) for k in (1, 2, 3))
_RATIOS = np.exp(2 * _G2 - _G1 - _G3)  # ρ(α) = Γ(2/α)²/(Γ(1/α)·Γ(3/α)), rising


def features(image: np.ndarray) -> np.ndarray:
    """The features of an image at its own size, and at half of it.

    At each: shape and variance of the normalised luminances (MSCN), and shape, mean, left and right variance of the
    products of neighbours: horizontally, vertically, along both diagonals. An asymmetric generalised Gaussian is fitted
    to each by its moments (equations 7 to 14), to the luminances too, of whose two variances the mean is taken.

    Args:
        image: (H,W,3) uint8 RGB, of 8 pixels and more.

    Returns:
        (36,) float64; NaN where an image is flat, so that nothing has a shape.
    """
    grey = image.astype(np.float64) @ _LUMINANCE / 255
    half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.concatenate([_of_one_size(grey), _of_one_size(half)])


def _of_one_size(grey: np.ndarray) -> np.ndarray:
    """(18,) features of a luminance in 0…1."""
    mean, square = (
        cv2.sepFilter2D(part, cv2.CV_64F, _WINDOW, _WINDOW, borderType=cv2.BORDER_CONSTANT)  # zeros outside
        for part in (grey, grey**2)
    )
    normal = (grey - mean) / (np.sqrt(np.abs(mean**2 - square)) + _C)
    neighbours = (
        normal[:, :-1] * normal[:, 1:],
        normal[:-1] * normal[1:],
        normal[:-1, :-1] * normal[1:, 1:],
        normal[1:, :-1] * normal[:-1, 1:],
    )
    shape, _, left, right = _fit(normal)
    return np.array([shape, (left + right) / 2, *(value for part in neighbours for value in _fit(part))])


def _fit(values: np.ndarray) -> tuple[float, float, float, float]:
    """Shape α, mean η, left and right variance of the asymmetric generalised Gaussian with the same moments."""
    below = values < 0
    squares = values**2
    left, right = squares[below].sum() / below.sum(), squares[~below].sum() / (~below).sum()
    gamma = np.sqrt(left / right)
    ratio = np.abs(values).mean() ** 2 / squares.mean() * (gamma**3 + 1) * (gamma + 1) / (gamma**2 + 1) ** 2
    if not np.isfinite(ratio):
        return math.nan, math.nan, math.nan, math.nan
    alpha = float(np.interp(ratio, _RATIOS, _SHAPES))
    spread = math.exp((math.lgamma(1 / alpha) - math.lgamma(3 / alpha)) / 2)
    mean = (np.sqrt(right) - np.sqrt(left)) * spread * math.exp(math.lgamma(2 / alpha) - math.lgamma(1 / alpha))
    return alpha, float(mean), float(left), float(right)


@dataclass(frozen=True)
class Brisque:
    """The trained regression: features → one number, about 0 (natural) to 100 (badly distorted), and beyond.

    A support vector regression with Gaussian kernels: Σ_i w_i·exp(−γ·‖x − x_i‖²) − ρ, of features brought to −1…1.

    Attributes:
        low, high: (36,) what becomes −1 and 1.
        vectors: (S,36) x_i.
        weights: (S,) w_i.
        gamma: γ.
        rho: ρ.
    """

    low: np.ndarray
    high: np.ndarray
    vectors: np.ndarray
    weights: np.ndarray
    gamma: float
    rho: float

    def predict(self, found: np.ndarray) -> np.ndarray:
        """(N,36) features → (N,) float64, lower is better; NaN where features are."""
        scaled = 2 * (found - self.low) / (self.high - self.low) - 1
        distance = (scaled**2).sum(1)[:, None] + (self.vectors**2).sum(1) - 2 * scaled @ self.vectors.T
        return np.exp(-self.gamma * distance) @ self.weights - self.rho

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """(N,H,W,3) uint8 RGB → (N,) float64, lower is better; NaN of a flat image."""
        return self.predict(np.stack([features(image) for image in images]))


def load() -> Brisque:
    """The regression that the installed package `brisque` carries.

    Raises:
        ValueError: it is not installed, or carries something else.
    """
    found = importlib.util.find_spec("brisque")
    if found is None or not found.submodule_search_locations:
        raise ValueError(f"BRISQUE's trained model comes with the package brisque, which is not installed: {_HELP}")
    folder = Path(next(iter(found.submodule_search_locations))) / "models"
    scaling, model = folder / "normalize.pickle", folder / "svm.txt"
    if not (scaling.is_file() and model.is_file()):
        raise ValueError(f"{folder} has no svm.txt and normalize.pickle, as brisque 0.2.0 has: {_HELP}")
    return read_model(model, scaling)


def read_model(model: Path, scaling: Path) -> Brisque:
    """Reads LIBSVM's text file and the pickle of the features' ranges, which can name nothing that would be run.

    Raises:
        ValueError: they are not a regression with Gaussian kernels over 36 features.
    """
    ranges = read_pickle(scaling)
    try:
        low, high = (np.array(ranges[key], np.float64) for key in ("min_", "max_"))
        head, _, body = model.read_text(encoding="ascii").partition("\nSV\n")
        told = dict(line.split(" ", 1) for line in head.splitlines())
        rows = [line.split() for line in body.splitlines()]
        vectors = np.zeros((len(rows), FEATURES))
        for vector, row in zip(vectors, rows, strict=True):
            for word in row[1:]:
                place, _, value = word.partition(":")
                vector[int(place) - 1] = float(value)
        made = Brisque(
            low, high, vectors, np.array([float(row[0]) for row in rows]), float(told["gamma"]), float(told["rho"])
        )
        good = (told["svm_type"], told["kernel_type"]) == ("epsilon_svr", "rbf") and low.shape == (FEATURES,)
        good = good and high.shape == (FEATURES,) and len(rows) == int(told["total_sv"]) > 0
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{model}: not BRISQUE's regression as LIBSVM writes it ({error}): {_HELP}") from error
    if not good:
        raise ValueError(f"{model}: not a regression with Gaussian kernels over 36 features: {_HELP}")
    return made
