"""The additive law, value = floor + a x^-alpha + b y^-beta, with floor, a and b not below 0, by least squares of ln value.

For given exponents the law is linear in floor, a and b (variable projection: Golub and Pereyra 1973). A grid of
exponents gives the starts this way, and Levenberg-Marquardt steps finish them. The steps are made here for many fits at
once, as the draws of a test and the profiles of intervals are hundreds of small fits; scipy makes one at a time.

Intervals are profiles: an end is where the best fit with the value held is as bad as an F test allows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from analysis.statistics import CONFIDENCE

Array = NDArray[np.float64]
Index = NDArray[np.intp]
NAMES = ("floor", "a", "alpha", "b", "beta")  # in this order in every array of parameters
FLOOR, A, ALPHA, B, BETA = range(5)
EXPONENTS = (0.01, 3.0)  # smallest and largest
LOW = np.array([0, 0, EXPONENTS[0], 0, EXPONENTS[0]])
HIGH = np.array([np.inf, np.inf, EXPONENTS[1], np.inf, EXPONENTS[1]])
START_EXPONENTS = (0.03, 0.1, 0.2, 0.4, 0.7, 1.2, 2.0)
PRESENT = ((0, 1, 2), (1, 2), (0, 1), (0, 2))  # of floor, a and b, those that are not 0 at a start
SMALL = 1e-3  # of the smallest value: where a part of the law starts at least, as at 0 it would hardly move
ROUNDING = 1e-7  # of ln value: smaller residuals are rounding errors
SAME = 1e-6  # relative difference below which two residual sums are the same optimum
FINE, COARSE = 1e-13, 1e-6  # relative gain of the residual sum at which a fit has ended
STEPS = 300  # a fit that needs more has not converged
WALK, REFINE = 16, 5  # steps of a profile from the optimum to a limit, and then between two of them


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
        return np.log(_curve(parameters, self.x, self.y)[0])


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
        with np.errstate(over="ignore"):
            return p[:, A] * self._over_a(p)

    def gradient(self, p: Array) -> Array:
        """Return the derivatives of b by the parameters [m, 5]."""
        with np.errstate(over="ignore"):
            b, zero = self.b(p), np.zeros(len(p))
            by_alpha, by_beta = b * (1 / p[:, ALPHA] - self.x), b * (self.y - 1 / p[:, BETA])
            return np.stack([zero, self._over_a(p), by_alpha, zero, by_beta], axis=1)

    def _over_a(self, p: Array) -> Array:
        over_a: Array = p[:, ALPHA] / p[:, BETA] * np.exp(p[:, BETA] * self.y - p[:, ALPHA] * self.x - self.log_ratio)
        return over_a

    def take(self, fits: Index) -> "Balance":
        return Balance(self.x[fits], self.y[fits], self.log_ratio[fits])


@dataclass(frozen=True)
class AdditiveLaw:
    """value = floor + a x^-alpha + b y^-beta through points, and how its fit ended."""

    points: Points
    log_value: Array  # [n]
    parameters: Array  # [5]; a and b are the heights of their terms at the centre of the points
    rss: float  # of ln value, weighted
    starts: int
    agreeing: int  # starts that ended at this optimum
    converged: bool

    @property
    def n(self) -> int:
        return len(self.log_value)

    @property
    def at_bound(self) -> tuple[str, ...]:
        """The parameters that ended at a bound: a part of the law at 0, or an exponent at one of EXPONENTS."""
        ends = (self.parameters <= LOW) | (self.parameters >= HIGH)
        return tuple(name for name, end in zip(NAMES, ends, strict=True) if end)

    @property
    def dof(self) -> int:
        """Degrees of freedom of the residuals; what is at a bound was not fitted."""
        return self.n - len(NAMES) + len(self.at_bound)

    @property
    def limit(self) -> float:
        """The residual sum up to which a held value is in its 95 % interval."""
        # Points exactly on a law leave only rounding errors, which the F test does not describe.
        return self.rss * (1 + float(stats.f.ppf(CONFIDENCE, 1, self.dof)) / self.dof) + self.n * ROUNDING**2

    def coefficients(self) -> dict[str, float]:
        """Return the parameters by name, with a and b for the caller's units of x and y."""
        found = dict(zip(NAMES, self.parameters.tolist(), strict=True))
        for name, exponent, centre in (("a", "alpha", 0), ("b", "beta", 1)):
            found[name] *= math.exp(found[exponent] * self.points.centre[centre])
        return found

    def predict(self, x: ArrayLike, y: ArrayLike) -> Array:
        """Return the law's value at x and y [n]."""
        at = [np.log(np.asarray(v, dtype=np.float64)) - c for v, c in zip((x, y), self.points.centre, strict=True)]
        return _curve(self.parameters[None], *at)[0][0]

    def log_split(self, budget: float) -> float:
        """Return ln(x / y) of the least value with x + y = budget; infinite if one of the two terms is 0."""
        p = self.parameters
        if p[A] == 0 or p[B] == 0:
            return math.inf if p[A] > 0 else -math.inf
        low, high = -100.0, 100.0
        for _ in range(60):
            middle = (low + high) / 2
            # The b for which this split is best falls as the split goes to x.
            best_for = self.along(budget, np.array([middle])).b(p[None])[0]
            low, high = (middle, high) if best_for > p[B] else (low, middle)
        return (low + high) / 2

    def along(self, budget: ArrayLike, log_ratio: Array) -> Balance:
        """Return the conditions that the least value with x + y = budget is at each ln(x / y) [m]; budget: [m] or one."""
        cx, cy = self.points.centre
        log_x = np.log(budget) + special.log_expit(log_ratio)
        return Balance(log_x - cx, log_x - log_ratio - cy, log_ratio)

    def split_intervals(self, budgets: ArrayLike, low: float, high: float) -> list[tuple[float | None, float | None]]:
        """Return the 95 % interval of log_split at each budget, within [low, high]; an end is None if it goes beyond.

        An interval wholly below `low` is (None, low), and one wholly above `high` is (high, None).
        """
        budget = np.asarray(budgets, dtype=np.float64)
        best = np.array([self.log_split(each) for each in budget])

        def fit(log_ratio: Array, walks: Index, p: Array) -> tuple[Array, Array]:
            return self._fit(p, self.along(budget[walks % len(budget)], log_ratio))

        return self._profile(fit, best, low, high)

    def interval(self, name: str) -> tuple[float | None, float | None]:
        """Return the 95 % interval of floor, alpha or beta; an end is None where the points do not bound it."""
        i = NAMES.index(name)
        low, high = (0.0, float(np.exp(self.log_value).min())) if i == FLOOR else EXPONENTS

        def fit(value: Array, walks: Index, p: Array) -> tuple[Array, Array]:
            p = p.copy()
            p[:, i] = value
            return self._fit(p, held=(i,))

        return self._profile(fit, self.parameters[[i]], low, high)[0]

    def _fit(self, p: Array, balance: Balance | None = None, held: tuple[int, ...] = ()) -> tuple[Array, Array]:
        """Return laws [m, 5] and their residual sums [m], fitted from p [m, 5]."""
        p = p.copy()
        free = [i for i in (FLOOR, A, B) if i not in held]
        p[:, free] = np.maximum(p[:, free], SMALL * np.exp(self.log_value.min()))
        logs = np.broadcast_to(self.log_value, (len(p), self.n))
        return _descend(self.points, logs, p, COARSE, balance, held)[:2]

    def _profile(
        self, fit: Callable[[Array, Index, Array], tuple[Array, Array]], best: Array, low: float, high: float
    ) -> list[tuple[float | None, float | None]]:
        """Return intervals within [low, high] of values that the law has at `best` [m].

        fit(values, walks, p): the best laws, and their residual sums, with the values held, from starts p; walk i goes
        down from best[i], and walk m + i goes up.
        """
        m, ends = len(best), np.repeat([low, high], len(best))
        walks, bar = np.arange(2 * m), math.sqrt(self.limit - self.rss)
        inside, p = np.tile(np.clip(best, low, high), 2), np.repeat(self.parameters[None], 2 * m, axis=0)
        p, rss = fit(inside, walks, p)

        def excess(rss: Array) -> Array:
            return np.sqrt(np.maximum(rss - self.rss, 0)) - bar  # nearly linear in the value

        beyond = excess(rss) > 0  # the whole interval is
        inner, start = np.where(beyond, 0, excess(rss)), inside.copy()
        outside, outer, live = np.full(2 * m, np.nan), np.full(2 * m, np.nan), walks[~beyond & (inside != ends)]
        for step in range(1, WALK + 1):
            at = start[live] + (ends - start)[live] * step / WALK
            p[live], rss = fit(at, live, p[live])
            out = excess(rss) > 0
            outside[live[out]], outer[live[out]] = at[out], excess(rss)[out]
            inside[live[~out]], inner[live[~out]] = at[~out], excess(rss)[~out]
            live = live[~out]
            if not len(live):
                break
        live, crossing = walks[np.isfinite(outside)], np.full(2 * m, np.nan)
        for _ in range(REFINE):
            at = crossing[live] = (inside + (outside - inside) * inner / (inner - outer))[live]
            p[live], rss = fit(at, live, p[live])
            out = excess(rss) > 0
            # The Illinois rule: an end that stays counts half.
            outside[live[out]], outer[live[out]] = at[out], excess(rss)[out]
            inner[live[out]] /= 2
            inside[live[~out]], inner[live[~out]] = at[~out], excess(rss)[~out]
            outer[live[~out]] /= 2
        crossing = np.where(beyond, np.where(np.tile(best, 2) < low, low, high), crossing)
        found = []
        for i in range(m):
            lower, upper = (None if math.isnan(end) else float(end) for end in crossing[[i, m + i]])
            if beyond[i]:
                lower, upper = (None, upper) if best[i] < low else (lower, None)
            found.append((lower, upper))
        return found


def fit_additive(x: ArrayLike, y: ArrayLike, value: ArrayLike, weights: ArrayLike | None = None) -> AdditiveLaw:
    """Fit value = floor + a x^-alpha + b y^-beta to points [n], all positive.

    weights: [n], relative; default: equal. Raises ValueError for fewer than six points, which leave no degree of
    freedom, and where x or y has fewer than three different values, which do not determine an exponent.
    """
    points, log_value = Points.of(x, y, weights), np.log(np.asarray(value, dtype=np.float64))
    few = min(len(np.unique(np.round(axis, 6))) for axis in (points.x, points.y)) < 3
    if len(log_value) <= len(NAMES) or few:
        raise ValueError(f"an additive law needs {len(NAMES) + 1} points, with three values of x and three of y")
    starts = _starts(points, log_value[None])[0]
    p, rss, ended = _descend(points, np.broadcast_to(log_value, (len(starts), len(log_value))), starts, FINE)
    best = int(rss.argmin())
    agreeing = int((rss <= rss[best] * (1 + SAME) + len(log_value) * ROUNDING**2).sum())
    return AdditiveLaw(points, log_value, p[best], float(rss[best]), len(rss), agreeing, bool(ended[best]))


def residual_sums(points: Points, log_values: Array) -> Array:
    """Return the residual sum of ln value [m] of the law fitted to each of many sets of values at the same points.

    log_values: [m, n]. One start for each, and less exact than fit_additive: to 0.03 % in all of 1600 draws.
    """
    starts = _starts(points, log_values)
    error = np.stack([_squares(points, log_values, starts[:, i]) for i in range(starts.shape[1])], axis=1)
    first = starts[np.arange(len(starts)), error.argmin(axis=1)]
    return _descend(points, log_values, first, COARSE)[1]


def _squares(points: Points, log_values: Array, p: Array) -> Array:
    squares: Array = (((points.log_values(p) - log_values) * points.root) ** 2).sum(axis=1)
    return squares


def _starts(points: Points, log_values: Array) -> Array:
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
        found = np.einsum("pkn,mn->pmk", np.linalg.pinv(part), wanted)
        error = ((np.einsum("pnk,pmk->pmn", part, found) - wanted) ** 2).sum(axis=2)
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


def _curve(p: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Return values [m, n] of laws p [m, 5], and their derivatives [m, n, 5]."""
    one, two = _power(p[:, ALPHA], x), _power(p[:, BETA], y)
    first, second = p[:, [A]] * one, p[:, [B]] * two
    value = p[:, [FLOOR]] + first + second
    return value, np.stack([np.ones_like(value), one, -x * first, two, -y * second], axis=2)


def _descend(
    points: Points,
    log_values: Array,
    starts: Array,
    gain: float,
    balance: Balance | None = None,
    held: tuple[int, ...] = (),
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Levenberg-Marquardt within the bounds, for fits [m] at once: parameters [m, 5], residual sums, ended [m].

    log_values: [m, n]. A fit ends when its residual sum gains less than this share. held: parameters that stay.
    """
    p, damping, live = starts.copy(), np.full(len(starts), 1e-2), np.arange(len(starts))
    held = held if balance is None else (*held, B)

    def evaluate(p: Array, fits: Index) -> tuple[Array, Array, Array]:
        at = balance and balance.take(fits)
        if at is not None:
            p[:, B] = at.b(p)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            value, slopes = _curve(p, points.x, points.y)
            if at is not None:
                slopes = slopes + slopes[:, :, [B]] * at.gradient(p)[:, None]
            error = (np.log(value) - log_values[fits]) * points.root
            slopes = slopes * (points.root / value)[:, :, None]
            return error, slopes, (error * error).sum(axis=1)

    error, slopes, rss = evaluate(p, live)
    rss = np.where(np.isfinite(rss), rss, np.inf)
    diagonal = range(len(NAMES))
    for _ in range(STEPS):
        now = p[live]
        gradient = np.einsum("mnk,mn->mk", slopes, error)
        fixed = ((now <= LOW) & (gradient > 0)) | ((now >= HIGH) & (gradient < 0))
        fixed[:, held] = True
        normal = np.einsum("mnk,mnj->mkj", slopes, slopes)
        normal[fixed[:, :, None] | fixed[:, None]] = 0
        scale = normal[:, diagonal, diagonal]
        scale = scale * (1 + damping[live])[:, None] + 1e-14 * scale.max(axis=1, keepdims=True) + 1e-300
        normal[:, diagonal, diagonal] = np.where(fixed, 1, scale)
        step = np.linalg.solve(normal, np.where(fixed, 0, gradient)[:, :, None])[:, :, 0]
        new = np.clip(now - step, LOW, HIGH)
        new_error, new_slopes, new_rss = evaluate(new, live)
        lower, old = new_rss < rss[live], rss[live]
        p[live[lower]], rss[live[lower]] = new[lower], new_rss[lower]
        error, slopes = np.where(lower[:, None], new_error, error), np.where(lower[:, None, None], new_slopes, slopes)
        damping[live] *= np.where(lower, 0.2, 5)
        still = (np.abs(new - now) <= 1e-10 * (np.abs(now) + 1e-3)).all(axis=1)
        on_law = rss[live] <= 1e-2 * points.x.size * ROUNDING**2
        ended = (lower & (old - new_rss <= gain * old)) | still | on_law | (damping[live] > 1e12)
        error, slopes, live = error[~ended], slopes[~ended], live[~ended]
        if not len(live):
            break
    done = np.ones(len(p), dtype=bool)
    done[live] = False
    return p, rss, done
