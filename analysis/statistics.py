"""Intervals, correlations, and criteria that several analyses share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

CONFIDENCE = 0.95
ROUNDING = 1e-7  # of ln value: smaller residuals are rounding errors


def slope_t_quantile(n: int) -> float:
    """Student-t quantile for the CONFIDENCE interval of a slope through n points (n - 2 degrees of freedom)."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 2))


@dataclass(frozen=True)
class Correlation:
    """r with its 95 % Fisher-z interval; None where undefined (a constant variable; an interval at n < 4)."""

    r: float | None
    low: float | None
    high: float | None


def pearson(x: ArrayLike, y: ArrayLike) -> Correlation:
    """Pearson correlation of two variables [n]."""
    u, v = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if np.ptp(u) == 0 or np.ptp(v) == 0:
        return Correlation(None, None, None)
    u, v = u - u.mean(), v - v.mean()
    u, v = u / np.abs(u).max(), v / np.abs(v).max()  # the squares of very large values are not floats
    r = float(np.clip(u @ v / math.sqrt((u @ u) * (v @ v)), -1, 1))
    if len(u) < 4:
        return Correlation(r, None, None)
    if abs(r) == 1:
        return Correlation(r, r, r)
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) / math.sqrt(len(u) - 3)
    return Correlation(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half))


def spearman(x: ArrayLike, y: ArrayLike) -> Correlation:
    """Rank correlation of two variables [n]; the interval is Fisher's z with the variance of Bonett and Wright (2000).

    At n = 4 the interval contains almost every r, which shows how little four points say.
    """
    ranks = pearson(stats.rankdata(x), stats.rankdata(y))
    n = len(np.asarray(x))
    if ranks.r is None or n < 4 or abs(ranks.r) == 1:
        return Correlation(ranks.r, None, None)
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt((1 + ranks.r**2 / 2) / (n - 3))
    return Correlation(ranks.r, math.tanh(math.atanh(ranks.r) - half), math.tanh(math.atanh(ranks.r) + half))


@dataclass(frozen=True)
class Interval:
    """Mean over seeds with its 95 % Student-t interval; None for one seed, which has no interval."""

    mean: float
    low: float | None
    high: float | None
    by_seed: tuple[float, ...]


def mean_interval(by_seed: ArrayLike) -> Interval:
    """Return the mean of one value per seed, and its interval."""
    values = np.asarray(by_seed, dtype=np.float64)
    n, mean = len(values), float(values.mean())
    if n < 2:
        return Interval(mean, None, None, tuple(values.tolist()))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half, tuple(values.tolist()))


def lack_of_fit(logs: Sequence[ArrayLike], fitted: ArrayLike, degrees: int) -> dict[str, Any]:
    """Test whether points stray from a law by more than their seeds do, for JSON: an F test against pure error.

    logs: ln value of each seed, by point. fitted: ln value of the law at each point [n]. degrees: those of freedom of
    the fit. A test that cannot be made says why, as `not_possible`.
    """
    seeds = [np.asarray(values, dtype=np.float64) for values in logs]
    pure = sum(len(values) - 1 for values in seeds)
    if not pure:
        return {"not_possible": "no size has two seeds"}
    if degrees < 1:
        return {"not_possible": "the law has as many parameters as there are points"}
    error = sum(float(((values - values.mean()) ** 2).sum()) for values in seeds) / pure
    if error < ROUNDING**2:
        return {"not_possible": "the seeds have equal values"}
    strays = np.array([values.mean() for values in seeds]) - np.asarray(fitted, dtype=np.float64)
    f = float((np.array([len(values) for values in seeds]) * strays**2).sum()) / degrees / error
    p = float(stats.f.sf(f, degrees, pure))
    return {
        "f": f, "degrees_of_freedom": [degrees, pure], "p": p, "found": p < 1 - CONFIDENCE,
        "seeds_std_log": math.sqrt(error),
    }  # fmt: skip
