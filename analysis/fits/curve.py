"""The curve value = E + a C^-b through points, by least squares on logarithms, and all curves that fit nearly as well.

For a given floor E, the fit has two parameters and hardly any trouble, so the floor is searched on a grid, and every
interval is the range of something over all curves of the grid whose residual sum of squares lies below a limit: a
profile.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
FLOORS = 80  # on the grid
ROUNDS, FINER = 6, 17  # how often, and into how many, an interval of the grid is divided to find a floor
STEPS = 40  # at most, of a fit with a given floor
SETTLED = 1e-11  # relative decrease of the sum of squares below which a fit has converged
SHARES = 33  # of the way from the best fit to the end of a range, at which new points are tried
DOUBLINGS, HALVINGS, LONGEST = 8, 26, 30.0  # of the way to the end, to find it; the longest first step
STEEPEST = 60.0  # bound of b times the range of ln C; where a fit ends there, the points say nothing more about b


@dataclass(frozen=True)
class Fits:
    """The best fit for each of F floors: ln value = ln(E + exp(level - b x)), x = ln C less its mean."""

    floors: Array  # [F], E
    level: Array  # [F]
    b: Array  # [F]
    rss: Array  # [F], weighted, of ln value
    inverse: Array  # [F, 2, 2], of J'WJ for (level, b): the covariance but for the variance
    converged: NDArray[np.bool_]  # [F]

    @property
    def pairs(self) -> tuple[Array, Array]:
        return self.level, self.b

    def some(self, which: NDArray[np.bool_] | slice) -> "Fits":
        return Fits(*(part[which] for part in vars(self).values()))


def fit_floors(
    compute: ArrayLike,
    value: ArrayLike,
    floors: ArrayLike,
    weights: ArrayLike | None = None,
    near: Fits | None = None,
) -> Fits:
    """Fit level and b for each of the floors [F] to points [n], all positive.

    weights [n]: of the squared residuals. near: fits for other floors, between which the fits start.
    """
    c, v = np.asarray(compute, dtype=np.float64), np.asarray(value, dtype=np.float64)
    e = np.atleast_1d(np.asarray(floors, dtype=np.float64))
    w = np.ones_like(c) if weights is None else np.asarray(weights, dtype=np.float64)
    x, y = np.log(c) - np.log(c).mean(), np.log(v)

    p = _line_above(e, x, v, w) if near is None else np.stack([np.interp(e, near.floors, q) for q in near.pairs], 1)
    rss, part, r = _residuals(p, e, x, y, w)
    damping, done = np.full(len(e), 1e-4), np.zeros(len(e), dtype=bool)
    steepest = STEEPEST / float(np.ptp(x))
    for _ in range(STEPS):
        s0, s1, s2 = _sums(w * part**2, x)
        new = p + _solve(s0 * (1 + damping), s1, s2 * (1 + damping) + 1e-12, w * part * r, x)
        new[:, 1] = np.clip(new[:, 1], -steepest, steepest)
        new_rss, new_part, new_r = _residuals(new, e, x, y, w)
        closer = new_rss <= rss
        done |= closer & (rss - new_rss <= SETTLED * rss + 1e-28)
        p, part, r = (np.where(closer[:, None], a, b) for a, b in ((new, p), (new_part, part), (new_r, r)))
        rss = np.where(closer, new_rss, rss)
        damping = np.where(closer, damping / 10, damping * 10)
        if (done | (damping > 1e8)).all():
            break
    s0, s1, s2 = _sums(w * part**2 + 1e-12, x)  # under the highest floors hardly anything falls, and b is anything
    determinant = np.maximum(s0 * s2 - s1**2, 1e-30)
    inverse = np.stack([np.stack([s2, -s1], axis=1), np.stack([-s1, s0], axis=1)], axis=1) / determinant[:, None, None]
    return Fits(e, p[:, 0], p[:, 1], rss, inverse, done | (damping > 1e8))


def _line_above(floors: Array, x: Array, v: Array, w: Array) -> Array:
    """Return the line through ln(value - E) for each floor, where a value counts by how far it is above the floor.

    Without a floor it is the fit itself.
    """
    gap = np.maximum(v - floors[:, None], 0.02 * v)
    shares = w * (gap / v) ** 2
    return _solve(*_sums(shares, x), shares * np.log(gap), x)


def _residuals(p: Array, floors: Array, x: Array, y: Array, w: Array) -> tuple[Array, Array, Array]:
    """Return (weighted sum of squares [F], the falling part's share of the curve [F, n], residuals [F, n])."""
    falling = p[:, :1] - p[:, 1:] * x
    with np.errstate(divide="ignore"):
        curve = np.logaddexp(np.log(floors)[:, None], falling)
    r = y - curve
    return (w * r**2).sum(axis=1), np.exp(falling - curve), r


def _sums(weights: Array, x: Array) -> tuple[Array, Array, Array]:
    """Sums [F] of the normal equations of (level, b): 1 x 1, 1 x -x, x x x."""
    s0, s1, s2 = (weights @ np.stack([np.ones_like(x), -x, x * x], axis=1)).T
    return s0, s1, s2


def _solve(s0: Array, s1: Array, s2: Array, terms: Array, x: Array) -> Array:
    """Solve the normal equations whose right sides are the sums of terms [F, n] and of -x terms."""
    g0, g1 = (terms @ np.stack([np.ones_like(x), -x], axis=1)).T
    determinant = np.maximum(s0 * s2 - s1**2, 1e-300)
    return np.stack([s2 * g0 - s1 * g1, s0 * g1 - s1 * g0], axis=1) / determinant[:, None]


@dataclass(frozen=True)
class Region:
    """All curves whose weighted sum of squares is at most `limit`, by the best fit for each of a grid of floors.

    The range of something within one floor is searched along one line through the best fit, in the direction in which a
    linear fit would reach that range. Without a floor the fit is linear, and the range is exactly that of Student's t.
    """

    fits: Fits
    limit: float
    log_compute: Array  # [n], less their mean
    log_value: Array  # [n]
    weights: Array  # [n]
    mean_log_compute: float
    open_above: bool  # larger floors than those that were tried would also fit
    given: bool = False  # the floor is known from elsewhere, and the value may rise from it

    def exponents(self) -> tuple[float | None, float | None]:
        """Return the range of b; None for an end where b has no bound."""
        reached = self._reach(np.array([0.0]), np.array([1.0]))[..., 1]  # [1, F, 2]
        low, high = float(reached.min()), float(reached.max())
        bounded = low > -0.999 * self._steepest, high < 0.999 * self._steepest and not self.open_above
        return low if bounded[0] else None, high if bounded[1] else None

    def floors(self) -> tuple[float, float | None]:
        """Return the range of E; None for an upper end beyond what was tried."""
        return float(self.fits.floors.min()), None if self.open_above else float(self.fits.floors.max())

    def values(self, compute: ArrayLike, new: ArrayLike | None = None) -> tuple[Array, Array]:
        """Return (low, high) at each C: of the curve, or of new points whose squared residuals have weight `new`.

        A new point lies in its interval if a curve fits the points and the new one together within the limit.
        """
        x = np.log(np.asarray(compute, dtype=np.float64)).ravel() - self.mean_log_compute  # [C]
        ends = self._reach(np.ones_like(x), -x)  # [C, F, 2, parameter]
        if new is None:
            curve = self._curve(ends, x)
            return np.exp(curve.min(axis=(1, 2))), np.exp(curve.max(axis=(1, 2)))
        weight = np.broadcast_to(np.asarray(new, dtype=np.float64), x.shape)[:, None, None]
        best = self._best[:, None]  # [F, 1, parameter]
        low, high = np.full(len(x), np.inf), np.full(len(x), -np.inf)
        for share in np.sin(np.linspace(0, np.pi / 2, SHARES)):  # of the way to the end
            theta = best + share * (ends - best)
            room = np.sqrt(np.maximum(self.limit - self._rss(theta), 0.0) / weight)
            curve = self._curve(theta, x)
            low = np.minimum(low, (curve - room).min(axis=(1, 2)))
            high = np.maximum(high, (curve + room).max(axis=(1, 2)))
        with np.errstate(over="ignore"):
            return np.exp(low), np.exp(high)

    @property
    def _steepest(self) -> float:
        return STEEPEST / float(np.ptp(self.log_compute))

    @property
    def _best(self) -> Array:
        return np.stack([self.fits.level, self.fits.b], axis=-1)  # [F, parameter]

    def _reach(self, of_level: Array, of_b: Array) -> Array:
        """Return the parameters [K, F, 2, parameter] at both ends of the range of K sums of level and b."""
        inverse = self.fits.inverse
        asked = np.stack([of_level, of_b], axis=-1)
        step = np.einsum("fij,kj->kfi", inverse, asked)  # [K, F, parameter]
        slack = np.maximum(self.limit - self.fits.rss, 0.0)
        squared = np.maximum(np.einsum("kfi,ki->kf", step, asked), 1e-300)
        step = step * np.sqrt(slack / squared)[..., None]
        step = step / np.maximum(1.0, np.abs(step).max(axis=-1, keepdims=True) / LONGEST)
        step = np.stack([step, -step], axis=2)
        inside, outside = np.zeros(step.shape[:3]), np.ones(step.shape[:3])
        for _ in range(DOUBLINGS):
            within = self._within(outside, step)
            inside, outside = np.where(within, outside, inside), np.where(within, 2 * outside, outside)
            if not within.any():
                break
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            within = self._within(middle, step)
            inside, outside = np.where(within, middle, inside), np.where(within, outside, middle)
        return self._best[:, None] + inside[..., None] * step

    def _within(self, length: Array, step: Array) -> NDArray[np.bool_]:
        theta = self._best[:, None] + length[..., None] * step
        b = theta[..., 1]
        falls = (self.fits.floors[:, None] == 0) | (b >= 0) | self.given
        bounded = falls & (np.abs(b) <= self._steepest)
        # The tolerance keeps the ends of a linear fit, which lie on the limit.
        return bounded & (self._rss(theta) <= self.limit * (1 + 1e-12))

    def _rss(self, theta: Array) -> Array:
        """Weighted sum of squares of curves [..., F, 2, parameter], for the floor of each."""
        floors = self.fits.floors[:, None, None]
        falling = theta[..., :1] - theta[..., 1:] * self.log_compute
        with np.errstate(divide="ignore"):
            r = self.log_value - np.logaddexp(np.log(floors), falling)
        return np.asarray((self.weights * r**2).sum(axis=-1))

    def _curve(self, theta: Array, x: Array) -> Array:
        """ln value of curves [C, F, 2, parameter] at x [C]."""
        with np.errstate(divide="ignore"):
            floor = np.log(self.fits.floors)[:, None]
        return np.asarray(np.logaddexp(floor, theta[..., 0] - theta[..., 1] * x[:, None, None]))


def scan_floors(compute: ArrayLike, value: ArrayLike, weights: ArrayLike | None = None) -> Fits:
    """Fit a grid of floors, from 0 to the geometric mean of the values; the best floor is one of them."""
    c, v = np.asarray(compute, dtype=np.float64), np.asarray(value, dtype=np.float64)
    high = float(np.exp(np.log(v).mean()))
    fits = fit_floors(c, v, np.linspace(0, high, FLOORS), weights)
    width = high / (FLOORS - 1)
    for _ in range(ROUNDS):
        best = float(fits.floors[fits.rss.argmin()])
        near = np.linspace(max(0.0, best - width), min(best + width, high), FINER)
        fits = _joined(fits, fit_floors(c, v, near, weights, fits))
        width = 2 * width / (FINER - 1)
    return fits


def region(
    compute: ArrayLike, value: ArrayLike, scanned: Fits, limit: float, weights: ArrayLike | None = None
) -> Region:
    """Find all floors E >= 0 under which a curve has a weighted sum of squares of at most `limit`.

    A curve with a floor falls towards it (b >= 0), unless the floor is given.
    scanned: by scan_floors; or one fit alone, if its floor is not doubted.
    """
    c, v = np.asarray(compute, dtype=np.float64), np.asarray(value, dtype=np.float64)
    w = np.ones_like(c) if weights is None else np.asarray(weights, dtype=np.float64)
    mean = float(np.log(c).mean())
    data = np.log(c) - mean, np.log(v), w, mean
    if len(scanned.floors) == 1:
        return Region(scanned, limit, *data, open_above=False, given=True)
    inside = scanned.floors[scanned.rss <= limit]
    width = float(scanned.floors[-1]) / (FLOORS - 1)
    open_above = bool(inside.max() >= scanned.floors[-1])
    for _ in range(ROUNDS // 2):  # the ends, more finely
        ends = [np.linspace(max(0.0, end - width), end + width, FINER) for end in (inside.min(), inside.max())]
        near = fit_floors(c, v, np.concatenate(ends), weights, scanned)
        inside, width = np.append(inside, near.floors[near.rss <= limit]), 2 * width / (FINER - 1)
    grid = np.unique(
        [*np.linspace(inside.min(), inside.max(), FLOORS // 2), *scanned.floors[scanned.rss <= limit][::4]]
    )
    fits = fit_floors(c, v, grid, weights, scanned)
    kept = (fits.rss <= limit) & ((fits.floors == 0) | (fits.b >= 0))
    return Region(fits.some(kept), limit, *data, open_above)


def _joined(fits: Fits, more: Fits) -> Fits:
    """Return both, by rising floor, each floor once."""
    _, which = np.unique(np.concatenate([fits.floors, more.floors]), return_index=True)
    return Fits(*(np.concatenate(pair)[which] for pair in zip(vars(fits).values(), vars(more).values(), strict=True)))
