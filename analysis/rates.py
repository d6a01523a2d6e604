"""Best learning rate at each width, and the power of the width with which it falls (the paper's Eq. 4, Fig. 5b).

Eq. 4, derived in A.11, adapts a rate as 1 / width: the optima of G and of D should then lie on a line of slope -1 in
log-log. An optimum is the vertex of a parabola of ln value over ln rate. It counts only if the grid shows a minimum.
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

from analysis.parabola import Exponent, Parabola, fit_exponent, fit_parabola
from analysis.statistics import mean_interval
from analysis.table import Cell, Excluded, Protocol, Table, Trial, json_head, one_protocol, strict_json

NETWORKS = ("G", "D")
MIN_RATES = 4
VARIED = ("train.rate_of", "train.rate_g", "train.rate_d")
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
    parabola: Parabola | None  # None below three rates with values
    refusal: str | None  # why the vertex is not an optimum

    @property
    def optimum(self) -> Parabola | None:
        return None if self.refusal else self.parabola


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
    best: float | str | None  # the column of the lowest mean
    columns: tuple[Seeds, ...]
    ratios: tuple[Ratio, ...]  # of the others to its own


@dataclass(frozen=True)
class Transfer:
    """Rate grids of both networks, their slopes, and Table 4; either half may be empty."""

    measured: Protocol
    grids: tuple[Grid, ...]  # of G, then of D, by rising width
    exponents: dict[str, Exponent]  # of the networks with a grid
    cross_check: tuple[CrossCheck, ...]
    excluded: tuple[Excluded, ...]

    def of(self, network: str) -> list[Grid]:
        return [grid for grid in self.grids if grid.network == network]

    def to_json(self) -> dict[str, Any]:
        """Return strictly valid JSON: a number that is not finite, such as an almost flat parabola's vertex, is null.

        A network without a grid is null. Rates are absolute; spreads, curvatures, ratios are of natural logarithms.
        """
        networks: dict[str, Any] = dict.fromkeys(NETWORKS)
        for network, exponent in self.exponents.items():
            grids = [{**asdict(g), "optimum": g.optimum and g.optimum.vertex} for g in self.of(network)]
            networks[network] = {**asdict(exponent), "grids": grids}
        return strict_json(
            {
                **json_head(self.measured),
                "networks": networks,
                "cross_check": [asdict(row) for row in self.cross_check],
                "excluded": [trial.to_json() for trial in self.excluded],
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
    trial is not fitted; in the search for a minimum it counts as worse than all others.
    Raises ValueError, in one line, for mixed protocols, for grids of one network under several configs or patch sizes,
    for a grid without a width, and for a table with neither a grid nor a cross-check.
    """
    measured = one_protocol(table.complete())
    grids = [grid for network in NETWORKS for grid in _grids(table, network)]
    rows = cross_check(table)
    if measured is None or not (grids or rows):
        raise ValueError(
            f"{table.path}: no complete trial is in a rate grid (one size at several lr_g with one lr_d, or the "
            "reverse) or in a cross-check (one size at several train.rate_of)"
        )
    exponents = {}
    for network in NETWORKS:
        own = [grid for grid in grids if grid.network == network]
        found = [(g.width, g.optimum.vertex, g.optimum.vertex_error) for g in own if g.optimum]
        if own:
            widths, optima, errors = np.array(found, dtype=np.float64).reshape(-1, 3).T
            exponents[network] = fit_exponent(widths, optima, errors, len(own))
    groups = [seeds for grid in grids for seeds in grid.rates] + [seeds for row in rows for seeds in row.columns]
    used = {name for seeds in groups for name in seeds.trials}
    unused = [Excluded(t.name, t.cell, t.last.status, UNUSED) for t in table.complete() if t.name not in used]
    return Transfer(measured, tuple(grids), exponents, rows, (*table.excluded(), *unused))


def cross_check(table: Table) -> tuple[CrossCheck, ...]:
    """Build Table 4: each size at its own rate and at those of other sizes, cheapest size first; empty without trials.

    Without train.rate_of, trials of a size at several rates (lr_g, with lr_d equal or absent) are compared. The columns
    are then the rates, and the size's own rate is not known.
    Raises ValueError for mixed protocols and for a size compared under several configs.
    """
    one_protocol(table.complete())
    found = _series(table, lambda trial: (_whose_rate(trial), None), "the rates of sizes")
    by_cost = sorted(found, key=lambda cell: next(iter(found[cell].values()))[0].last.g_forward_flops)
    sizes = [cell.generator_size for cell in by_cost]
    rows = []
    for cell in by_cost:
        # Columns are rates in rising order, or sizes in the order of the rows.
        names = sorted(found[cell], key=lambda name: sizes.index(name) if name in sizes else len(sizes))
        columns = tuple(_seeds(name, found[cell][name]) for name in names)
        own = cell.generator_size if cell.generator_size in names else None
        logs = {name: {t.last.seed: math.log(t.last.value) for t in found[cell][name] if t.complete} for name in names}
        ratios = []
        for name in names if own else []:
            paired = [logs[name][seed] - logs[own][seed] for seed in logs[name] if seed in logs[own]]
            if name != own and paired:
                mean = mean_interval(paired)
                ratios.append(Ratio(name, mean.mean, mean.low, mean.high))
        rows.append(CrossCheck(cell.label, own, _best(columns), columns, tuple(ratios)))
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
        config = {key: v for key, v in trial.facts.config.items() if "." in key and key not in VARIED}
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


def _best(columns: tuple[Seeds, ...]) -> Any:
    """Return the rate of the lowest mean, among the rates at which no seed diverged."""
    means = {seeds.rate: seeds.mean for seeds in columns if seeds.mean is not None and not seeds.diverged}
    return min(means, key=lambda rate: means[rate], default=None)


def _grids(table: Table, network: str) -> list[Grid]:
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
    grids = []
    for cell, by_rate in series.items():
        first = next(iter(by_rate.values()))[0]
        width = first.facts.g_width if network == "G" else first.facts.d_width
        if width is None:
            raise ValueError(f"trial {first.name!r} belongs to a rate grid, but has no {network.lower()}_width; add it")
        rates = tuple(_seeds(rate, trials) for rate, trials in by_rate.items())
        pairs = [(rate, t.last.value) for rate, trials in by_rate.items() for t in trials if t.complete]
        enough = len({rate for rate, _ in pairs}) >= 3
        parabola = fit_parabola(*zip(*pairs, strict=True)) if enough else None
        grids.append(Grid(network, cell.label, width, rates, parabola, _refusal(rates, parabola)))
    return sorted(grids, key=lambda grid: (grid.width, grid.size))


def _refusal(rates: tuple[Seeds, ...], p: Parabola | None) -> str | None:
    """Return why the vertex is not an optimum; None if it is one."""
    best, count = _best(rates), sum(bool(seeds.values) for seeds in rates)
    lowest, highest = float(rates[0].rate), float(rates[-1].rate)
    if best is None:
        return "at least one seed diverged at every rate"
    reasons = []
    if best == highest:
        reasons.append(f"the best rate is the largest tried, {short_rate(best)}; extend the grid upwards")
    if best == lowest:
        reasons.append(f"the best rate is the smallest tried, {short_rate(best)}; extend the grid downwards")
    if count < MIN_RATES:
        reasons.append(f"{count} rates have values; any three lie on a parabola, so an interval needs {MIN_RATES}")
    if p and p.curvature <= 0:
        reasons.append(f"the parabola is not convex (curvature {p.curvature:.2g}), so it has no minimum")
    elif p and p.curvature_low is not None and p.curvature_low <= 0:
        interval = f"[{p.curvature_low:.2g}, {p.curvature_high:.2g}]"
        reasons.append(
            f"flat: the curvature is not significantly above 0, {interval}, so the vertex's interval is unbounded"
        )
    elif p and not reasons:
        # The parabola does not describe what lies beyond a diverged rate.
        broken = [float(seeds.rate) for seeds in rates if seeds.diverged]
        low = max((rate for rate in broken if rate < best), default=lowest)
        high = min((rate for rate in broken if rate > best), default=highest)
        if not low < p.vertex < high:
            side, end = ("below", low) if p.vertex <= low else ("above", high)
            reasons.append(
                f"the vertex, {short_rate(p.vertex)}, is {side} {short_rate(end)}, the last rate that the grid covers"
            )
    return "; ".join(reasons) or None


def summary(report: dict[str, Any]) -> str:
    """`Transfer.to_json` in words, for a terminal."""
    lines = [f"{report['metric']} against learning rate; intervals: {report['confidence']:.0%}"]
    for network, found in report["networks"].items():
        if found is None:
            lines.append(f"{network}: no rate grid")
            continue
        slope = "" if found["slope"] is None else f"{_interval(found, 'slope', '', '.2f')}, "
        method = "" if found["method"] is None else f" ({found['method']})"
        lines.append(f"{network}: slope of log optimum over log width: {slope}{found['verdict']}{method}")
        for grid in found["grids"]:
            p, text = grid["parabola"], f"no optimum: {grid['refusal']}"
            if grid["optimum"] is not None:
                text = f"optimum {_interval(p, 'vertex', 'vertex_', '.3g')}, residual std {p['residual_std']:.2g}"
            if p and p["lack_of_fit_p"] is not None and p["lack_of_fit_p"] < 1 - report["confidence"]:
                text += f"; a parabola does not fit (p = {p['lack_of_fit_p']:.2g})"
            broken = [seeds for seeds in grid["rates"] if seeds["diverged"]]
            text += "".join(f"; diverged at {seeds['rate']:.2g}: {', '.join(seeds['diverged'])}" for seeds in broken)
            lines.append(f"  {grid['size']}, width {grid['width']}: {text}")
    lines += [] if report["cross_check"] else ["no cross-check"]
    for row in report["cross_check"]:
        ratios = {ratio["rate"]: _interval(ratio, "log_ratio", "", ".2f") for ratio in row["ratios"]}
        columns = []
        for seeds in row["columns"]:
            text = "no value" if seeds["mean"] is None else f"{seeds['mean']:.4g} (n = {len(seeds['values'])})"
            text += f", log ratio to its own rate {ratios[seeds['rate']]}" if seeds["rate"] in ratios else ""
            text += f", diverged: {', '.join(seeds['diverged'])}" if seeds["diverged"] else ""
            columns.append(f"{seeds['rate']}: {text}")
        lines.append(f"{row['size']} by rate: {'; '.join(columns)}; best: {row['best'] or 'none'}")
    lines += [f"left out: {e['trial']} ({e['size']}): {e['reason']}" for e in report["excluded"]]
    return "\n".join(lines)


def _interval(found: dict[str, Any], key: str, prefix: str, style: str) -> str:
    low, high = found[f"{prefix}low"], found[f"{prefix}high"]
    top = "inf" if high is None else f"{high:{style}}"  # JSON has no infinity
    return f"{found[key]:{style}}" + ("" if low is None else f" [{low:{style}}, {top}]")
