"""Advice on the next trials: which cell narrows the law's interval at the target most per unit of compute.

The expected width follows from the design matrix; nothing is simulated. A size deviates from the law by an effect of
its own (variance `between`) and by its seeds (variance `seeds` / number of seeds). Both are estimated from the table
and then taken as known; a new cell is expected to lie on the law. A new cell narrows the interval of the law. The
prediction interval also contains the target's own deviation, which no other cell reduces.
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
ROUNDING = 1e-9  # of ln value: smaller deviations from a law are rounding errors


@dataclass(frozen=True)
class Candidate:
    """A cell that could be trained next."""

    what: str
    gflops: float  # of all its trials together
    trials: int
    half_width: float  # of the law's interval of ln value at the target, expected with this cell
    prediction_half_width: float  # of the prediction interval there, with as many seeds as now
    gain: float  # decrease of half_width
    gain_per_gflop: float


@dataclass(frozen=True)
class Advice:
    """The law's interval at the target now, and candidates, largest gain per GFLOP first."""

    metric: str
    target: str
    target_gflops: float
    half_width: float  # of the law's interval of ln value at the target, now
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
    """Compare candidates: one more seed of each size, sizes between neighbours, one below and one above all sizes.

    target_gflops: training compute at which the law should be known; default: the largest size's. candidates:
    compute of one trial each, in GFLOPs, of new sizes to compare instead of the default new sizes.
    Half-widths are of ln value, at 95 %, with Student's t and n - 2 degrees of freedom: a new size adds a degree of
    freedom, a new seed does not. Both variances keep their present estimates.
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
    # The sizes' own variance is the residual variance less the seeds' share.
    between = max(0.0, law.fit.residual_std**2 - noise * fmean(1 / counts))
    if between + noise < ROUNDING**2:
        raise ValueError("the points lie on a law exactly: its interval has no width, so no cell narrows it")
    x = np.log([point.gflops for point in points])
    at = math.log(target)

    def widths(x: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
        """Return the half-widths at the target: (of the law, of a prediction of the target)."""
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
    remarks = [
        f"{len(points)} sizes: one more raises the degrees of freedom from {len(points) - 2} to {len(points) - 1}"
    ]
    if spread is None:
        remarks.append("no size has two seeds: the spread between seeds is unknown, so only new sizes are compared")
    elif between == 0:
        remarks.append(
            "the spread between seeds explains all residuals; that sizes add none of their own is an assumption"
        )
    if not math.isclose(now, fitted := _fitted_half_width(law.fit, at), rel_tol=0.1):
        remarks.append(
            f"the fit itself weighs all sizes alike; its interval is a factor of {math.exp(fitted):.3g} there"
        )
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
    """Half-width of ln value at ln C, by the fitted law."""
    t = float(stats.t.ppf((1 + CONFIDENCE) / 2, fit.n - 2))
    return t * fit.residual_std * math.sqrt(1 / fit.n + (at - fit.mean_log_compute) ** 2 / fit.log_compute_ss)


def _more_seeds(points: Sequence[Point], x: np.ndarray, counts: np.ndarray, spread: float | None) -> list[Any]:
    """One more seed of each size as candidates; empty where the spread between seeds is unknown."""
    if spread is None:
        return []
    return [
        (f"one more seed of {point.cell.label}", point.gflops, 1, x, counts + (np.arange(len(x)) == i))
        for i, point in enumerate(points)
    ]


def _new_sizes(
    points: Sequence[Point], x: np.ndarray, counts: np.ndarray, seeds: int, asked: Sequence[float] | None
) -> list[Any]:
    """New sizes as candidates: those asked for, or sizes between neighbours and beyond both ends."""
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
        f"{report['metric']} at {report['target']}: the law's 95 % interval is a factor of {factor:.3g} up and down",
        "candidates, largest gain per GFLOP first:",
    ]
    for row in report["candidates"][:SHOWN]:
        lines.append(f"  {row['what']}: factor {math.exp(row['half_width']):.3g}, for {row['gflops']:.3g} GFLOPs")
    return "\n".join([*lines, f"largest gain at any cost: {report['largest_gain']}", *report["remarks"]])
