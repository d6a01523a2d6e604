"""Which next cell narrows the interval of the largest size most per unit of compute: design algebra, no simulation.

A size strays from the law by what is its own (variance `between`), and by its seeds (variance `seeds` / how many).
Both are estimated from the table and taken for known; a new cell is expected to fall on the law. What narrows is the
interval of the law at the target; a prediction interval also holds the straying of the target itself, which no other
cell changes.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
from scipy import stats

from analysis.law import Point, PowerLaw, fit_law
from analysis.scrutiny import seed_spread
from analysis.statistics import CONFIDENCE
from analysis.table import UNIT, Table

SHOWN = 5
ROUNDING = 1e-9  # of ln value: what points on a law exactly stray by


@dataclass(frozen=True)
class Candidate:
    """A cell that could be trained next."""

    what: str
    gflops: float  # of all its trials
    trials: int
    half_width: float  # of ln value at the target, expected once it is there
    prediction_half_width: float  # of a size there, with as many seeds as now
    gain: float  # by which the half-width falls
    gain_per_gflop: float


@dataclass(frozen=True)
class Advice:
    """Candidates by falling gain per GFLOP."""

    metric: str
    target: str
    target_gflops: float
    half_width: float  # of ln value at the target, now
    prediction_half_width: float
    between: float  # standard deviations of ln value
    seeds: float | None
    candidates: tuple[Candidate, ...]
    remarks: tuple[str, ...]
    trials: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        found = {name: value for name, value in asdict(self).items() if name not in ("candidates", "remarks", "trials")}
        best = max(self.candidates, key=lambda candidate: candidate.gain)
        return {
            **found,
            "unit": UNIT,
            "confidence": CONFIDENCE,
            "candidates": [asdict(candidate) for candidate in self.candidates],
            "largest_gain": best.what,
            "remarks": list(self.remarks),
            "fitted_to": [{"trials": list(self.trials)}],
        }


def analyse(table: Table, target_gflops: float | None = None, candidates: Sequence[float] | None = None) -> Advice:
    """Compare one more seed of each size, sizes between neighbours, and one below and one above all.

    target_gflops: training compute at which the law is to be known, the largest size's unless given. candidates:
    compute of one trial each, in GFLOPs, of the new sizes to compare in the place of those said.
    Half-widths are of ln value, at 95 %; they use Student's t with n - 2 degrees of freedom, so that a new size gains
    one and a new seed none. Variances stay as they are estimated now, which is expected of them, not known.
    Raises ValueError as fit_law does, for points exactly on a law, and for compute that is not positive.
    """
    law = fit_law(table)
    points, largest = law.points, law.points[-1]
    target = largest.gflops if target_gflops is None else target_gflops
    if not all(0 < c < math.inf for c in (target, *(candidates or ()))):
        raise ValueError("target and candidates are training compute: give positive numbers of GFLOPs")
    spread = seed_spread(points)
    counts = np.array([len(point.values) for point in points])
    noise = 0.0 if spread is None else spread**2
    # What sizes stray by themselves is what is left of the residual once the seeds' share is taken off.
    between = max(0.0, law.fit.residual_std**2 - noise * fmean(1 / counts))
    if between + noise < ROUNDING**2:
        raise ValueError("the points lie on a law exactly: no cell narrows an interval that has no width")
    x = np.log([point.gflops for point in points])
    at = math.log(target)

    def widths(x: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
        """(of the law, of a prediction of the target) at the target."""
        variance = between + noise / counts
        design = np.stack([np.ones_like(x), x], axis=1)
        covariance = np.linalg.inv(design.T @ (design / variance[:, None]))
        there = np.array([1.0, at])
        curve = float(there @ covariance @ there)
        t = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 2))
        return t * math.sqrt(curve), t * math.sqrt(curve + between + noise / counts_of_target)

    usual = max(1, round(float(np.median(counts))))
    counts_of_target = len(largest.values) if target_gflops is None else usual
    now, now_prediction = widths(x, counts)
    found = []
    for what, cost, trials, new_x, new_counts in [
        *_more_seeds(points, x, counts, spread),
        *_new_sizes(points, x, counts, usual, candidates),
    ]:
        after, prediction = widths(new_x, new_counts)
        found.append(Candidate(what, cost, trials, after, prediction, now - after, (now - after) / cost))
    found.sort(key=lambda candidate: -candidate.gain_per_gflop)
    remarks = [f"{len(points)} sizes: another adds a degree of freedom, from {len(points) - 2} to {len(points) - 1}"]
    if spread is None:
        remarks.append("no size has two seeds: what seeds stray by is not known, and only new sizes are compared")
    elif between == 0:
        remarks.append("seeds alone explain how the points stray; that sizes have nothing of their own is a guess")
    if not math.isclose(now, fitted := _fitted_half_width(law.fit, at), rel_tol=0.1):
        remarks.append(f"the fit itself, which weighs all sizes alike, has a factor of {math.exp(fitted):.3g} there")
    return Advice(
        law.measured.metric,
        largest.cell.label if target_gflops is None else f"C = {target:.4g} GFLOPs",
        target,
        now,
        now_prediction,
        math.sqrt(between),
        spread,
        tuple(found),
        tuple(remarks),
        tuple(name for point in points for name in point.trials),
    )


def _fitted_half_width(fit: PowerLaw, at: float) -> float:
    """Of the fitted law at ln C."""
    t = float(stats.t.ppf((1 + CONFIDENCE) / 2, fit.n - 2))
    return t * fit.residual_std * math.sqrt(1 / fit.n + (at - fit.mean_log_compute) ** 2 / fit.log_compute_ss)


def _more_seeds(points: Sequence[Point], x: np.ndarray, counts: np.ndarray, spread: float | None) -> list[Any]:
    if spread is None:
        return []
    return [
        (f"one more seed of {point.cell.label}", point.gflops, 1, x, counts + (np.arange(len(x)) == i))
        for i, point in enumerate(points)
    ]


def _new_sizes(
    points: Sequence[Point], x: np.ndarray, counts: np.ndarray, seeds: int, asked: Sequence[float] | None
) -> list[Any]:
    """Those asked for, or between neighbours and beyond both ends; with as many seeds as the others."""
    names = [point.cell.label for point in points]
    places = [
        (f"a size between {a} and {b}", (u + v) / 2) for a, b, u, v in zip(names, names[1:], x, x[1:], strict=False)
    ]
    places += [
        (f"a size at half of {names[0]}", x[0] - math.log(2)),
        (f"a size at twice {names[-1]}", x[-1] + math.log(2)),
    ]
    if asked:
        places = [(f"a size at {c:.4g} GFLOPs", math.log(c)) for c in asked]
    return [
        (
            f"{what}, {seeds} seed{'s' * (seeds > 1)}",
            seeds * math.exp(at),
            seeds,
            np.append(x, at),
            np.append(counts, seeds),
        )
        for what, at in places
    ]


def summary(report: dict[str, Any]) -> str:
    """The advice in words, for a terminal."""
    factor = math.exp(report["half_width"])
    lines = [
        f"{report['metric']} at {report['target']}: the law is known to a factor of {factor:.3g} either way (95 %)",
        "next, by how much it narrows per GFLOP:",
    ]
    for row in report["candidates"][:SHOWN]:
        lines.append(f"  {row['what']}: factor {math.exp(row['half_width']):.3g}, for {row['gflops']:.3g} GFLOPs")
    return "\n".join([*lines, f"most, whatever it costs: {report['largest_gain']}", *report["remarks"]])
