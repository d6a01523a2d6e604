"""Checks of a fitted law: how well it extrapolates, which points it depends on, how C is counted; and its summary.

Each check refits the law of law.py to other points, or to the same points with another C.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis.floor import compare_floors
from analysis.law import MIN_SIZES, Law, Point, PowerLaw, fit_power_law
from analysis.statistics import CONFIDENCE
from analysis.table import Table, Trial, gflops

# Prefixes of the run table's items that belong to one network, for other ways to count C.
G_ITEMS, D_ITEMS = ("g_forward", "g_backward"), ("d_step", "g_step_d")


def scrutinise(table: Table, law: Law, pinned_floor: float | None = None) -> dict[str, Any]:
    """Run every check of a law, for JSON. Raises ValueError for a pinned floor that is not below every value."""
    compute, value = [p.gflops for p in law.points], [p.value for p in law.points]
    return {
        "floor": compare_floors(compute, value, pinned_floor),
        "leave_one_size_out": leave_one_size_out(law),
        "roll_forward": roll_forward(law),
        "without_run": without_each_run(table, law),
        "itemisations": itemisations(table, law),
        "checkpoints": over_checkpoints(table, law),
        "seed_spread_log": seed_spread(law.points),
        "flagged": flagged(table),
    }


def _prediction(fit: PowerLaw, point: Point) -> dict[str, Any]:
    """Compare a size that the fit has not seen with its prediction interval."""
    low, high = (float(end[0]) for end in fit.band([point.gflops]))
    predicted = float(fit.predict(point.gflops))
    return {
        "size": point.cell.label,
        "gflops": point.gflops,
        "value": point.value,
        "predicted": predicted,
        "low": low,
        "high": high if np.isfinite(high) else None,
        "ratio": point.value / predicted,
        "inside": low <= point.value <= high,
        "fitted_to": fit.n,
    }


def leave_one_size_out(law: Law) -> list[dict[str, Any]]:
    """Predict each size from all the others; empty below four sizes. The largest size is the extrapolation."""
    if len(law.points) <= MIN_SIZES:
        return []
    return [_prediction(_fit([p for p in law.points if p is not left]), left) for left in law.points]


def roll_forward(law: Law) -> list[dict[str, Any]]:
    """Predict each size from the cheaper ones, as if it had not run yet."""
    later = range(MIN_SIZES, len(law.points))
    return [_prediction(_fit(law.points[:i]), law.points[i]) for i in later]


def without_each_run(table: Table, law: Law) -> list[dict[str, Any]]:
    """Refit the exponent without each of the law's trials in turn; None if too few sizes are left."""
    trials = {trial.name: trial for trial in table.complete()}
    found = []
    for point in law.points:
        for name in point.trials:
            left = [trials[other] for other in point.trials if other != name]
            points = [p for p in law.points if p is not point]
            if left:
                rest = replace(
                    point,
                    gflops=gflops(fmean(trial.last.flops for trial in left)),
                    value=fmean(trial.last.value for trial in left),
                )
                points.append(rest)
            fit = _fit(points) if len(points) >= MIN_SIZES else None
            found.append(
                {
                    "trial": name,
                    "size": point.cell.label,
                    "b": fit and fit.b,
                    "b_low": fit and fit.b_low,
                    "b_high": fit and fit.b_high,
                }
            )
    return found


def itemisations(table: Table, law: Law) -> list[dict[str, Any]]:
    """Fit the exponent for every way to count C that the table's items allow; empty if the table has no items.

    A count is FLOP per image and iteration, times the images seen: C over all items. In a trial that started from
    another, its own items count for all its steps.
    """
    trials = {trial.name: trial for trial in table.complete()}
    counts = {name: _counts(trial) for name, trial in trials.items()}
    used = [name for point in law.points for name in point.trials]
    if not all(counts[name] for name in used):
        return []
    found = []
    for way in counts[used[0]]:
        costs = []
        for point in law.points:
            per_trial = [
                gflops(counts[name][way] * trials[name].last.flops / sum(trials[name].facts.items.values()))
                for name in point.trials
            ]
            costs.append(fmean(per_trial))
        if min(costs) <= 0 or np.ptp(np.log(costs)) == 0:
            continue
        fit = fit_power_law(costs, [p.value for p in law.points])
        found.append({"counted": way, "b": fit.b, "b_low": fit.b_low, "b_high": fit.b_high, "gflops": costs})
    return found


def _counts(trial: Trial) -> dict[str, float]:
    """Return FLOP per image and iteration of a trial, by what is counted."""
    items, d = trial.facts.items, trial.facts.d_forward_flops
    g = trial.last.g_forward_flops
    if not items:
        return {}
    whole = sum(items.values())
    counts = {
        "everything in an iteration": whole,
        "everything but teacher and alignment projector": whole - _flops_of(items, ("teacher", "d_step_alignment")),
        "G alone": _flops_of(items, G_ITEMS),
        "D alone": _flops_of(items, D_ITEMS),
        "G forward alone": g,
    }
    if d:
        counts |= {"3 G + 15 D forwards": 3 * g + 15 * d, "5 G + 20 D forwards": 5 * g + 20 * d}
    return counts


def _flops_of(items: Mapping[str, float], prefixes: tuple[str, ...]) -> float:
    return sum(flops for name, flops in items.items() if name.startswith(prefixes))


@dataclass(frozen=True)
class Clustered:
    """Exponent fitted to checkpoints, where checkpoints of one run are not independent."""

    b: float
    b_low: float
    b_high: float
    checkpoints: int
    runs: int


def fit_clustered(compute: Any, value: Any, runs: Any) -> Clustered:
    """Fit value = a C^-b to points [n] of runs [n]; the interval is a jackknife over runs.

    The jackknife leaves out one run at a time (CR3), because other sandwich estimators are too narrow with few runs.
    Its interval is Student-t with runs - 1 degrees of freedom.
    Raises ValueError for fewer than three runs.
    """
    x, y = np.log(np.asarray(compute, dtype=np.float64)), np.log(np.asarray(value, dtype=np.float64))
    each, index = np.unique(np.asarray(runs), return_inverse=True)
    count = len(each)
    if count < MIN_SIZES:
        raise ValueError(f"an interval over runs needs {MIN_SIZES} of them, got {count}")
    x, y = x - x.mean(), y - y.mean()
    # n, sum x, sum y, sum xx, sum xy of each run [5, runs]. The sums without one run are the totals less its own.
    sums = np.stack([np.bincount(index, weights=part, minlength=count) for part in (x**0, x, y, x * x, x * y)])
    b, without = -_slope(sums.sum(axis=1)), -_slope(sums.sum(axis=1, keepdims=True) - sums)
    variance = (count - 1) / count * float(((without - b) ** 2).sum())
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * variance**0.5
    return Clustered(float(b), float(b) - half, float(b) + half, len(x), count)


def _slope(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    n, x, y, xx, xy = sums
    return (xy - x * y / n) / (xx - x * x / n)


def over_checkpoints(table: Table, law: Law) -> dict[str, Any] | None:
    """Fit the law to every evaluation of the law's trials, clustered by run; None below three runs.

    A checkpoint in the middle of training shows what stopping there gives, not what a schedule that ends there gives.
    """
    used = {name for point in law.points for name in point.trials}
    parts = [(t.name, *t.trajectory(law.measured)) for t in table.trials if t.name in used]
    if len(parts) < MIN_SIZES:
        return None
    compute = np.concatenate([flops / 2 / 1e9 for _, flops, _ in parts])
    value = np.concatenate([values for _, _, values in parts])
    runs = np.concatenate([[name] * len(values) for name, _, values in parts])
    return vars(fit_clustered(compute, value, runs))


def seed_spread(points: tuple[Point, ...]) -> float | None:
    """Standard deviation of ln value between training seeds, pooled over sizes; None if no size has two seeds."""
    squares, degrees = 0.0, 0
    for point in points:
        logs = np.log(point.values)
        squares += float(((logs - logs.mean()) ** 2).sum())
        degrees += len(logs) - 1
    return (squares / degrees) ** 0.5 if degrees else None


def flagged(table: Table) -> list[dict[str, str]]:
    """Trials with a flag, for example because the discriminator collapsed during training."""
    return [
        {"trial": trial.name, "size": trial.cell.label, "flags": trial.last.flags}
        for trial in table.trials
        if trial.last.flags
    ]


def _fit(points: Any) -> PowerLaw:
    return fit_power_law([p.gflops for p in points], [p.value for p in points])


# ---------------------------------------------------------------- words


def summary(report: dict[str, Any]) -> str:
    """The law and its checks in words, for a terminal."""
    metric = report["metric"]
    lines = [
        f"{metric} = {report['a']:.4g} C^{-report['b']:.4f}, C in {report['unit']}",
        f"b = {report['b']:.4f}, 95 % interval {_interval(report)} (Student t, {report['n']} sizes)",
        f"Pearson({metric}, G-forward GFLOPs) = {report['pearson_gflops']:.3f}"
        if report["pearson_gflops"] is not None
        else f"Pearson({metric}, G-forward GFLOPs) is undefined",
        f"floor: {report['floor']['verdict']}",
    ]
    if fitted := report["floor"]["with_floor"]:
        lines.append(
            f"  with a floor: E = {fitted['floor']:.4g}, b = {fitted['b']:.4f} {_interval(fitted)}, "
            f"{fitted['starts_agreeing']} of {len(fitted['starts'])} starts agree"
        )
    lines += [
        f"  floor pinned at {row['floor']:.4g}: b = {row['b']:.4f} {_interval(row)}"
        for row in report["floor"].get("pinned", [])
    ]
    if report["leave_one_size_out"]:
        largest = report["leave_one_size_out"][-1]
        lines.append(
            f"largest size from the others: {largest['size']} {largest['value']:.4g}, predicted "
            f"{largest['predicted']:.4g} {_interval(largest)}, {'inside' if largest['inside'] else 'OUTSIDE'}"
        )
    lines += [_prediction_line(row) for row in report.get("predictions", [])]
    without = [row["b"] for row in report["without_run"] if row["b"] is not None]
    if without:
        lines.append(f"leaving out each run: b from {min(without):.4f} to {max(without):.4f}")
    if clustered := report["checkpoints"]:
        lines.append(
            f"through all {clustered['checkpoints']} checkpoints of {clustered['runs']} runs: b = {clustered['b']:.4f} "
            f"{_interval(clustered)} (clustered by run)"
        )
    lines += [
        f"b = {row['b']:.4f} {_interval(row)} with C counted as {row['counted']}" for row in report["itemisations"]
    ]
    lines += [f"b = {b:.4f} with C counted as {how}" for how, b in report.get("counts", {}).items()]
    lines += [f"left out: {e['trial']}: {e['reason']}" for e in report["excluded"]]
    lines += [f"flagged: {e['trial']} ({e['size']}): {e['flags']}" for e in report["flagged"]]
    if "remark" in report:
        lines.append(report["remark"])
    return "\n".join(lines)


def _interval(row: dict[str, Any]) -> str:
    low, high = (row.get(key, row.get(f"b_{key}")) for key in ("low", "high"))
    return f"[{'-inf' if low is None else f'{low:.4g}'}, {'inf' if high is None else f'{high:.4g}'}]"


def _prediction_line(row: dict[str, Any]) -> str:
    """A prediction and its score in one line."""
    line = f"prediction of {row['size']} written {row['written']}: {row['predicted']:.4g} {_interval(row)}"
    if not row["intact"]:
        return f"{line}: ALTERED, its digest does not match; not scored"
    if row["value"] is None:
        return f"{line}: {row['size']} is not complete yet"
    when = "before" if row["before"] else "AFTER"
    where = "inside" if row["inside"] else "outside"
    line += f": {where}, measured {row['value']:.4g}; written {when} its first step"
    if row["inside_seeds"] is not None:
        where = "inside" if row["inside_seeds"] else "outside"
        line += f"; {where} [{row['seeds_low']:.4g}, {row['seeds_high']:.4g}], the interval if only seeds deviate"
    return line
