"""Additive laws, value = floor + a x^-alpha + b y^-beta, fitted many at once by least squares of ln value.

For given exponents the law is linear in floor, a and b (variable projection: Golub and Pereyra 1973): a grid of
exponents gives the starts this way, and Levenberg-Marquardt steps finish them. The steps are made here, because the
draws of a test and the profiles of intervals are hundreds of small fits, and scipy makes one at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.statistics import ROUNDING

Array = NDArray[np.float64]
Index = NDArray[np.intp]
NAMES = ("floor", "a", "alpha", "b", "beta")  # in this order in every array of parameters
FLOOR, A, ALPHA, B, BETA = range(5)
EXPONENTS = (0.01, 3.0)  # smallest and largest
LOW = np.array([0, 0, EXPONENTS[0], 0, EXPONENTS[0]])
HIGH = np.array([np.inf, np.inf, EXPONENTS[1], np.inf, EXPONENTS[1]])
START_EXPONENTS = (0.05, 0.15, 0.35, 0.8, 1.8)
PRESENT = ((0, 1, 2), (1, 2), (0, 1), (0, 2))  # of floor, a and b, those that are not 0 at a start
SMALL = 1e-3  # of the smallest value: where a part of the law starts at least, as at 0 it would hardly move
# Relative gains of the residual sum at which a fit has ended: of a law, of a profile, and of the draws of a test.
FINE, MEDIUM, COARSE = 1e-13, 1e-8, 1e-6
STEPS = 300  # a fit that needs more has not converged


@dataclass(frozen=True)
class Points:
    """Where the values of a fit are: logarithms less their means, and roots of the weights, each [n]."""

    x: Array
    y: Array
    centre: tuple[float, float]  # the means of ln x and ln y
    root: Array

    @classmethod
    def of(cls, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> "Points":
        """Return the points at x and y [n], all positive; weights [n] are relative, default: equal."""
        u, w = np.log(np.asarray(x, dtype=np.float64)), np.log(np.asarray(y, dtype=np.float64))
        weight = np.ones(len(u)) if weights is None else np.asarray(weights, dtype=np.float64)
        cx, cy = float(u.mean()), float(w.mean())
        return cls(u - cx, w - cy, (cx, cy), np.sqrt(weight / weight.mean()))

    def log_values(self, parameters: Array) -> Array:
        """Return ln value [m, n] of laws [m, 5] at the points."""
        return np.log(curve(parameters, self.x, self.y)[0])


@dataclass(frozen=True)
class Balance:
    """A condition on laws [m]: at x and y, alpha a x^-alpha is exp(log_ratio) times beta b y^-beta.

    This is so where x and y have the least value: with x + y fixed if log_ratio = ln(x / y), with x y fixed if it is 0.
    """

    x: Array  # logarithms less the means of the points, like y
    y: Array
    log_ratio: Array

    def b(self, p: Array) -> Array:
        """Return the b [m] with which the laws p [m, 5] fulfil the condition."""
        b: Array = p[:, A] * self._over_a(p)
        return b

    def gradient(self, p: Array) -> Array:
        """Return the derivatives of b by the parameters [m, 5]."""
        b, zero = self.b(p), np.zeros(len(p))
        by_alpha, by_beta = b * (1 / p[:, ALPHA] - self.x), b * (self.y - 1 / p[:, BETA])
        return np.stack([zero, self._over_a(p), by_alpha, zero, by_beta], axis=1)

    def _over_a(self, p: Array) -> Array:
        over_a: Array = p[:, ALPHA] / p[:, BETA] * np.exp(p[:, BETA] * self.y - p[:, ALPHA] * self.x - self.log_ratio)
        return over_a

    def take(self, fits: Index) -> "Balance":
        return Balance(self.x[fits], self.y[fits], self.log_ratio[fits])


def starts_of(points: Points, log_values: Array) -> Array:
    """Return starts [m, 4, 5]: the best exponents on a grid with alpha and beta each low or high.

    The law is linear in floor, a and b here, with residuals relative to the mean of the values of all fits.
    """
    value = np.exp(log_values)
    scale = points.root / np.exp(log_values.mean(axis=0))
    alpha, beta = (grid.ravel() for grid in np.meshgrid(START_EXPONENTS, START_EXPONENTS, indexing="ij"))
    terms = np.stack([np.ones((len(alpha), len(points.x))), _power(alpha, points.x), _power(beta, points.y)], axis=2)
    design, wanted = terms * scale[:, None], value * scale  # [pairs, n, 3], [m, n]
    rss, linear = np.full((len(alpha), len(value)), np.inf), np.zeros((len(alpha), len(value), 3))
    for present in PRESENT:
        part = design[:, :, present]
        found = (np.linalg.pinv(part) @ wanted.T).swapaxes(1, 2)  # [pairs, m, k]
        error = ((found @ part.swapaxes(1, 2) - wanted) ** 2).sum(axis=2)
        better = (found >= 0).all(axis=2) & (error < rss)
        rss[better] = error[better]
        whole = np.zeros_like(linear)
        whole[:, :, present] = found
        linear[better] = whole[better]
    linear = np.maximum(linear, SMALL * value.min(axis=1)[None, :, None])
    middle, fits = START_EXPONENTS[len(START_EXPONENTS) // 2], np.arange(len(value))
    starts = []
    for low_alpha in (True, False):
        for low_beta in (True, False):
            pairs = np.flatnonzero(((alpha < middle) == low_alpha) & ((beta < middle) == low_beta))
            best = pairs[rss[pairs].argmin(axis=0)]
            floor, a, b = linear[best, fits].T
            starts.append(np.stack([floor, a, alpha[best], b, beta[best]], axis=1))
    return np.stack(starts, axis=1)


def _power(exponent: Array, log: Array) -> Array:
    power: Array = np.exp(-exponent[:, None] * log)
    return power


def curve(p: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Return values [m, n] of laws p [m, 5], and their derivatives [m, n, 5]."""
    one, two = _power(p[:, ALPHA], x), _power(p[:, BETA], y)
    first, second = p[:, [A]] * one, p[:, [B]] * two
    value = p[:, [FLOOR]] + first + second
    return value, np.stack([np.ones_like(value), one, -x * first, two, -y * second], axis=2)


def descend(
    points: Points,
    log_values: Array,
    starts: Array,
    gain: float,
    balance: Balance | None = None,
    held: tuple[int, ...] = (),
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Fit laws [m] at once, from their starts [m, 5]: parameters [m, 5], residual sums, ended [m].

    log_values: [m, n]. A fit ends when its residual sum gains less than this share. held: parameters that stay.
    """

    def evaluate(p: Array, fits: Index) -> tuple[Array, Array]:
        at = balance and balance.take(fits)
        if at is not None:
            p[:, B] = at.b(p)
        value, slopes = curve(p, points.x, points.y)
        if at is not None:
            slopes = slopes + slopes[:, :, [B]] * at.gradient(p)[:, None]
        error = (np.log(value) - log_values[fits]) * points.root
        return error, slopes * (points.root / value)[:, :, None]

    held = held if balance is None else (*held, B)
    return minimise(evaluate, starts, LOW, HIGH, gain, held, enough=1e-2 * points.x.size * ROUNDING**2)


# A step that overflows does not lower the sum of squares and is not taken.
@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def minimise(
    evaluate: Callable[[Array, Index], tuple[Array, Array]],
    starts: Array,
    low: Array,
    high: Array,
    gain: float,
    held: tuple[int, ...] = (),
    enough: float = 0.0,
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Minimise sums of squares [m] at once, from starts [m, k], by Levenberg and Marquardt: minima, sums, ended [m].

    evaluate(parameters [l, k], which of the m [l]): residuals [l, r] and their derivatives [l, r, k]; it may change
    held parameters. low, high: bounds [k]. A search ends when its sum gains less than the share `gain`, or is at most
    `enough`. held: parameters that no step changes.
    """
    p, damping, live = starts.copy(), np.full(len(starts), 1e-2), np.arange(len(starts))
    error, slopes = evaluate(p, live)
    rss = (error * error).sum(axis=1)
    rss = np.where(np.isfinite(rss), rss, np.inf)
    diagonal = range(starts.shape[1])
    for _ in range(STEPS):
        now = p[live]
        gradient = np.einsum("mnk,mn->mk", slopes, error)
        fixed = ((now <= low) & (gradient > 0)) | ((now >= high) & (gradient < 0))
        fixed[:, held] = True
        normal = np.einsum("mnk,mnj->mkj", slopes, slopes)
        normal[fixed[:, :, None] | fixed[:, None]] = 0
        scale = normal[:, diagonal, diagonal]
        scale = scale * (1 + damping[live])[:, None] + 1e-14 * scale.max(axis=1, keepdims=True) + 1e-300
        normal[:, diagonal, diagonal] = np.where(fixed, 1, scale)
        step = np.linalg.solve(normal, np.where(fixed, 0, gradient)[:, :, None])[:, :, 0]
        new = np.clip(now - step, low, high)
        new_error, new_slopes = evaluate(new, live)
        new_rss = (new_error * new_error).sum(axis=1)
        lower, old = new_rss < rss[live], rss[live]
        p[live[lower]], rss[live[lower]] = new[lower], new_rss[lower]
        error, slopes = np.where(lower[:, None], new_error, error), np.where(lower[:, None, None], new_slopes, slopes)
        damping[live] *= np.where(lower, 0.2, 5)
        still = (np.abs(new - now) <= 1e-10 * np.abs(now)).all(axis=1)
        ended = (lower & (old - new_rss <= gain * old)) | still | (rss[live] <= enough) | (damping[live] > 1e12)
        error, slopes, live = error[~ended], slopes[~ended], live[~ended]
        if not len(live):
            break
    done = np.ones(len(p), dtype=bool)
    done[live] = False
    return p, rss, done
