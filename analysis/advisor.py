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

from analysis.law import CONFIDENCE, UNIT, Point, fit_law
from analysis.scrutiny import seed_spread
from analysis.table import Table

SHOWN = 5
ROUNDING = 1e-9  # of ln value: what points on a law exactly stray by


@dataclass(frozen=True)
class Candidate:
    """A cell that could be trained next."""

    what: str
    gflops: float  # of all its trials
    trials: int
    half_width: float  # of ln value at the target, expected once it is there
    prediction_half_width: float
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


def advise(table: Table) -> Advice:
    """Compare one more seed of each size, sizes between neighbours, and one below and one above all.

    Raises ValueError as fit_law does.
    """
    law = fit_law(table)
    points, target = law.points, law.points[-1]
    spread = seed_spread(points)
    counts = np.array([len(point.values) for point in points])
    noise = 0.0 if spread is None else spread**2
    # What sizes stray by themselves is what is left of the residual once the seeds' share is taken off.
    between = max(0.0, law.fit.residual_std**2 - noise * fmean(1 / counts))
    if between + noise < ROUNDING**2:
        raise ValueError("the points lie on a law exactly: no cell narrows an interval that has no width")
    x = np.log([point.gflops for point in points])
    at = math.log(target.gflops)

    def widths(x: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
        """(of the law, of a prediction of the target) at the target."""
        variance = between + noise / counts
        design = np.stack([np.ones_like(x), x], axis=1)
        covariance = np.linalg.inv(design.T @ (design / variance[:, None]))
        there = np.array([1.0, at])
        curve = float(there @ covariance @ there)
        t = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 2))
        return t * math.sqrt(curve), t * math.sqrt(curve + between + noise / counts_of_target)

    counts_of_target = len(target.values)
    now, now_prediction = widths(x, counts)
    usual = max(1, round(float(np.median(counts))))
    candidates = []
    for what, cost, trials, new_x, new_counts in [
        *_more_seeds(points, x, counts, spread),
        *_new_sizes(points, x, counts, usual),
    ]:
        after, prediction = widths(new_x, new_counts)
        candidates.append(Candidate(what, cost, trials, after, prediction, now - after, (now - after) / cost))
    candidates.sort(key=lambda candidate: -candidate.gain_per_gflop)
    remarks = [f"{len(points)} sizes: another adds a degree of freedom, from {len(points) - 2} to {len(points) - 1}"]
    if spread is None:
        remarks.append("no size has two seeds: what seeds stray by is not known, and only new sizes are compared")
    elif between == 0:
        remarks.append("seeds alone explain how the points stray; that sizes have nothing of their own is a guess")
    return Advice(
        law.measured.metric,
        target.cell.label,
        target.gflops,
        now,
        now_prediction,
        math.sqrt(between),
        spread,
        tuple(candidates),
        tuple(remarks),
        tuple(name for point in points for name in point.trials),
    )


def _more_seeds(points: Sequence[Point], x: np.ndarray, counts: np.ndarray, spread: float | None) -> list[Any]:
    if spread is None:
        return []
    return [
        (f"one more seed of {point.cell.label}", point.gflops, 1, x, counts + (np.arange(len(x)) == i))
        for i, point in enumerate(points)
    ]


def _new_sizes(points: Sequence[Point], x: np.ndarray, counts: np.ndarray, seeds: int) -> list[Any]:
    """Between neighbours, half the cheapest, twice the dearest; with as many seeds as the others."""
    names = [point.cell.label for point in points]
    places = [
        (f"a size between {a} and {b}", (u + v) / 2) for a, b, u, v in zip(names, names[1:], x, x[1:], strict=False)
    ]
    places += [
        (f"a size at half of {names[0]}", x[0] - math.log(2)),
        (f"a size at twice {names[-1]}", x[-1] + math.log(2)),
    ]
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
