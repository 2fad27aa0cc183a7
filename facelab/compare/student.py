"""Student's t distribution, by the incomplete beta function's continued fraction: to ten digits, without scipy."""

from __future__ import annotations

import math
from functools import lru_cache

STEPS, EXACT, TINY = 400, 1e-15, 1e-300


def two_sided(t: float, freedom: int) -> float:
    """P(|T| ≥ |t|) with so many degrees of freedom, at least 1."""
    if math.isinf(t):
        return 0.0
    x = freedom / (freedom + t * t)
    # The fraction converges quickly below the mean of the beta distribution, a/(a+b); above it, that of the other side.
    if x < (freedom + 2) / (freedom + 5):
        return _beta(x, freedom / 2, 0.5)
    return 1 - _beta(t * t / (freedom + t * t), 0.5, freedom / 2)


@lru_cache(maxsize=4096)
def quantile(share: float, freedom: int) -> float:
    """The t that a share of the distribution lies below; 0 < share < 1.

    Found by bisection between bounds that hold for every t: it is asked for a few hundred times at most.
    """
    if share < 0.5:
        return -quantile(1 - share, freedom)
    tail, high = 2 * (1 - share), 1.0
    while two_sided(high, freedom) > tail:
        high *= 2
    low = 0.0
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if two_sided(middle, freedom) > tail else (low, middle)
    return (low + high) / 2


def _beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22)."""
    if x <= 0:
        return 0.0
    front = math.exp(a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)) / a
    value, upper, lower = 1.0, math.inf, 1.0  # modified Lentz: ratios of successive numerators, and of denominators
    for step in range(1, STEPS):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        upper, lower = _away_from_zero(1 + term / upper), 1 / _away_from_zero(1 + term * lower)
        value *= upper * lower
        if abs(upper * lower - 1) < EXACT:
            break
    return front * value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > TINY else TINY
