"""Parabola of the metric over a learning rate, its vertex, and the power of the width with which vertices fall.

All fits are in logarithms. A vertex is a ratio of two estimates, so its interval follows Fieller's theorem.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from analysis.statistics import CONFIDENCE


@dataclass(frozen=True)
class Parabola:
    """ln value = level + tilt u + curvature u^2, u = ln rate - centre; None if no degree of freedom is left."""

    centre: float
    level: float
    tilt: float
    curvature: float
    curvature_low: float | None  # 95 %, Student-t
    curvature_high: float | None
    vertex: float  # a rate; that of a maximum if the curvature is negative
    vertex_low: float | None  # 95 %, by Fieller's theorem; None if it is unbounded
    vertex_high: float | None
    vertex_error: float | None  # of ln vertex, by the delta method
    residual_std: float | None  # of ln value
    lack_of_fit_p: float | None  # F test against the spread of replicates

    def predict(self, rate: ArrayLike) -> NDArray[np.float64]:
        """Return the value of the parabola at each rate."""
        u = np.log(np.asarray(rate, dtype=np.float64)) - self.centre
        return np.exp(self.level + self.tilt * u + self.curvature * u**2)


@dataclass(frozen=True)
class Exponent:
    """Slope of ln optimum over ln width with its 95 % interval; None if it is not identifiable."""

    slope: float | None
    low: float | None
    high: float | None
    method: str | None  # of the interval
    p_minus_one: float | None  # two-sided, of the slope -1 of Eq. 4
    p_zero: float | None  # two-sided, of the slope 0: one rate for all widths
    verdict: str


def fit_parabola(rate: ArrayLike, value: ArrayLike) -> Parabola:
    """Fit a parabola of ln value over ln rate, both [n] and positive, by least squares; equal rates are replicates.

    The vertex is a ratio of correlated estimates, so its interval is Fieller's (1954), which need not be symmetric.
    The interval is bounded exactly if the curvature's interval excludes 0.
    Raises ValueError for fewer than three distinct rates.
    """
    x, y = np.log(np.asarray(rate, dtype=np.float64)), np.log(np.asarray(value, dtype=np.float64))
    levels, group = np.unique(x, return_inverse=True)
    if len(levels) < 3:
        raise ValueError(f"a parabola needs at least 3 rates, got {len(levels)}")
    centre, degrees = float(x.mean()), len(x) - 3
    coefficients, inverse = np.polyfit(x - centre, y, 2, cov="unscaled")
    c, b, a = coefficients.tolist()
    at = -b / (2 * c) if c else math.nan
    c_low = c_high = low = high = error = std = p = None
    if degrees:
        squares = float(((y - np.polyval(coefficients, x - centre)) ** 2).sum())
        std = math.sqrt(squares / degrees)
        (vcc, vcb), (_, vbb) = (std**2 * inverse[:2, :2]).tolist()
        t = float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees))
        c_low, c_high = c - t * math.sqrt(vcc), c + t * math.sqrt(vcc)
        if c_low * c_high > 0:
            # All w for which b + 2 c w = 0 is not rejected: q2 w^2 + 2 q1 w + q0 <= 0.
            q2, q1, q0 = 4 * (c**2 - t**2 * vcc), 2 * (b * c - t**2 * vcb), b**2 - t**2 * vbb
            root = math.sqrt(max(q1**2 - q2 * q0, 0.0))
            low, high = (-q1 - root) / q2, (-q1 + root) / q2
            error = math.sqrt(max(vbb + 4 * at * vcb + 4 * at**2 * vcc, 0.0)) / abs(2 * c)
        pure = float(((y - (np.bincount(group, y) / np.bincount(group))[group]) ** 2).sum())
        spare, repeated = len(levels) - 3, len(x) - len(levels)
        if spare and repeated and pure > 0:
            p = float(stats.f.sf(max(squares - pure, 0.0) / spare / (pure / repeated), spare, repeated))
    with np.errstate(over="ignore"):
        vertex = float(np.exp(centre + at))
        low, high = (None if end is None else float(np.exp(centre + end)) for end in (low, high))
    return Parabola(centre, a, b, c, c_low, c_high, vertex, low, high, error, std, p)


def fit_exponent(widths: ArrayLike, optima: ArrayLike, errors: ArrayLike, tried: int) -> Exponent:
    """Fit the slope of ln optimum over ln width, each [n], and test it against -1 (Eq. 4) and 0.

    Three widths or more give a Student-t interval with n - 2 degrees of freedom. Two widths leave no degree of
    freedom, so the interval comes from errors [n], the standard errors of ln optimum. tried: number of widths with a
    grid, for the verdict.
    """
    x, y = np.log(np.asarray(widths, dtype=np.float64)), np.log(np.asarray(optima, dtype=np.float64))
    n = len(x)
    if len(np.unique(x)) < 2:
        return Exponent(None, None, None, None, None, None, f"not identifiable: {n} of {tried} widths have an optimum")
    u = x - x.mean()
    slope = float(u @ y / (u @ u))
    if n > 2:
        residuals = y - y.mean() - slope * u
        error = math.sqrt(float(residuals @ residuals) / (n - 2) / float(u @ u))
        degrees, method = float(n - 2), f"Student-t over {n} widths"
    else:
        error = math.hypot(*np.asarray(errors, dtype=np.float64)) / abs(float(x[1] - x[0]))
        degrees, method = math.inf, "normal, from the standard errors of two optima, so too narrow for few trials"
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees)) * error
    p_minus_one, p_zero = (
        float(2 * stats.t.sf(abs(slope - at) / error, degrees)) if error else float(slope == at) for at in (-1, 0)
    )
    words = ["differs from" if p < 1 - CONFIDENCE else "consistent with" for p in (p_minus_one, p_zero)]
    verdict = f"{words[0]} -1, {words[1]} 0"
    return Exponent(slope, slope - half, slope + half, method, p_minus_one, p_zero, verdict)
