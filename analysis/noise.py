"""How far seeds spread, whether that grows with compute, and how far sizes stray from a law beside it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from analysis.points import Point

MIN_SPREADS, MIN_DEGREES = 3, 4  # points with several seeds, and their degrees of freedom, for a slope of the variance
STEEPEST = 4.0  # slope of ln variance over ln C at which the search ends


@dataclass(frozen=True)
class Noise:
    """Variance of a point's ln value: effect^2 + spread^2 C^slope / seeds, C in units of the points' mean.

    The slope is estimated by maximum likelihood from the spreads between seeds, the effect of the sizes from the
    points' distances from a power law (Paule and Mandel 1982). Without enough seeds all variances are equal.
    """

    mean_log_compute: float
    slope: float = 0.0
    spread: float = 0.0  # between seeds, at the points' mean ln C
    effect: float = 1.0  # standard deviation of sizes; 1 if all variances are equal
    slope_variance: float = 0.0  # of the estimate
    mean_of_spreads: float = 0.0  # ln C about which the slope turns, by its uncertainty
    p: float | None = None  # of slope 0, by the likelihood ratio
    not_possible: str = ""  # why the slope is not estimated

    def variance(self, compute: ArrayLike, seeds: ArrayLike) -> NDArray[np.float64]:
        """Return the variance at each C for a mean over so many seeds; only ratios count if all are equal."""
        log_c = np.log(np.asarray(compute, dtype=np.float64))
        within = self.spread**2 * np.exp(self.slope * (log_c - self.mean_log_compute))
        return np.asarray(self.effect**2 + within / np.asarray(seeds))

    def of_new(self, compute: ArrayLike, seeds: ArrayLike) -> NDArray[np.float64]:
        """Return the variance to expect of new points: the mean over what the slope may be, larger far away."""
        log_c = np.log(np.asarray(compute, dtype=np.float64))
        far = np.exp((log_c - self.mean_of_spreads) ** 2 * self.slope_variance / 2)
        return self.effect**2 + (self.variance(compute, seeds) - self.effect**2) * far


def _spreads(points: Sequence[Point]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return of each point with several seeds: ln C, sum of squares of ln value about its mean, degrees of freedom."""
    several = [(p.gflops, np.log(p.values)) for p in points if len(p.values) > 1]
    x = np.log([compute for compute, _ in several])
    squares = np.array([float(((logs - logs.mean()) ** 2).sum()) for _, logs in several])
    return x, squares, np.array([len(logs) - 1.0 for _, logs in several])


def seed_spread(points: Sequence[Point]) -> tuple[float, int] | None:
    """Return the standard deviation of ln value between seeds, pooled over points, and its degrees of freedom.

    None if no point has two seeds.
    """
    _, squares, degrees = _spreads(points)
    return (math.sqrt(float(squares.sum() / degrees.sum())), int(degrees.sum())) if len(degrees) else None


def estimate_noise(points: Sequence[Point]) -> Noise:
    """Estimate how the variance of points depends on compute and seeds."""
    log_c = np.log([p.gflops for p in points])
    x, squares, degrees = _spreads(points)
    centre, total = float(log_c.mean()), float(degrees.sum())
    why = ""
    if len(x) < MIN_SPREADS or total < MIN_DEGREES:
        why = f"{len(x)} points have several seeds, with {total:g} degrees of freedom; it needs 3 points with 4"
    elif np.ptp(x) < 1e-9 or squares.min() <= 0:
        why = "the points with several seeds do not differ in compute, or one does not differ between seeds"
    if why:
        return Noise(centre, not_possible=why)

    def spread(slope: float) -> float:
        return float((squares * np.exp(-slope * (x - centre))).sum()) / total

    def deviance(slope: float) -> float:
        return slope * float(degrees @ (x - centre)) + total * math.log(spread(slope))

    best = optimize.minimize_scalar(deviance, bounds=(-STEEPEST, STEEPEST), method="bounded")
    slope = float(best.x)
    p = float(stats.chi2.sf(max(deviance(0.0) - float(best.fun), 0.0), 1))
    seeds = np.array([len(point.values) for point in points])
    within = spread(slope) * np.exp(slope * (log_c - centre)) / seeds
    effect = _effect(log_c - centre, np.log([point.value for point in points]), within)
    middle = float(degrees @ x) / total
    slope_variance = 2 / float(degrees @ (x - middle) ** 2)  # that of ln s^2 is 2 over its degrees of freedom
    return Noise(centre, slope, math.sqrt(spread(slope)), effect, slope_variance, middle, p)


def _effect(x: NDArray[np.float64], y: NDArray[np.float64], within: NDArray[np.float64]) -> float:
    """Return the standard deviation of sizes at which the weighted squares about a line are as large as expected."""

    def excess(variance: float) -> float:
        w = 1 / (within + variance)
        u, v = x - w @ x / w.sum(), y - w @ y / w.sum()
        r = v - u * float(w * u @ v) / float(w * u @ u)
        return float(w @ r**2) - (len(x) - 2)

    if excess(0.0) <= 0:
        return 0.0
    return math.sqrt(optimize.brentq(excess, 0.0, 1e3 * float(np.var(y)) + 1e-12))
