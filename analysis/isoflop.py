"""The best size at a compute without a law of size and length: approaches 1 and 2 of Hoffmann et al. (2022).

Approach 1 takes the lower envelope of all trajectories. Approach 2 puts a parabola in ln c through the sizes at each
of some computes. Parabolas are biased even without noise where the law falls with size and length by different powers
(Czech et al. 2026), so neither heads the answer; how far they are from the joint law shows what the form of a law does.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from analysis.checkpoints import Trajectories
from analysis.statistics import CONFIDENCE
from analysis.table import SAME_COMPUTE

Array = NDArray[np.float64]
MIN_SIZES, MIN_BUDGETS = 4, 2  # of a parabola with a degree of freedom; of a power of C
BUDGETS = 6  # computes of approach 2, where the sizes have none in common
ENVELOPE = 60  # computes of approach 1


@dataclass(frozen=True)
class Parabola:
    """ln value over ln c at one compute: q0 + q1 x + q2 x^2, its vertex with Fieller's 95 % interval (1954)."""

    gflops: float
    sizes: tuple[str, ...]
    log_costs: tuple[float, ...]
    log_values: tuple[float, ...]
    coefficients: tuple[float, float, float]
    vertex: float | None  # ln c; None if the parabola has no minimum within the sizes
    low: float | None  # None if the interval has no end
    high: float | None

    def to_json(self) -> dict[str, Any]:
        found = {key: value for key, value in vars(self).items() if not key.startswith("log_")}
        ends = {key: None if found[key] is None else math.exp(found[key]) for key in ("vertex", "low", "high")}
        points = {"costs": np.exp(self.log_costs).tolist(), "values": np.exp(self.log_values).tolist()}
        return found | points | ends


@dataclass(frozen=True)
class Approach:
    """The best c as a power of C: ln c = intercept + exponent ln C. `remark` says why there is none."""

    name: str
    exponent: float | None = None
    intercept: float | None = None
    remark: str = ""

    def cost(self, gflops: float) -> float | None:
        """Return the best cost, in GFLOPs per image, at a compute."""
        if self.exponent is None or self.intercept is None:
            return None
        return math.exp(self.intercept + self.exponent * math.log(gflops))


def by_size(found: Trajectories, kept: NDArray[np.bool_]) -> dict[int, tuple[Array, Array]]:
    """Return, for each size, ln C and mean ln value of its checkpoints at that C, by rising C; of those kept alone."""
    log_compute = np.log(found.compute)
    curves = {}
    for i in range(len(found.sizes)):
        of_size = (found.data.size == i) & kept
        if not of_size.any():
            continue
        x, y = log_compute[of_size], found.data.log_value[of_size]
        order = np.argsort(x, kind="stable")
        x, y = x[order], y[order]
        group = np.concatenate([[0], np.cumsum(np.diff(x) > SAME_COMPUTE)])
        count = np.bincount(group)
        curves[i] = np.bincount(group, x) / count, np.bincount(group, y) / count
    return curves


def at_compute(curves: dict[int, tuple[Array, Array]], log_compute: float) -> dict[int, float]:
    """Return ln value at a compute of each size that has checkpoints on both sides of it, by interpolation."""
    near = SAME_COMPUTE
    return {
        i: float(np.interp(log_compute, x, y))
        for i, (x, y) in curves.items()
        if x[0] - near <= log_compute <= x[-1] + near
    }


def envelope(found: Trajectories, kept: NDArray[np.bool_]) -> Approach:
    """Return approach 1: the size with the least value at each of many computes, where it is neither end of those."""
    curves, costs = by_size(found, kept), np.log([size.cost for size in found.sizes])
    ends = np.concatenate([x for x, _ in curves.values()])
    best = []
    for log_compute in np.linspace(ends.min(), ends.max(), ENVELOPE):
        there = at_compute(curves, float(log_compute))
        if len(there) >= 3 and (least := min(there, key=lambda i: there[i])) not in (min(there), max(there)):
            best.append((log_compute, costs[least]))
    if len({cost for _, cost in best}) < MIN_BUDGETS:
        return Approach("lower envelope", remark="fewer than two sizes are ever the best with others on both sides")
    slope, intercept = np.polyfit([c for c, _ in best], [cost for _, cost in best], 1)
    return Approach("lower envelope", float(slope), float(intercept))


def parabolas(found: Trajectories, kept: NDArray[np.bool_]) -> tuple[Parabola, ...]:
    """Return a parabola for each of some computes at which at least four sizes have a value."""
    curves, costs = by_size(found, kept), np.log([size.cost for size in found.sizes])
    made = []
    for log_compute in _budgets(curves):
        there = at_compute(curves, log_compute)
        x, y = costs[list(there)], np.array(list(there.values()))
        names = tuple(found.sizes[i].cell.label for i in there)
        made.append(parabola(math.exp(log_compute), names, x, y))
    return tuple(made)


def _budgets(curves: dict[int, tuple[Array, Array]]) -> list[float]:
    """Return ln C at which at least four sizes have a checkpoint; where there are few, even steps between them."""
    every = np.sort(np.concatenate([x for x, _ in curves.values()]))
    groups = np.split(every, np.flatnonzero(np.diff(every) > SAME_COMPUTE) + 1)
    shared = [float(group.mean()) for group in groups]
    shared = [
        c
        for c in shared
        if sum(bool((np.abs(x - c) <= 2 * SAME_COMPUTE).any()) for x, _ in curves.values()) >= MIN_SIZES
    ]
    if len(shared) > MIN_BUDGETS:
        return shared
    grid = np.linspace(every[0], every[-1], 10 * BUDGETS)
    possible = [float(c) for c in grid if len(at_compute(curves, float(c))) >= MIN_SIZES]
    # Between two such computes there may be some at which fewer sizes meet, if some were trained for longer.
    if not possible:
        return []
    chosen = np.unique(np.linspace(0, len(possible) - 1, BUDGETS).round().astype(int))
    return [possible[i] for i in chosen]


def parabola(gflops: float, sizes: tuple[str, ...], log_costs: ArrayLike, log_values: ArrayLike) -> Parabola:
    """Fit a parabola to at least four sizes, by least squares."""
    x, y = np.asarray(log_costs, dtype=np.float64), np.asarray(log_values, dtype=np.float64)
    middle = float(x.mean())
    design = np.vander(x - middle, 3, increasing=True)
    q = np.asarray(np.linalg.lstsq(design, y, rcond=None)[0], dtype=np.float64)
    degrees = len(x) - 3
    variance = float(((y - design @ q) ** 2).sum()) / degrees
    covariance = np.asarray(variance * np.linalg.inv(design.T @ design), dtype=np.float64)
    vertex: float | None = None
    ends: tuple[float | None, float | None] = (None, None)
    if q[2] > 0:
        at = middle - float(q[1] / (2 * q[2]))
        if x.min() <= at <= x.max():
            vertex, ends = at, _fieller(q, covariance, degrees, middle)
    shifted = (
        float(q[0] - q[1] * middle + q[2] * middle**2),
        float(q[1] - 2 * q[2] * middle),
        float(q[2]),
    )
    return Parabola(gflops, sizes, tuple(x.tolist()), tuple(y.tolist()), shifted, vertex, *ends)


def _fieller(q: Array, covariance: Array, degrees: int, middle: float) -> tuple[float | None, float | None]:
    """Return the 95 % interval of -q1 / (2 q2): where q1 + 2 q2 x does not differ significantly from 0."""
    t2 = float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees)) ** 2
    a = 4 * q[2] ** 2 - t2 * 4 * covariance[2, 2]
    b = 4 * q[1] * q[2] - t2 * 4 * covariance[1, 2]
    c = q[1] ** 2 - t2 * covariance[1, 1]
    root = b * b - 4 * a * c
    if a <= 0 or root < 0:
        return None, None
    low, high = sorted(((-b - math.sqrt(root)) / (2 * a), (-b + math.sqrt(root)) / (2 * a)))
    return middle + low, middle + high


def vertices(made: tuple[Parabola, ...]) -> Approach:
    """Return approach 2: the vertices as a power of C."""
    there = [(math.log(p.gflops), p.vertex) for p in made if p.vertex is not None]
    if len(there) < MIN_BUDGETS:
        return Approach(
            "isoFLOP parabolas", remark=f"{len(there)} of {len(made)} computes have a vertex within the sizes"
        )
    slope, intercept = np.polyfit([c for c, _ in there], [at for _, at in there], 1)
    return Approach("isoFLOP parabolas", float(slope), float(intercept))
