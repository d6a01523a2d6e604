"""Power law with a floor, value = E + a C^-b, compared with the law without a floor.

The fit is that of the law without a floor: least squares on logarithms, with equal weights. It has no closed form, so
it starts from many places and records how each start ended. Intervals of b are profiles of the residual sum of squares
(an F test at every b), because linearised intervals are far off where a change of E makes up for a change of b.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from analysis.law import fit_power_law
from analysis.statistics import CONFIDENCE, aicc

Points = NDArray[np.float64]
# Starts of the fit: exponents, and floors as shares of the smallest value.
START_EXPONENTS = (0.1, 0.25, 0.5, 1.0, 2.0)
START_FLOORS = (0.0, 0.3, 0.6, 0.9)
EXPONENTS = (-1.0, 8.0)  # bounds of b; laws of interest lie inside
BELOW = 1 - 1e-9  # the largest floor as a share of the smallest value, so that the law has a part above the floor
ROUNDING = 1e-7  # of ln value: smaller residuals are rounding errors
SAME = 1e-6  # relative difference below which two objectives are the same optimum
PARAMETERS = {"power law": 3, "power law with floor": 4}  # sigma counted
SENSITIVITY = (0.0, 0.5, 0.9, 1.0, 1.1)  # factors of the pinned floor


@dataclass(frozen=True)
class Start:
    """Start of a fit, and the objective where it ended."""

    b: float
    floor: float
    objective: float  # residual sum of squares of ln value where it ended
    converged: bool


@dataclass(frozen=True)
class FloorLaw:
    """value = floor + a C^-b with the 95 % profile interval of b; an end is None where b has no bound on that side."""

    floor: float
    a: float
    b: float
    b_low: float | None
    b_high: float | None
    rss: float  # of ln value
    n: int
    starts: tuple[Start, ...]

    @property
    def agreeing(self) -> int:
        """Number of starts that ended at the optimum."""
        return sum(start.objective <= self.rss * (1 + SAME) + 1e-15 for start in self.starts)


def fit_floor_law(compute: ArrayLike, value: ArrayLike, floor: float | None = None) -> FloorLaw:
    """Fit value = E + a C^-b to points [n], all positive.

    floor: E if it is known, for example from the tokenizer's reconstruction distance; default: fitted.
    Raises ValueError for fewer than four points (three with a floor), for a floor that is not below every value, and
    when no start converges.
    """
    c, v = np.asarray(compute, dtype=np.float64), np.asarray(value, dtype=np.float64)
    least = 4 if floor is None else 3
    if len(c) < least or np.ptp(c) == 0:
        raise ValueError(f"a law with {'a' if floor is None else 'this'} floor needs {least} points at different C")
    if floor is not None and not 0 <= floor < v.min():
        raise ValueError(f"a floor of {floor:g} is not below the smallest value, {v.min():g}; give a lower one")
    x = np.log(c) - np.log(c).mean()
    starts = []
    best: NDArray[np.float64] | None = None
    rss = math.inf
    shares = START_FLOORS if floor is None else (0.0,)
    for b, share in itertools.product(START_EXPONENTS, shares):
        start_floor = share * float(v.min()) if floor is None else floor
        height = np.log(np.maximum(v - start_floor, 0.05 * v)).mean()
        free = [height, b] if floor is not None else [height, b, share * BELOW]
        found = _minimum(lambda p: _residuals(p, x, v, floor), free)
        starts.append(Start(b, start_floor, 2 * float(found.cost), bool(found.success)))
        if found.success and 2 * found.cost < rss:
            rss, best = 2 * float(found.cost), found.x
    if best is None:
        raise ValueError(
            f"none of {len(starts)} fits of a law with a floor converged; the points do not follow such a law"
        )
    fitted = floor if floor is not None else float(best[2]) * float(v.min())
    b = float(best[1])
    with np.errstate(over="ignore"):
        a = float(np.exp(best[0] + b * np.log(c).mean()))
    low, high = _profile_interval(x, v, floor, best, rss)
    return FloorLaw(fitted, a, b, low, high, rss, len(c), tuple(starts))


def _residuals(p: NDArray[np.float64], x: Points, v: Points, floor: float | None) -> Points:
    """Residuals of ln value; p = (ln of a C^-b at the mean of ln C, b, E over the smallest value)."""
    bottom = floor if floor is not None else p[2] * v.min()
    return np.log(v) - np.logaddexp(np.log(bottom) if bottom > 0 else -np.inf, p[0] - p[1] * x)


def _minimum(residuals: Callable[[NDArray[np.float64]], Points], start: list[float]) -> Any:
    low, high = [-np.inf, EXPONENTS[0], 0.0][: len(start)], [np.inf, EXPONENTS[1], BELOW][: len(start)]
    clipped = np.clip(start, np.array(low) + 1e-9, np.array(high) - 1e-9)
    return optimize.least_squares(
        residuals, clipped, bounds=(low, high), x_scale="jac", ftol=1e-12, xtol=1e-12, gtol=1e-12, max_nfev=500
    )


def _profile_interval(
    x: Points, v: Points, floor: float | None, best: NDArray[np.float64], rss: float
) -> tuple[float | None, float | None]:
    """Return the values of b at which the fit is just as bad as the F test allows; None on a side without one."""
    free = len(best)
    dof = len(x) - free
    if dof < 1:
        return None, None
    # Points exactly on a law leave only rounding errors, which the F test does not describe.
    limit = rss * (1 + stats.f.ppf(CONFIDENCE, 1, dof) / dof) + len(x) * ROUNDING**2
    others = [0] if floor is not None else [0, 2]
    centre = float(best[1])

    def excess(b: float) -> float:
        def at(p: NDArray[np.float64]) -> Points:
            whole = best.copy()
            whole[others], whole[1] = p, b
            return _residuals(whole, x, v, floor)

        low, high = [-np.inf, 0.0][: len(others)], [np.inf, BELOW][: len(others)]
        # The best floor changes with b, so the fit also starts near both ends of its range.
        starts = [best[others], *(np.array([best[0], share]) for share in (0.01, 0.99) if floor is None)]
        found = [optimize.least_squares(at, np.clip(p, low, high), bounds=(low, high)) for p in starts]
        return min(2 * float(one.cost) for one in found) - limit

    ends: list[float | None] = []
    for bound in EXPONENTS:
        step, inside = 0.05 * (1 if bound > centre else -1), centre
        end: float | None = None
        while True:
            outside = inside + step
            if (outside - bound) * step >= 0:
                break
            if excess(outside) > 0:
                end = float(optimize.brentq(excess, inside, outside, xtol=1e-5))
                break
            inside, step = outside, step * 1.5
        ends.append(end)
    return ends[0], ends[1]


def compare_floors(compute: ArrayLike, value: ArrayLike, pinned: float | None = None) -> dict[str, Any]:
    """Compare the law with a floor to the law without, for JSON.

    verdict: the law that AICc prefers, or `not identifiable` with too few points (AICc needs 5 for the law without a
    floor, 6 with one). pinned: the exponents at floors around the pinned one.
    Raises ValueError for a pinned floor that is not below every value.
    """
    c, v = np.asarray(compute, dtype=np.float64), np.asarray(value, dtype=np.float64)
    plain, n = fit_power_law(c, v), len(c)
    report: dict[str, Any] = {
        "power_law": {"a": plain.a, "b": plain.b, "aicc": aicc(plain.residual_std**2 * (n - 2), n, 3)},
        "with_floor": None,
    }
    if n >= 4:
        fit = fit_floor_law(c, v)
        report["with_floor"] = {
            **{key: item for key, item in asdict(fit).items() if key != "starts"},
            "starts": [asdict(start) for start in fit.starts],
            "starts_agreeing": fit.agreeing,
            "aicc": aicc(fit.rss, n, 4),
        }
    without = report["power_law"]["aicc"]
    with_floor = report["with_floor"] and report["with_floor"]["aicc"]
    if without is None or with_floor is None:
        least = max(PARAMETERS.values()) + 2
        report["verdict"] = f"not identifiable: {n} sizes, a comparison with and without a floor needs {least}"
    else:
        preferred = "with a floor" if with_floor < without else "without a floor"
        report["verdict"] = f"AICc prefers the law {preferred} by {abs(with_floor - without):.1f}"
    if pinned is not None:
        fits = [
            (factor * pinned, fit_floor_law(c, v, factor * pinned))
            for factor in SENSITIVITY
            if factor == 1 or factor * pinned < v.min()
        ]
        report["pinned"] = [
            {"floor": floor, "a": fit.a, "b": fit.b, "b_low": fit.b_low, "b_high": fit.b_high, "rss": fit.rss}
            for floor, fit in fits
        ]
    return report
