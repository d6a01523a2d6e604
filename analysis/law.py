"""The scaling law of the paper's Fig. 21: metric = a C^-b, fitted to logarithms, with intervals.

The intervals are Student-t with n - 2 degrees of freedom, because a sweep has only a few sizes: at n = 4 they cover
95 %, where bootstraps cover 67 to 91 %.
"""

import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from analysis.statistics import Correlation, pearson, slope_t_quantile
from analysis.table import (
    UNIT,
    Cell,
    Excluded,
    Protocol,
    Table,
    Trial,
    gflops,
    json_head,
    one_protocol,
    replicates,
    strict_json,
)

MIN_SIZES = 3  # two points leave no degree of freedom
CONVENTIONS = (
    "C and the generator's forward cost are in GFLOPs as the paper and DiT count them: multiply-adds / 1e9. "
    "The run table's flops count 2 per multiply-add, so GFLOPs = flops / 2 / 1e9. "
    "C is training compute; a point is the mean over seeds of the last evaluation, at the mean C."
)


@dataclass(frozen=True)
class PowerLaw:
    """value = a C^-b by least squares on logarithms; 95 % Student-t intervals, n - 2 degrees of freedom."""

    a: float
    a_low: float
    a_high: float
    b: float
    b_low: float
    b_high: float
    n: int
    residual_std: float  # of ln value
    mean_log_compute: float
    mean_log_value: float  # the line is drawn from the mean point: at C = 1, a may be too large for a float
    log_compute_ss: float  # sum of squares of ln C about its mean

    def predict(self, compute: ArrayLike) -> NDArray[np.float64]:
        """Return the value of the law at each C."""
        x = np.log(np.asarray(compute, dtype=np.float64))
        return np.exp(self.mean_log_value - self.b * (x - self.mean_log_compute))

    def band(self, compute: ArrayLike, of: int = 1) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (low, high) of the 95 % prediction interval at each C, for the mean of `of` new points."""
        x = np.log(np.asarray(compute, dtype=np.float64))
        spread = np.sqrt(1 / of + 1 / self.n + (x - self.mean_log_compute) ** 2 / self.log_compute_ss)
        half = slope_t_quantile(self.n) * self.residual_std * spread
        centre = self.mean_log_value - self.b * (x - self.mean_log_compute)
        with np.errstate(over="ignore"):  # with one degree of freedom the upper end may be infinite
            return np.exp(centre - half), np.exp(centre + half)


def fit_power_law(compute: ArrayLike, value: ArrayLike) -> PowerLaw:
    """Fit value = a C^-b to points [n], both positive; the unit of C is the caller's.

    Raises ValueError for fewer than three points, or if all have the same C.
    """
    c, v = np.asarray(compute, dtype=np.float64), np.asarray(value, dtype=np.float64)
    assert c.shape == v.shape and c.ndim == 1 and (c > 0).all() and (v > 0).all()
    x, y, n = np.log(c), np.log(v), len(c)
    if n < MIN_SIZES:
        raise ValueError(f"a power law needs at least {MIN_SIZES} points, got {n}")
    if np.ptp(x) == 0:
        raise ValueError("a power law needs points at different compute, and all points have the same")
    centred = x - x.mean()
    ss = float(centred @ centred)
    slope = float(centred @ (y - y.mean())) / ss
    intercept = float(y.mean() - slope * x.mean())
    residuals = y - intercept - slope * x
    residual_std = math.sqrt(float(residuals @ residuals) / (n - 2))

    t = slope_t_quantile(n)
    half_b = t * residual_std / math.sqrt(ss)
    half_a = t * residual_std * math.sqrt(1 / n + float(x.mean()) ** 2 / ss)
    with np.errstate(over="ignore"):
        a, a_low, a_high = np.exp([intercept, intercept - half_a, intercept + half_a]).tolist()
    b = -slope
    return PowerLaw(a, a_low, a_high, b, b - half_b, b + half_b, n, residual_std, float(x.mean()), float(y.mean()), ss)


@dataclass(frozen=True)
class Point:
    """One size: means over its complete trials."""

    cell: Cell
    gflops: float  # training compute C, multiply-adds / 1e9
    g_forward_gflops: float  # one generator forward of one sample, multiply-adds / 1e9
    value: float
    trials: tuple[str, ...]
    values: tuple[float, ...]  # of each trial, for the spread between training seeds

    def to_json(self) -> dict[str, Any]:
        return {**self.cell._asdict(), **{key: item for key, item in vars(self).items() if key != "cell"}}


@dataclass(frozen=True)
class Law:
    """The fit, the points it was fitted to, and the trials left out."""

    fit: PowerLaw
    measured: Protocol
    points: tuple[Point, ...]  # by rising C
    excluded: tuple[Excluded, ...]
    pearson_gflops: Correlation  # value against the generator's forward GFLOPs
    pearson_log_gflops: Correlation
    spearman: float | None

    def to_json(self) -> dict[str, Any]:
        """Return strictly valid JSON: a number that is not finite, such as an end of a very wide interval, is null."""
        fit = asdict(self.fit)
        report: dict[str, Any] = {
            "law": f"{self.measured.metric} = a * C^-b",
            **{key: fit[key] for key in ("b", "b_low", "b_high", "a", "a_low", "a_high", "n")},
            "degrees_of_freedom": self.fit.n - 2,
            "residual_std_log": self.fit.residual_std,
            "pearson_gflops": self.pearson_gflops.r,
            "pearson_gflops_low": self.pearson_gflops.low,
            "pearson_gflops_high": self.pearson_gflops.high,
            "pearson_log_gflops": self.pearson_log_gflops.r,
            "pearson_log_gflops_low": self.pearson_log_gflops.low,
            "pearson_log_gflops_high": self.pearson_log_gflops.high,
            "spearman": self.spearman,
            **json_head(self.measured),
            "unit": UNIT,
            "conventions": CONVENTIONS,
            "points": [point.to_json() for point in self.points],
            "excluded": [trial.to_json() for trial in self.excluded],
        }
        return strict_json(report)


def fit_law(table: Table) -> Law:
    """Fit the law through the table's sizes, one point each (the paper's Fig. 21).

    Raises ValueError, in one line, if final evaluations were made in different ways (metric, number of images,
    reference, protocol), if trials of a size differ in more than the seed, or if fewer than three sizes are complete.
    """
    trials, excluded = table.complete(), table.excluded()
    measured = one_protocol(trials)
    replicates(trials)
    by_cell: dict[Cell, list[Trial]] = defaultdict(list)
    for trial in trials:
        by_cell[trial.cell].append(trial)
    if measured is None or len(by_cell) < MIN_SIZES:
        found = f" ({', '.join(cell.label for cell in by_cell)})" if by_cell else ""
        left_out = "; ".join(f"{e.trial} ({e.cell.label}): {e.reason}" for e in excluded)
        raise ValueError(
            f"a law needs at least {MIN_SIZES} complete sizes, this table has {len(by_cell)}{found}; "
            f"left out: {left_out or 'none'}"
        )
    points = sorted((_point(cell, members) for cell, members in by_cell.items()), key=lambda p: p.gflops)
    value = [p.value for p in points]
    forward = np.array([p.g_forward_gflops for p in points])
    return Law(
        fit=fit_power_law([p.gflops for p in points], value),
        measured=measured,
        points=tuple(points),
        excluded=tuple(excluded),
        pearson_gflops=pearson(forward, value),
        pearson_log_gflops=pearson(np.log(forward), value),
        spearman=pearson(stats.rankdata(forward), stats.rankdata(value)).r,
    )


def _point(cell: Cell, trials: list[Trial]) -> Point:
    values = tuple(t.last.value for t in trials)
    return Point(
        cell=cell,
        gflops=gflops(fmean(t.last.flops for t in trials)),
        g_forward_gflops=gflops(fmean(t.last.g_forward_flops for t in trials)),
        value=fmean(values),
        trials=tuple(t.name for t in trials),
        values=values,
    )
