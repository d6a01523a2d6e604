"""Checks of a law: how well it extrapolates, which points it depends on, how C is counted.

Each check fits the law again, to other points or to the same points with another C. One that cannot be made says why,
as `not_possible`, and the others are made nevertheless.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from analysis.fits.curve import fit_floors
from analysis.fits.dunnett import BY_SEED
from analysis.law import Law
from analysis.noise import seed_spread
from analysis.points import MIN_SIZES, Point, point
from analysis.statistics import CONFIDENCE, ROUNDING, lack_of_fit, pearson, spearman
from analysis.table import G_ITEMS, Table, Trial, gflops

SENSITIVITY = (0.0, 0.5, 0.9, 1.1)  # factors of the given floor


def scrutinise(table: Table, law: Law) -> dict[str, Any]:
    """Run every check of a law, for JSON."""
    fitted = np.log(law.curve.predict([p.gflops for p in law.points]))
    degrees = len(law.points) - (3 if law.curve.chosen == "found" else 2)
    spread = seed_spread(law.points)
    return {
        "lack_of_fit": lack_of_fit([np.log(p.values) for p in law.points], fitted, degrees),
        "seed_spread_log": spread and spread[0],
        "noise": asdict(law.curve.noise),
        "common_seeds": common_seeds(table, law),
        "given_floor": given_floor(law),
        "known_floors": known_floors(table, law),
        "correlation": correlation(law.points),
        "largest_size": predict_largest(law),
        "leave_one_size_out": leave_one_size_out(law),
        "roll_forward": roll_forward(law),
        "without_run": without_each_run(table, law),
        "itemisations": itemisations(table, law),
        "checkpoints": over_checkpoints(table, law),
        "flagged": flagged(table, law),
    }


# ---------------------------------------------------------------- floors and correlations


def given_floor(law: Law) -> dict[str, Any] | None:
    """Whether the points agree with the given floor, and how b depends on it; None if none was given."""
    if law.given_floor is None:
        return None
    free = law.refit_free()
    agrees = free.floor_low <= law.given_floor <= (np.inf if free.floor_high is None else free.floor_high)
    least = min(p.value for p in law.points)
    others = [factor * law.given_floor for factor in SENSITIVITY if 0 < factor * law.given_floor < least]
    rows = [(floor, law.refit(law.points, floor)) for floor in (0.0, *others)] if law.given_floor else []
    return {
        "agrees": bool(agrees), "floor_low": free.floor_low, "floor_high": free.floor_high,
        "others": [{"floor": floor, "b": fit.b, "b_low": fit.b_low, "b_high": fit.b_high} for floor, fit in rows],
    }  # fmt: skip


def known_floors(table: Table, law: Law) -> dict[str, Any]:
    """Return the floors that are known from elsewhere: halves of the real pictures, which no generator gets below."""
    rows = [trial.last for trial in _trials(table, law).values()]
    halves = [row.split_half for row in rows if row.split_half is not None]
    if not halves:
        return {"not_possible": "no row has split_half; evaluations against pictures measure it"}
    return {"split_half": fmean(halves)}


def correlation(points: Sequence[Point]) -> dict[str, Any]:
    """Correlate the value with the generator's forward GFLOPs over points, with intervals."""
    forward = [p.g_forward_gflops for p in points if p.g_forward_gflops is not None]
    if len(forward) < len(points):
        return {"not_possible": "the table has no g_forward_flops"}
    value = [p.value for p in points]
    return {
        "pearson": asdict(pearson(forward, value)),
        "pearson_log_gflops": asdict(pearson(np.log(forward), value)),
        "spearman": asdict(spearman(forward, value)),
    }


def common_seeds(table: Table, law: Law) -> dict[str, Any]:
    """Test whether a seed moves all sizes together, and whether that can bend the law.

    Where all sizes have the same seeds, it moves the level of the law alone. Otherwise it moves b as well, which no
    interval of the law knows; b over the seeds that all sizes have is free of it. The test is that of a two-way
    analysis of variance without interaction.
    """
    trials = _trials(table, law)
    seeds = [[trials[name].last.seed for name in p.trials] for p in law.points]
    size = np.repeat(np.arange(len(seeds)), [len(of) for of in seeds])
    log = np.concatenate([np.log(p.values) for p in law.points])
    each = sorted({seed for of in seeds for seed in of})
    by_size = np.equal.outer(size, np.arange(len(seeds))).astype(float)
    by_seed = np.equal.outer([seed for of in seeds for seed in of], each).astype(float)
    unequal = any(set(of) != set(each) for of in seeds)
    rank, rest = _rest(by_size, log)
    both, left = _rest(np.hstack([by_size, by_seed]), log)
    above, below = both - rank, len(log) - both
    if not above or not below or left < len(log) * ROUNDING**2:
        return {"unequal": unequal, "not_possible": "too few seeds are in several sizes"}
    f = (rest - left) / above / (left / below)
    p = float(stats.f.sf(f, above, below))
    shared = sorted(set(each).intersection(*seeds))
    row: dict[str, Any] = {"unequal": unequal, "f": f, "degrees_of_freedom": [above, below], "p": p}
    row |= {"found": p < BY_SEED, "shared": shared}
    if not (unequal and shared):
        return row
    kept = [point([t for t in (trials[name] for name in p.trials) if t.last.seed in shared]) for p in law.points]
    fit = law.refit(kept)
    return row | {"b": fit.b, "b_low": fit.b_low, "b_high": fit.b_high}


def _rest(design: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[int, float]:
    """Return the rank of a linear model and the sum of squares that it leaves."""
    fitted, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    return int(rank), float(((values - design @ fitted) ** 2).sum())


# ---------------------------------------------------------------- sizes left out


def _prediction(law: Law, given: Sequence[Point], asked: Point) -> dict[str, Any]:
    """Compare a point with the prediction interval of other points."""
    named = {"size": asked.cell.label, "gflops": asked.gflops, "value": asked.value}
    try:
        fit = law.refit(given)
    except ValueError as reason:
        return named | {"not_possible": str(reason)}
    low, high = (float(end[0]) for end in fit.new_size([asked.gflops], len(asked.values)))
    predicted = float(fit.predict([asked.gflops])[0])
    return named | {
        "predicted": predicted, "low": low, "high": high if np.isfinite(high) else None,
        "ratio": asked.value / predicted, "inside": bool(low <= asked.value <= high),
        "law": fit.chosen, "sizes": fit.sizes,
    }  # fmt: skip


def predict_largest(law: Law) -> dict[str, Any]:
    """Predict the last point from the points of the other sizes."""
    last = law.points[-1]
    return _prediction(law, [p for p in law.points if p.cell != last.cell], last)


def leave_one_size_out(law: Law) -> list[dict[str, Any]]:
    """Predict each point from the points of the other sizes."""
    return [_prediction(law, [p for p in law.points if p.cell != left.cell], left) for left in law.points]


def roll_forward(law: Law) -> list[dict[str, Any]]:
    """Predict each point from the cheaper ones, as if it had not run yet."""
    later = range(MIN_SIZES, len(law.points))
    return [_prediction(law, law.points[:i], law.points[i]) for i in later]


def without_each_run(table: Table, law: Law) -> list[dict[str, Any]]:
    """Fit the exponent again without each of the law's trials in turn."""
    trials = _trials(table, law)
    found = []
    for at in law.points:
        for name in at.trials:
            left = [trials[other] for other in at.trials if other != name]
            points = [point(left) if p is at and left else p for p in law.points if p is not at or left]
            row: dict[str, Any] = {"trial": name, "size": at.cell.label}
            try:
                fit = law.refit(sorted(points, key=lambda p: p.gflops))
            except ValueError as reason:
                found.append(row | {"b": None, "not_possible": str(reason)})
                continue
            found.append(row | {"b": fit.b, "b_low": fit.b_low, "b_high": fit.b_high, "law": fit.chosen})
    return found


def _trials(table: Table, law: Law) -> dict[str, Trial]:
    used = {name for p in law.points for name in p.trials}
    return {trial.name: trial for trial in table.trials if trial.name in used}


# ---------------------------------------------------------------- other counts of C


def itemisations(table: Table, law: Law) -> list[dict[str, Any]]:
    """Fit the exponent for every way to count C that the table's items allow; empty if the table has no items.

    A count is FLOP per image and iteration, times the images seen: C over all items. In a trial that started from
    another, its own items count for all its steps.
    """
    trials = _trials(table, law)
    counts = {name: _counts(trial) for name, trial in trials.items()}
    if not all(counts.values()):
        return []
    found = []
    for way in next(iter(counts.values())):
        costs = []
        for p in law.points:
            per_trial = [
                gflops(counts[name][way] * trials[name].last.flops / sum(trials[name].facts.items.values()))
                for name in p.trials
            ]
            costs.append(fmean(per_trial))
        if min(costs) <= 0 or np.ptp(np.log(costs)) < 1e-9:
            continue
        fit = law.refit_at(costs)
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
        "D alone": _flops_of(items, ("d_step", "g_step_d")),
    }
    if g:
        counts["G forward alone"] = g
    if g and d:
        counts |= {"3 G + 15 D forwards": 3 * g + 15 * d, "5 G + 20 D forwards": 5 * g + 20 * d}
    return counts


def _flops_of(items: Mapping[str, float], prefixes: tuple[str, ...]) -> float:
    return sum(flops for name, flops in items.items() if name.startswith(prefixes))


# ---------------------------------------------------------------- checkpoints


@dataclass(frozen=True)
class Clustered:
    """Exponent fitted to checkpoints, where those of one size are not independent."""

    b: float
    b_low: float
    b_high: float
    checkpoints: int
    sizes: int


def fit_clustered(compute: ArrayLike, value: ArrayLike, sizes: ArrayLike, floor: float = 0.0) -> Clustered:
    """Fit value = floor + a C^-b to checkpoints [n] of sizes [n]; the interval is a jackknife over sizes.

    Sizes stray from the law, and all runs and checkpoints of one stray together. The jackknife leaves out one size at a
    time (CR3), because other sandwich estimators are too narrow with few groups. Its interval is Student-t with
    sizes - 1 degrees of freedom.
    Raises ValueError for fewer than three sizes, or if only one of them is at another C.
    """
    c, v = np.asarray(compute, dtype=np.float64), np.asarray(value, dtype=np.float64)
    each, index = np.unique(np.asarray(sizes), return_inverse=True)
    count = len(each)
    if count < MIN_SIZES:
        raise ValueError(f"an interval over sizes needs {MIN_SIZES} of them, got {count}")
    if any(np.ptp(np.log(c[index != i])) < 1e-9 for i in range(count)):
        raise ValueError("without one of the sizes, all checkpoints have the same C")
    b = float(fit_floors(c, v, [floor]).b[0])
    without = [float(fit_floors(c[index != i], v[index != i], [floor]).b[0]) for i in range(count)]
    error = ((count - 1) / count * float(((np.array(without) - b) ** 2).sum())) ** 0.5
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    return Clustered(b, b - half, b + half, len(c), count)


def over_checkpoints(table: Table, law: Law) -> dict[str, Any]:
    """Fit the exponent to every evaluation of the law's trials, clustered by size, with the law's floor.

    A checkpoint in the middle of training shows what stopping there gives, not what a schedule that ends there gives.
    """
    parts = [(t.cell.label, *t.trajectory(law.measured)) for t in _trials(table, law).values()]
    compute = np.concatenate([flops / 2 / 1e9 for _, flops, _ in parts])
    value = np.concatenate([values for _, _, values in parts])
    sizes = np.concatenate([[label] * len(values) for label, _, values in parts])
    try:
        return asdict(fit_clustered(compute, value, sizes, law.curve.floor))
    except ValueError as reason:
        return {"not_possible": str(reason)}


def flagged(table: Table, law: Law) -> list[dict[str, str]]:
    """Trials of the law with a flag, for example because the discriminator collapsed during training."""
    return [
        {"trial": name, "size": trial.cell.label, "flags": trial.last.flags}
        for name, trial in _trials(table, law).items()
        if trial.last.flags
    ]
