"""The curve value = E + a C^-b through points, by least squares on logarithms, and all curves that fit nearly as well.

For a given floor E, the fit has two parameters and hardly any trouble, so the floor is searched on a grid, and every
interval is the range of something over all floors of the grid whose best fit lies below a limit: a profile of the
residual sum of squares. Within one floor the ranges follow from the linearised fit; without a floor the fit is linear
and they are exactly those of Student's t.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
FLOORS = 80  # on the grid
ROUNDS, FINER = 6, 17  # how often, and into how many, an interval of the grid is divided to find a floor
STEPS = 60  # at most, of a fit with a given floor
SETTLED = 1e-11  # relative decrease of the sum of squares below which a fit has converged
EXPONENTS = (-2.0, 20.0)  # bounds of b; where a fit ends there, the points say nothing more about b


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
    for _ in range(STEPS):
        sums = _sums(w * part**2, x)
        gradient = (w * part * r).sum(axis=1), -(w * part * x * r).sum(axis=1)
        step = _solve(sums[0] * (1 + damping), sums[1], sums[2] * (1 + damping) + 1e-12, *gradient)
        new = p + step
        new[:, 1] = np.clip(new[:, 1], *EXPONENTS)
        new_rss, new_part, new_r = _residuals(new, e, x, y, w)
        closer = new_rss <= rss
        done |= closer & (rss - new_rss <= SETTLED * rss + 1e-28)
        p, part, r = (np.where(closer[:, None], a, b) for a, b in ((new, p), (new_part, part), (new_r, r)))
        rss = np.where(closer, new_rss, rss)
        damping = np.where(closer, damping / 10, damping * 10)
        if (done | (damping > 1e8)).all():
            break
    s0, s1, s2 = _sums(w * part**2, x)
    determinant = np.maximum(s0 * s2 - s1**2, 1e-300)
    inverse = np.stack([np.stack([s2, -s1], axis=1), np.stack([-s1, s0], axis=1)], axis=1) / determinant[:, None, None]
    return Fits(e, p[:, 0], p[:, 1], rss, inverse, done | (damping > 1e8))


def _line_above(floors: Array, x: Array, v: Array, w: Array) -> Array:
    """Return the line through ln(value - E) for each floor, where a value counts by how far it is above the floor.

    Without a floor it is the fit itself.
    """
    gap = np.maximum(v - floors[:, None], 0.02 * v)
    shares = w * (gap / v) ** 2
    return _solve(*_sums(shares, x), (shares * np.log(gap)).sum(axis=1), -(shares * x * np.log(gap)).sum(axis=1))


def _residuals(p: Array, floors: Array, x: Array, y: Array, w: Array) -> tuple[Array, Array, Array]:
    """Return (weighted sum of squares [F], the falling part's share of the curve [F, n], residuals [F, n])."""
    falling = p[:, :1] - p[:, 1:] * x
    with np.errstate(divide="ignore"):
        curve = np.logaddexp(np.log(floors)[:, None], falling)
    r = y - curve
    return (w * r**2).sum(axis=1), np.exp(falling - curve), r


def _sums(weights: Array, x: Array) -> tuple[Array, Array, Array]:
    """Sums [F] of the normal equations of (level, b): 1 x 1, 1 x -x, x x x."""
    return weights.sum(axis=1), -(weights * x).sum(axis=1), (weights * x * x).sum(axis=1)


def _solve(s0: Array, s1: Array, s2: Array, g0: Array, g1: Array) -> Array:
    determinant = np.maximum(s0 * s2 - s1**2, 1e-300)
    return np.stack([s2 * g0 - s1 * g1, s0 * g1 - s1 * g0], axis=1) / determinant[:, None]


@dataclass(frozen=True)
class Region:
    """All curves whose weighted sum of squares is at most `limit`, as fits for a grid of floors within it."""

    fits: Fits
    best: float  # the floor of the best fit of the law that was chosen
    limit: float
    mean_log_compute: float
    open_above: bool  # larger floors than those that were tried would also fit

    @property
    def slack(self) -> Array:
        return np.maximum(self.limit - self.fits.rss, 0.0)

    def exponents(self) -> tuple[float | None, float | None]:
        """Return the range of b; None for an end where b has no bound."""
        b, half = self.fits.b, np.sqrt(self.slack * self.fits.inverse[:, 1, 1])
        # The higher the floor, the steeper is the part above it. Near the highest floors the fit is far from linear.
        lower = self.fits.floors <= self.best
        low, high = float((b - half)[lower].min()), float((b + half).max())
        return low if low > EXPONENTS[0] else None, high if high < EXPONENTS[1] and not self.open_above else None

    def floors(self) -> tuple[float, float | None]:
        """Return the range of E; None for an upper end beyond what was tried."""
        return float(self.fits.floors.min()), None if self.open_above else float(self.fits.floors.max())

    def values(self, compute: ArrayLike, new: ArrayLike | None = None) -> tuple[Array, Array]:
        """Return (low, high) at each C: of the curve, or of new points whose squared residuals have weight `new`."""
        x = np.log(np.asarray(compute, dtype=np.float64)).reshape(-1, 1) - self.mean_log_compute  # [C, 1]
        falling = self.fits.level - self.fits.b * x
        with np.errstate(divide="ignore"):
            centre = np.logaddexp(np.log(self.fits.floors), falling)  # [C, F]
        part = np.exp(falling - centre)
        inverse = self.fits.inverse
        variance = part**2 * (inverse[:, 0, 0] - 2 * x * inverse[:, 0, 1] + x**2 * inverse[:, 1, 1])
        if new is not None:
            variance = variance + 1 / np.broadcast_to(np.asarray(new, dtype=np.float64), (len(x),))[:, None]
        half = np.sqrt(self.slack * np.maximum(variance, 0.0))  # rounding may leave less than 0 near the highest floors
        with np.errstate(over="ignore"):
            return np.exp((centre - half).min(axis=1)), np.exp((centre + half).max(axis=1))


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
    compute: ArrayLike, value: ArrayLike, scanned: Fits, chosen: float, limit: float, weights: ArrayLike | None = None
) -> Region:
    """Find all floors E >= 0 under which a curve has a weighted sum of squares of at most `limit`.

    scanned: by scan_floors; or one fit alone, if its floor is not doubted. chosen: the floor of the chosen law.
    """
    c, v = np.asarray(compute, dtype=np.float64), np.asarray(value, dtype=np.float64)
    mean = float(np.log(c).mean())
    if len(scanned.floors) == 1:
        return Region(scanned, chosen, limit, mean, open_above=False)
    inside = scanned.floors[scanned.rss <= limit]
    width = float(scanned.floors[-1]) / (FLOORS - 1)
    open_above = bool(inside.max() >= scanned.floors[-1])
    for _ in range(ROUNDS // 2):  # the ends, more finely
        ends = [np.linspace(max(0.0, end - width), end + width, FINER) for end in (inside.min(), inside.max())]
        near = fit_floors(c, v, np.concatenate(ends), weights, scanned)
        inside, width = np.append(inside, near.floors[near.rss <= limit]), 2 * width / (FINER - 1)
    grid = np.unique(
        [*np.linspace(inside.min(), inside.max(), 2 * FLOORS), scanned.floors[scanned.rss.argmin()], chosen]
    )
    fits = fit_floors(c, v, grid, weights, scanned)
    return Region(fits.some(fits.rss <= limit), chosen, limit, mean, open_above)


def _joined(fits: Fits, more: Fits) -> Fits:
    """Return both, by rising floor, each floor once."""
    _, which = np.unique(np.concatenate([fits.floors, more.floors]), return_index=True)
    return Fits(*(np.concatenate(pair)[which] for pair in zip(vars(fits).values(), vars(more).values(), strict=True)))
