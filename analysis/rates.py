"""Best learning rate at each width, and the power of the width with which it falls (the paper's Eq. 4, Fig. 5b).

Eq. 4, derived in A.11, adapts a rate as 1 / width: the optima of G and of D should then lie on a line of slope -1 in
log-log. The slope comes from one curve that all widths share (parabola.py), and no grid is left out.
Table 4 asks the same with fewer trials: each size at its own adapted rate and at those of other sizes.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.fits.parabola import Curve, Curves, fit_curves
from analysis.race_rates import Extrapolated, extrapolate, widened
from analysis.race_rates import lines as extrapolated_lines
from analysis.statistics import CONFIDENCE, mean_interval
from analysis.table import (
    EVALUATED,
    Cell,
    Excluded,
    Protocol,
    Table,
    Trial,
    check_seeds,
    json_head,
    one_protocol,
    strict_json,
)
from analysis.table import (
    better as direction,
)

NETWORKS = ("G", "D")
VARIED = ("train.rate_of", "train.rate_g", "train.rate_d")
CHECKS = {
    "one_line": "optima on one line",
    "one_curve": "one curvature for all widths",
    "replicates": "curve against replicates",
}
UNUSED = "not part of a rate grid or a cross-check"


@dataclass(frozen=True)
class Seeds:
    """One size at one rate: values of the complete trials, names of the diverged ones."""

    rate: float | str  # absolute; in a cross-check the size to whose width it is adapted, if the table has that
    mean: float | None
    std: float | None  # over seeds; None for one
    values: tuple[float, ...]
    trials: tuple[str, ...]
    diverged: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """One network's rate varied at one size, the other's held at its adapted rate."""

    network: str  # G or D
    size: str
    width: int  # of that network
    rates: tuple[Seeds, ...]  # rising
    curve: Curve | None  # of the common fit; None without one, or without values at two rates
    remark: str | None  # what the best rate has to be read with


@dataclass(frozen=True)
class Ratio:
    """ln(value / value at the own rate): mean over seeds that have both, 95 % Student-t interval from two seeds on."""

    rate: float | str
    log_ratio: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class CrossCheck:
    """A row of Table 4."""

    size: str
    own: str | None  # the column of its own rate; None if the table does not have that
    best: float | str | None  # the column of the best mean
    columns: tuple[Seeds, ...]
    ratios: tuple[Ratio, ...]  # of the others to its own


@dataclass(frozen=True)
class Transfer:
    """Rate grids of both networks, their fits, and Table 4; either half may be empty."""

    measured: Protocol
    better: int  # -1 if a lower value is better, 1 if a higher one is
    grids: tuple[Grid, ...]  # of G, then of D, by rising width
    fits: dict[str, Curves]  # of the networks with a grid
    cross_check: tuple[CrossCheck, ...]
    excluded: tuple[Excluded, ...]
    extrapolated: tuple[Extrapolated, ...] = ()  # trials that a race dropped

    def of(self, network: str) -> list[Grid]:
        return [grid for grid in self.grids if grid.network == network]

    def value(self, curve: Curve, rate: ArrayLike) -> NDArray[np.float64]:
        """Return the metric on a curve at each rate; a metric of which more is better was fitted upside down."""
        return curve.predict(rate) ** -self.better

    def to_json(self) -> dict[str, Any]:
        """Return strictly valid JSON: a number that is not finite, or not available from these trials, is null.

        A network without a grid is null. Rates are absolute; spreads and ratios are of natural logarithms.
        """
        networks: dict[str, Any] = dict.fromkeys(NETWORKS)
        for network, fit in self.fits.items():
            quality = {"degree": fit.degree, "residual_std_log": fit.residual_std, "checks": asdict(fit.checks)}
            networks[network] = asdict(fit.slope) | quality | {"grids": [asdict(grid) for grid in self.of(network)]}
        return strict_json(
            {
                **json_head(self.measured),
                "better": "lower" if self.better < 0 else "higher",
                "networks": networks,
                "cross_check": [asdict(row) for row in self.cross_check],
                "excluded": [trial.to_json() for trial in self.excluded],
                "extrapolated": [asdict(one) for one in self.extrapolated],
            }
        )


def short_rate(rate: float) -> str:
    """A rate with three digits, such as 1.25e-4."""
    mantissa, _, exponent = f"{rate:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


# ---------------------------------------------------------------- fits


def analyse(table: Table, better: str | None = None) -> Transfer:
    """Find the optimum per width, its slope over width, and Table 4, in the trials of a learning-rate sweep.

    A grid holds trials of one size in both networks, equal in all but the rate of one network and the seed. A diverged
    trial has no value to fit; it is a remark beside the optimum. A trial that a race dropped has an extrapolated one
    (race_rates.py).
    better: `lower` or `higher`, for a metric whose name does not say which.
    Raises ValueError, in one line, for mixed protocols, for a metric whose better direction is not known, for grids of
    one network under several configs or patch sizes, for a grid without a width, for a seed that is twice at one rate,
    and for a table with neither a grid nor a cross-check.
    """
    measured = one_protocol(table.complete())
    table, moved, draws = extrapolate(table)
    series = {network: _grids(table, network) for network in NETWORKS}
    compared = _series(table, lambda trial: (_whose_rate(trial), None), "the rates of sizes")
    if measured is None or not (any(series.values()) or compared):
        raise ValueError(
            f"{table.path}: no complete trial is in a rate grid (one size at several lr_g with one lr_d, or the "
            "reverse) or in a cross-check (one size at several train.rate_of)"
        )
    sign = direction(measured.metric, better)
    grids: list[Grid] = []
    fits = {}
    for network, own in series.items():
        if own:
            fits[network], of_network = _fit(network, own, sign, draws)
            grids += of_network
    rows = _cross_check(compared, sign)
    groups = [seeds for grid in grids for seeds in grid.rates] + [seeds for row in rows for seeds in row.columns]
    used = {name for seeds in groups for name in seeds.trials}
    unused = [Excluded(t.name, t.cell, t.last.status, UNUSED) for t in table.complete() if t.name not in used]
    return Transfer(measured, sign, tuple(grids), fits, rows, (*table.excluded(), *unused), tuple(moved))


def _cross_check(compared: dict[Cell, dict[Any, list[Trial]]], sign: int) -> tuple[CrossCheck, ...]:
    """Build Table 4: each size at its own rate and at those of other sizes, cheapest size first.

    Without train.rate_of, trials of a size at several rates (lr_g, with lr_d equal or absent) are compared. The columns
    are then the rates, and the size's own rate is not known.
    """

    def cost(cell: Cell) -> float:
        return max(trial.last.flops for trials in compared[cell].values() for trial in trials)

    by_cost = sorted(compared, key=cost)
    sizes = [cell.generator_size for cell in by_cost]
    rows = []
    for cell in by_cost:
        found = compared[cell]
        # Columns are rates in rising order, or sizes in the order of the rows.
        names = sorted(found, key=lambda name: sizes.index(name) if name in sizes else len(sizes))
        columns = tuple(_seeds(name, found[name]) for name in names)
        own = cell.generator_size if cell.generator_size in names else None
        logs = {name: {t.last.seed: math.log(t.last.value) for t in found[name] if t.complete} for name in names}
        ratios = []
        for name in names if own else []:
            paired = [logs[name][seed] - logs[own][seed] for seed in logs[name] if seed in logs[own]]
            if name != own and paired:
                mean = mean_interval(paired)
                ratios.append(Ratio(name, mean.mean, mean.low, mean.high))
        rows.append(CrossCheck(cell.label, own, _best(columns, sign), columns, tuple(ratios)))
    return tuple(rows)


def _whose_rate(trial: Trial) -> float | str | None:
    """Return the column of Table 4 to which a trial belongs; None without one."""
    facts = trial.facts
    if any(_factor(trial, network) != 1 for network in NETWORKS):
        return None
    if "train.rate_of" in facts.config:
        return str(facts.config["train.rate_of"] or trial.cell.generator_size)
    return facts.lr_g if facts.lr_d in (None, facts.lr_g) else None


def _factor(trial: Trial, network: str) -> float:
    return float(trial.facts.config.get(f"train.rate_{network.lower()}") or 1)


def _series(table: Table, read: Callable[[Trial], tuple[Any, Any]], what: str) -> dict[Cell, dict[Any, list[Trial]]]:
    """Group trials that differ in one setting (and the seed) alone, by size and by setting; at least two settings.

    read: a trial -> (its setting, or None for a trial outside the series; the rate that is held).
    """
    found: dict[Cell, dict[str, dict[Any, list[Trial]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for trial in table.trials:
        setting, held = read(trial)
        ended = trial.complete or trial.last.status == "diverged"
        if setting is None or not ended or trial.cell.generator_size != trial.cell.discriminator_size:
            continue
        # Keys without a dot are remarks in a user's CSV, and recipe and seed in a config.
        config = {key: v for key, v in trial.facts.config.items() if "." in key and key not in (*VARIED, EVALUATED)}
        rest = json.dumps({**config, "steps": trial.last.steps, "the other rate": held}, sort_keys=True)
        found[trial.cell][rest][setting].append(trial)
    series = {}
    for cell, by_rest in found.items():
        several = {rest: by_setting for rest, by_setting in by_rest.items() if len(by_setting) > 1}
        if len(several) > 1:
            first, second = (json.loads(rest) for rest in list(several)[:2])
            differ = ", ".join(key for key in first | second if first.get(key) != second.get(key))
            raise ValueError(
                f"{cell.label} has {what} under several configs, fit them separately; they differ in {differ}"
            )
        for by_setting in several.values():
            for replicates in by_setting.values():
                check_seeds(replicates)
            series[cell] = dict(sorted(by_setting.items()))
    return series


def _seeds(rate: float | str, trials: list[Trial]) -> Seeds:
    values = tuple(trial.last.value for trial in trials if trial.complete)
    return Seeds(
        rate,
        fmean(values) if values else None,
        stdev(values) if len(values) > 1 else None,
        values,
        trials=tuple(trial.name for trial in trials if trial.complete),
        diverged=tuple(trial.name for trial in trials if not trial.complete),
    )


def _best(columns: tuple[Seeds, ...], sign: int) -> Any:
    """Return the rate of the best mean, among the rates at which no seed diverged."""
    means = {seeds.rate: sign * seeds.mean for seeds in columns if seeds.mean is not None and not seeds.diverged}
    return max(means, key=lambda rate: means[rate], default=None)


def _grids(table: Table, network: str) -> dict[tuple[str, int], dict[float, list[Trial]]]:
    """Return the grids of a network, trials by rate, by size and width; narrowest first."""

    def read(trial: Trial) -> tuple[float | None, float | None]:
        rates = {"G": trial.facts.lr_g, "D": trial.facts.lr_d}
        mine = rates.pop(network)
        ((other, held),) = rates.items()
        moved = trial.facts.config.get("train.rate_of") or _factor(trial, other) != 1
        return (None if moved or held is None else mine), held

    series = _series(table, read, f"a rate grid of {network}")
    patches = sorted({cell.patch for cell in series})
    if len(patches) > 1:
        raise ValueError(f"rate grids of {network} have several patch sizes, fit them separately: {patches}")
    grids = {}
    for cell, by_rate in series.items():
        first = next(iter(by_rate.values()))[0]
        width = first.facts.g_width if network == "G" else first.facts.d_width
        if width is None:
            raise ValueError(f"trial {first.name!r} belongs to a rate grid, but has no {network.lower()}_width; add it")
        grids[cell.label, width] = by_rate
    return dict(sorted(grids.items(), key=lambda grid: grid[0][::-1]))


def _fit(
    network: str, own: dict[tuple[str, int], dict[float, list[Trial]]], sign: int, draws: list[dict[str, float]]
) -> tuple[Curves, list[Grid]]:
    """Fit the common curve to a network's grids, trials by rate, by size and width; return it with the grids.

    draws: errors of ln value, by trial, of extrapolated values.
    """
    points = [
        (i, rate, trial.last.value**-sign, trial.last.seed, trial.name)
        for i, by_rate in enumerate(own.values())
        for rate, trials in by_rate.items()
        for trial in trials
        if trial.complete
    ]
    index, rates, values, seeds, names = zip(*points, strict=True) if points else [()] * 5
    widths = [width for _, width in own]
    fit = fit_curves(widths, index, rates, values, seeds)
    if any(name in errors for errors in draws for name in names):
        errors = np.array([[draw.get(name, 0.0) for name in names] for draw in draws])  # [draws, n]
        others = [fit_curves(widths, index, rates, np.array(values) * np.exp(-sign * e), seeds) for e in errors]
        fit = widened(fit, others)
    grids = []
    for (size, width), by_rate, curve in zip(own, own.values(), fit.of, strict=True):
        columns = tuple(_seeds(rate, trials) for rate, trials in by_rate.items())
        grids.append(Grid(network, size, width, columns, curve, _remark(columns, curve)))
    return fit, grids


def _remark(rates: tuple[Seeds, ...], curve: Curve | None) -> str | None:
    """Return what the best rate of a grid has to be read with; None for one well inside its grid."""
    held = [float(seeds.rate) for seeds in rates if seeds.values]
    if curve is None:
        return f"too few rates have values ({len(held)})"
    if curve.vertex is None:
        falls = "upwards" if curve.predict(held[-1]) < curve.predict(held[0]) else "downwards"
        return f"no minimum near the rates tried; extend the grid {falls}"
    if not held[0] <= curve.vertex <= held[-1]:
        above = curve.vertex > held[-1]
        end, side, way = (held[-1], "above", "upwards") if above else (held[0], "below", "downwards")
        broken = above and any(seeds.diverged for seeds in rates if float(seeds.rate) > end)
        advice = "higher rates diverged" if broken else f"extend the grid {way}"
        return f"{side} {short_rate(end)}, the last rate with a value; {advice}"
    if curve.low is None or curve.high is None:
        return "no interval: the curves bend too little for their noise"
    if curve.low < held[0] or curve.high > held[-1]:
        return "the interval reaches beyond the rates with values"
    return None


def verdict(report: dict[str, Any]) -> str:
    """The answer in one line."""
    parts = []
    for network, found in report["networks"].items():
        if found is not None:
            slope = "" if found["slope"] is None else f"slope {_interval(found, 'slope', '.2f')}, "
            parts.append(f"{network}: {slope}{found['verdict']}")
    return "; ".join(parts) or "the table has a cross-check of the sizes' rates and lacks a rate grid"


def summary(report: dict[str, Any]) -> str:
    """`Transfer.to_json` in words, for a terminal."""
    lines = [f"{report['metric']} against learning rate; intervals: {report['confidence']:.0%}"]
    for network, found in report["networks"].items():
        if found is None:
            lines.append(f"{network}: no rate grid")
            continue
        slope = "" if found["slope"] is None else f"{_interval(found, 'slope', '.2f')}, "
        method = "" if found["method"] is None else f" ({found['method']})"
        lines.append(f"{network}: slope of log optimum over log width: {slope}{found['verdict']}{method}")
        for grid in found["grids"]:
            curve, text = grid["curve"], "no optimum"
            if curve and curve["vertex"] is not None:
                text = f"optimum {_interval(curve, 'vertex', '.3g')}"
            text += f"; {grid['remark']}" if grid["remark"] else ""
            broken = [seeds for seeds in grid["rates"] if seeds["diverged"]]
            text += "".join(f"; diverged at {seeds['rate']:.2g}: {', '.join(seeds['diverged'])}" for seeds in broken)
            lines.append(f"  {grid['size']}, width {grid['width']}: {text}")
        if found["degree"]:
            checks = [f"{words} {_p(found['checks'][name])}" for name, words in CHECKS.items()]
            lines.append(f"  checks of the common curve (degree {found['degree']}): {', '.join(checks)}")
    lines += [] if report["cross_check"] else ["no cross-check"]
    for row in report["cross_check"]:
        ratios = {ratio["rate"]: _interval(ratio, "log_ratio", ".2f") for ratio in row["ratios"]}
        columns = []
        for seeds in row["columns"]:
            text = "no value" if seeds["mean"] is None else f"{seeds['mean']:.4g} (n = {len(seeds['values'])})"
            text += f", log ratio to its own rate {ratios[seeds['rate']]}" if seeds["rate"] in ratios else ""
            text += f", diverged: {', '.join(seeds['diverged'])}" if seeds["diverged"] else ""
            columns.append(f"{seeds['rate']}: {text}")
        lines.append(f"{row['size']} by rate: {'; '.join(columns)}; best: {row['best'] or 'none'}")
    lines += extrapolated_lines(report["extrapolated"])
    lines += [f"left out: {e['trial']} ({e['size']}): {e['reason']}" for e in report["excluded"]]
    return "\n".join(lines)


def _p(p: float | None) -> str:
    if p is None:
        return "not possible"
    return f"{'fails ' if p < 1 - CONFIDENCE else ''}(p = {p:.2g})"


def _interval(found: dict[str, Any], key: str, style: str) -> str:
    low, high = found["low"], found["high"]
    top = "inf" if high is None else f"{high:{style}}"  # JSON has no infinity
    return f"{found[key]:{style}}" + ("" if low is None else f" [{low:{style}}, {top}]")
