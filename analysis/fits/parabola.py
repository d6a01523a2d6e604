"""One curve of the metric over the learning rate for all widths, and the power of the width with which it shifts.

ln value = level + f(ln rate - slope ln width). f is a polynomial that all widths share; a width and seed has a level of
its own. So every trial counts, also those of a width whose own trials show no minimum.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from analysis.statistics import CONFIDENCE, slope_t_quantile

Array = NDArray[np.float64]
SLOPES = np.linspace(-5, 5, 101)  # searched; an interval that leaves them has no end
LEAST_NOISE = 1e-5  # least noise of ln value; smaller residuals come from digits that were not written
REACH = math.log(2)  # how far outside the aligned rates tried a minimum still counts; the curve is not known farther
STEPS = np.geomspace(1e-6, 20, 300)  # in ln rate from a vertex, at which the ends of its interval are searched
MIN_SEED_RATES = 3  # for a seed to have a level of its own


@dataclass(frozen=True)
class Curve:
    """One width: ln value is a polynomial of ln rate - shift, with the common curve's coefficients but for two.

    The level and the tilt, its first two coefficients, are the width's own, so its vertex may lie off the line.
    """

    shift: float
    coefficients: tuple[float, ...]
    vertex: float | None  # a rate; None if the curve has no minimum near the rates tried
    low: float | None  # 95 %, by Fieller's theorem; None if it is unbounded
    high: float | None

    def predict(self, rate: ArrayLike) -> Array:
        """Return the value of the curve at each rate."""
        return np.exp(Polynomial(self.coefficients)(np.log(np.asarray(rate, dtype=np.float64)) - self.shift))


@dataclass(frozen=True)
class Slope:
    """Slope of ln optimum over ln width with its 95 % interval; None if it is not identifiable."""

    slope: float | None
    low: float | None
    high: float | None
    method: str | None  # of the interval
    p_minus_one: float | None  # two-sided, of the slope -1 of Eq. 4
    p_zero: float | None  # two-sided, of the slope 0: one rate for all widths
    verdict: str


@dataclass(frozen=True)
class Checks:
    """p of F tests of what the fit assumes; None if the trials leave no degree of freedom for it."""

    one_line: float | None  # optima scatter about the line by no more than their own noise
    one_curve: float | None  # all widths have the same curvature
    replicates: float | None  # the curves miss means of replicates by no more than the replicates' spread


@dataclass(frozen=True)
class Curves:
    """The common fit, and the curve of every width; None for a width without values at two rates."""

    degree: int | None  # None if no width has values at three rates: then nothing is fitted
    residual_std: float | None  # of ln value; None if no degree of freedom is left
    of: tuple[Curve | None, ...]
    slope: Slope
    checks: Checks


# ---------------------------------------------------------------- fit


@dataclass(frozen=True)
class _Trials:
    """Trials [n] of the widths with values at two rates or more, in logarithms."""

    width: NDArray[np.intp]  # [n]: a trial's index into log_width
    rate: Array  # [n]
    value: Array  # [n]
    level: Array  # [n, levels]: 1 at a trial's level, else 0
    log_width: Array  # [widths]
    used: list[int]  # widths with trials

    def rates(self, index: int) -> int:
        """Return the number of rates of a width."""
        return len(np.unique(self.rate[self.width == index]))

    def spare(self, terms: int) -> int:
        """Return the degrees of freedom that the levels and `terms` more leave."""
        return len(self.rate) - self.level.shape[1] - terms

    @cached_property
    def centred(self) -> Array:
        """ln value [n] less its means over the trials with the same level."""
        return self.within(self.value)

    @cached_property
    def means(self) -> Array:
        """Matrix [n, n] that turns columns into their means over the trials with the same level."""
        return (self.level / self.level.sum(axis=0)) @ self.level.T

    def within(self, columns: Array) -> Array:
        """Subtract from columns [..., n] their means over the trials with the same level."""
        return columns - columns @ self.means

    def reduced(self, columns: Array) -> tuple[Array, Array]:
        """Project ln value on columns [..., terms, n] in turn, less the levels: weights [..., terms], RSS [...].

        A weight has the sign and the significance of its column's coefficient, with the columns before it.
        """
        q, r = np.linalg.qr(np.swapaxes(self.within(columns), -1, -2))
        weights = self.centred @ q
        residuals = self.centred - np.squeeze(q @ weights[..., None], -1)
        return weights * np.sign(np.diagonal(r, axis1=-2, axis2=-1)), (residuals**2).sum(axis=-1) + self.rounding

    @property
    def rounding(self) -> float:
        """What every residual sum of squares has at least."""
        return len(self.rate) * LEAST_NOISE**2

    def rss(self, columns: Array) -> float:
        """Return the residual sum of squares of ln value on columns [terms, n] and the levels."""
        return float(self.reduced(columns)[1])

    def on_line(self, slope: ArrayLike, degree: int) -> tuple[Array, Array]:
        """Align the widths at each slope [...], and return t [...] and the RSS [...] of a tilt that goes with ln width.

        t is below 0 where the slope is too low, and above 0 where it is too high.
        """
        z = self.aligned(slope)
        tilt = z * (self.log_width - self.log_width.mean())[self.width]
        weights, rss = self.reduced(np.concatenate([_powers(z, 1, degree), tilt[..., None, :]], axis=-2))
        return weights[..., -1] / np.sqrt(rss / self.spare(degree + 1)), rss

    def aligned(self, slope: ArrayLike) -> Array:
        """Return z [..., n]: ln rate less slope [...] times ln width."""
        return self.rate - np.asarray(slope)[..., None] * self.log_width[self.width]

    def by_width(self, column: Array) -> Array:
        """Return column [n] once for every width [used, n], with 0 at the trials of other widths."""
        return np.where(self.width == np.array(self.used)[:, None], column, 0.0)


def fit_curves(widths: ArrayLike, width: ArrayLike, rate: ArrayLike, value: ArrayLike, seed: ArrayLike) -> Curves:
    """Fit the common curve and the slope to n trials; a lower value is better.

    widths: [widths]. width: [n], index of a trial's width. rate, value, seed: [n]; rates and values are positive.
    f is a cubic, because curves may be skewed; a quartic if an F test asks for it (5 %); a parabola if a cubic would
    not leave two degrees of freedom. A slope is in the interval if, with the widths aligned at it, curves do not tilt
    with ln width (Student t). For a parabola that is Fieller's interval (1954) of the ratio of two coefficients. If the
    optima scatter about the line by more than their own noise, a width has an effect of its own, and the interval is
    Student's t over widths. Three widths cannot show that well: with strong effects, 86 to 92 % of intervals hold the
    slope instead of 95 %.
    """
    trials = _read(np.asarray(widths), np.asarray(width), np.asarray(rate), np.asarray(value), np.asarray(seed))
    count, allowed = len(trials.used), [degree for degree in (2, 3, 4) if _possible(trials, degree)]
    if 2 not in allowed:
        none = (None,) * len(trials.log_width)
        return Curves(None, None, none, _unknown("no width has values at three rates"), Checks(None, None, None))
    degree = 3 if 3 in allowed else 2
    best = _best_slope(trials, degree)
    if 4 in allowed:
        cubic, quartic = (trials.rss(_tilted(trials, best, d)) for d in (3, 4))
        _, p = _f_test(cubic, quartic, 1, trials.spare(count + 3))
        if p is not None and p < 1 - CONFIDENCE:
            degree, best = 4, _best_slope(trials, 4)

    columns = _tilted(trials, best, degree)
    curves, rss = _curves(trials, columns), trials.rss(columns)
    spare = trials.spare(len(columns))
    f, one_line = (0.0, None) if best is None else _f_test(trials.on_line(best, degree)[1], rss, count - 2, spare)
    checks = Checks(one_line, _one_curve(trials, columns), _replicates(trials, columns))
    slope = _slope(trials, degree, best, [curves[index].vertex for index in trials.used], f)
    of = tuple(curves.get(index) for index in range(len(trials.log_width)))
    return Curves(degree, math.sqrt(rss / spare) if spare else None, of, slope, checks)


def _possible(trials: _Trials, degree: int) -> bool:
    """Return whether a width has enough rates for a degree; above a parabola, two degrees of freedom must be left."""
    if max([trials.rates(index) for index in trials.used], default=0) <= degree:
        return False
    columns = trials.within(_tilted(trials, 0.0, degree))
    spare = trials.spare(len(columns))
    full = np.linalg.matrix_rank(columns / np.linalg.norm(columns, axis=1, keepdims=True).clip(1e-300)) == len(columns)
    return bool(full and (degree == 2 or spare > 1))


def _tilted(trials: _Trials, slope: float | None, degree: int) -> Array:
    """Return columns [widths used + degree - 1, n], aligned at the slope: z of each width, common powers of z."""
    z = trials.aligned(slope or 0.0)
    z = z - z.mean()
    return np.concatenate([trials.by_width(z), _powers(z, 2, degree)])


def _powers(z: Array, low: int, high: int) -> Array:
    """Return the powers low to high [..., powers, n] of z [..., n]."""
    return np.stack([z**k for k in range(low, high + 1)], axis=-2)


def _read(widths: Array, width: NDArray[np.intp], rate: Array, value: Array, seed: NDArray[np.intp]) -> _Trials:
    """Take logarithms, leave out widths with fewer than two rates, and give widths and seeds their levels."""
    used = [index for index in range(len(widths)) if len(np.unique(rate[width == index])) > 1]
    kept = np.isin(width, used)
    pairs = list(zip(width[kept].tolist(), seed[kept].tolist(), strict=True))
    # Seeds at few rates share the level of their width: with levels of their own, nothing would be left for the curve.
    names = [(index, s if pairs.count((index, s)) >= MIN_SEED_RATES else None) for index, s in pairs]
    level = np.array([[name == other for other in dict.fromkeys(names)] for name in names], dtype=np.float64)
    return _Trials(width[kept], np.log(rate[kept]), np.log(value[kept]), level, np.log(widths), used)


def _best_slope(trials: _Trials, degree: int) -> float | None:
    """Return the slope at which the aligned curves do not tilt with the width; None without one."""
    if np.ptp(trials.log_width[trials.used]) == 0 or trials.spare(degree + 1) < 1:
        return None
    t, _ = trials.on_line(SLOPES, degree)
    rises = np.flatnonzero((t[:-1] < 0) & (t[1:] >= 0))
    if not len(rises):
        return None
    # A cubic may have several; the one at which the curve fits best is meant.
    found = [
        optimize.brentq(lambda slope: float(trials.on_line(slope, degree)[0]), SLOPES[i], SLOPES[i + 1]) for i in rises
    ]
    return float(min(found, key=lambda slope: trials.on_line(slope, degree)[1]))


def _f_test(restricted: Any, free: float, more: int, spare: int) -> tuple[float, float | None]:
    """Compare a fit with one that has `more` terms and leaves `spare` degrees of freedom, by their RSS: F, p.

    Without a degree of freedom, F is 0 and p is None.
    """
    if more < 1 or spare < 1:
        return 0.0, None
    f = max(float(restricted) - free, 0.0) / more / (free / spare)
    return f, float(stats.f.sf(f, more, spare))


def _one_curve(trials: _Trials, columns: Array) -> float | None:
    """Return p of the test that all widths with three rates or more have one curvature; columns: of _tilted."""
    curved = [trials.rates(index) > 2 for index in trials.used]
    own = columns[: len(curved)][curved][1:] ** 2
    free = np.concatenate([columns, own])
    return _f_test(trials.rss(columns), trials.rss(free), len(own), trials.spare(len(free)))[1]


def _replicates(trials: _Trials, columns: Array) -> float | None:
    """Return p of the test that the curves describe the mean of each width at each rate; columns: of _tilted."""
    cells = np.stack([trials.width, np.unique(trials.rate, return_inverse=True)[1]], axis=1)
    _, cell = np.unique(cells, axis=0, return_inverse=True)
    free = np.concatenate([trials.level, cell.ravel()[:, None] == np.arange(cell.max() + 1)], axis=1)
    rank = int(np.linalg.matrix_rank(free))
    residuals = trials.value - free @ np.linalg.lstsq(free, trials.value)[0]
    rss, spare = float(residuals @ residuals) + trials.rounding, len(residuals) - rank
    return _f_test(trials.rss(columns), rss, trials.spare(len(columns)) - spare, spare)[1]


# ---------------------------------------------------------------- vertices


def _curves(trials: _Trials, columns: Array) -> dict[int, Curve]:
    """Fit the columns [terms, n] of _tilted, and return the curve of each width used, by its index."""
    design, count = trials.within(columns).T, len(trials.used)
    inverse = np.linalg.inv(design.T @ design)
    found = inverse @ (design.T @ trials.centred)
    spare, limit = trials.spare(len(columns)), math.inf
    if spare:
        limit = float(stats.t.ppf((1 + CONFIDENCE) / 2, spare)) ** 2 * trials.rss(columns) / spare
    curves, tried = {}, columns[:count].sum(axis=0)  # z of all trials
    for k, index in enumerate(trials.used):
        terms, mine = [k, *range(count, len(columns))], trials.width == index
        z = tried[mine]
        shift, level = float(np.mean(trials.rate[mine] - z)), np.mean(trials.value[mine] - columns[:, mine].T @ found)
        coefficients = (float(level), *found[terms].tolist())
        fall, near = Polynomial(coefficients).deriv(), (tried.min() - REACH, tried.max() + REACH)
        minima = [root for root in _real_roots(fall) if fall.deriv()(root) > 0 and near[0] < root < near[1]]
        vertex = min(minima, key=lambda root: abs(root - z.mean()), default=None)
        low = high = None
        if vertex is not None and spare:
            # Every z at which the slope of the curve does not differ significantly from 0: fall^2 <= limit * variance.
            powers = np.arange(1, len(terms) + 1)
            products = inverse[np.ix_(terms, terms)] * np.outer(powers, powers)
            variance = [np.trace(products[::-1], offset) for offset in range(1 - len(terms), len(terms))]
            ends = [_end(fall**2 - limit * Polynomial(variance), vertex, side) for side in (-1, 1)]
            if None not in ends:
                low, high = np.exp(np.array(ends, dtype=np.float64) + shift).tolist()
        rate = None if vertex is None else math.exp(shift + vertex)
        curves[index] = Curve(shift, coefficients, rate, low, high)
    return curves


def _end(excess: Polynomial, vertex: float, side: int) -> float | None:
    """Return the first z below (side -1) or above (1) the vertex at which the excess is above 0; None without one."""
    steps = vertex + side * STEPS
    outside = np.flatnonzero(excess(steps) > 0)
    if not len(outside) or excess(vertex) >= 0:  # at the vertex it is below 0, but for rounding
        return None
    return float(optimize.brentq(excess, vertex if outside[0] == 0 else steps[outside[0] - 1], steps[outside[0]]))


def _real_roots(polynomial: Polynomial) -> list[float]:
    """Return the real roots of a polynomial."""
    # A highest power that rounding alone has made would spoil all roots.
    return [float(root.real) for root in polynomial.trim(1e-9).roots() if abs(root.imag) < 1e-9]


# ---------------------------------------------------------------- slope


def _slope(trials: _Trials, degree: int, best: float | None, vertices: list[float | None], scatter: float) -> Slope:
    """Return the slope with its interval; scatter: F of the vertices' scatter about the line."""
    x, spare = trials.log_width[trials.used], trials.spare(degree + 1)
    if np.ptp(x) == 0:
        return _unknown("a slope needs grids at two widths or more")
    if spare < 1:
        return _unknown("no degree of freedom is left; add rates or seeds")
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, spare))
    low, high = (None, None) if best is None else _ends(trials, degree, best, quantile)
    if best is None or low is None or high is None:
        return _unknown("the curves bend too little for their noise; add seeds, or rates farther from the best ones")
    optima = [vertex for vertex in vertices if vertex is not None]
    if not optima:
        return _unknown("the curves have no minimum near the rates tried")
    if scatter > 1:
        # The scatter may be the widths' own, which more trials at these widths do not reduce.
        if len(optima) < len(x):
            return _unknown("optima scatter about a line by more than their noise, and not every width has one")
        line = stats.linregress(x, np.log(optima))
        half = slope_t_quantile(len(x)) * float(line.stderr)
        t, spare = [(line.slope - at) / max(line.stderr, LEAST_NOISE) for at in (-1, 0)], len(x) - 2
        best, low, high = float(line.slope), float(line.slope - half), float(line.slope + half)
        method = f"Student t over {len(x)} widths, because optima scatter about the line by more than their noise"
    else:
        t = trials.on_line([-1, 0], degree)[0].tolist()
        method = f"Student t over {len(trials.rate)} trials of {len(x)} widths"
    p_minus_one, p_zero = (float(2 * stats.t.sf(abs(one), spare)) for one in t)
    words = ["differs from" if p < 1 - CONFIDENCE else "consistent with" for p in (p_minus_one, p_zero)]
    verdict = f"{words[0]} -1 (p = {p_minus_one:.2g}), {words[1]} 0 (p = {p_zero:.2g})"
    return Slope(best, low, high, method, p_minus_one, p_zero, verdict)


def _ends(trials: _Trials, degree: int, best: float, quantile: float) -> list[float | None]:
    """Return the lowest and the highest slope that t does not reject; None for an end outside of SLOPES.

    With a cubic, t may also hold slopes apart from the best one. Only parts with -1 or 0 count, the slopes tested.
    """

    def beyond(slope: float) -> float:
        return abs(float(trials.on_line(slope, degree)[0])) - quantile

    rejected = SLOPES[np.abs(trials.on_line(SLOPES, degree)[0]) > quantile]
    parts = [best, *(at for at in (-1.0, 0.0) if beyond(at) <= 0)]
    ends: list[float | None] = []
    for side, inside in ((-1, min(parts)), (1, max(parts))):
        outside = rejected[side * (rejected - inside) > 0][::side]
        ends.append(float(optimize.brentq(beyond, inside, outside[0])) if len(outside) else None)
    return ends


def _unknown(why: str) -> Slope:
    return Slope(None, None, None, None, None, None, f"not identifiable: {why}")
