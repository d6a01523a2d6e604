"""Split of compute between G and D (the paper's Fig. 6a): a metric over the training compute of each network.

ln value = ln a - b_G ln C_G - b_D ln C_D, and with second powers if enough cells were trained, by least squares. A test
of b_D - b_G says which network pays more. A best split counts only inside the grid, with an interval.
"""

import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from analysis.statistics import CONFIDENCE, aicc
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

Array = NDArray[np.float64]
MIN_CELLS = 4
QUADRATIC_CELLS = 9  # for six coefficients: three sizes of G with three of D
LINE = 0.05  # cells are on one line if they spread across it less than this share of their spread along it
FORWARDS = {"G": 3, "D": 15}  # in an iteration, if the table has no items of it
OWN = ("g_forward", "g_backward")  # prefixes of the items of G's compute
REPLICATE = 0.01  # largest range of ln compute among the trials of a cell
SPLITS = 1001  # splits at which a surface is searched
TERMS = ("1", "x", "y", "x^2", "y^2", "xy")
EXPONENTS = {"b_g": (0, -1, 0), "b_d": (0, 0, -1)}  # as weights of the coefficients
DIFFERENCE = (0, 1, -1)  # b_d - b_g
METHOD = (
    "least value along C_G + C_D = gflops, inside the grid; the interval holds every split whose slope does not differ "
    "significantly from 0 (Fieller's method, Student t); it counts only if both ends lie inside the grid and the "
    "metric falls towards it from both sides"
)
CONVENTIONS = (
    "C_G and C_D are training compute in GFLOPs (multiply-adds / 1e9; the run table's flops count 2 per multiply-add), "
    "C = C_G + C_D. C_G is G's own forward and backward (items g_forward*, g_backward*); C_D is everything else: D's "
    "step, D's passes in G's step, the teacher's passes. Without items, an iteration is 3 forwards of G and 15 of D. A "
    "point is a trial's last evaluation. b_g and b_d are per unit of ln C_G and ln C_D, with the other constant. "
    "x = ln C_G and y = ln C_D, less their means over cells. per_flop is at g_share, G's share of C in cells with both "
    "networks of one size (in all cells if there are none), at the mean ratio of these cells."
)


@dataclass(frozen=True)
class CellMean:
    """A size of G with a size of D: its complete trials, which are replicates, and their mean training GFLOPs."""

    cell: Cell
    gflops_g: float
    gflops_d: float
    trials: tuple[str, ...]
    values: tuple[float, ...]

    @property
    def gflops(self) -> float:
        return self.gflops_g + self.gflops_d

    @property
    def name(self) -> str:
        return f"G {self.cell.generator_size}, D {self.cell.discriminator_size}"

    def to_json(self) -> dict[str, Any]:
        more = {"gflops": self.gflops, "g_share": self.gflops_g / self.gflops, "value": fmean(self.values)}
        return self.cell._asdict() | {key: item for key, item in vars(self).items() if key != "cell"} | more


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of coefficients: 95 % Student-t interval, t, and the two-sided p of its being 0."""

    estimate: float
    low: float
    high: float
    t: float
    p: float


@dataclass(frozen=True)
class Fit:
    """Least squares of ln value [n]: coefficients [k] of the first k TERMS (3 or 6), and their covariance [k, k]."""

    coefficients: Array
    covariance: Array
    rss: float
    n: int

    @property
    def dof(self) -> int:
        return self.n - len(self.coefficients)

    @property
    def aicc(self) -> float | None:
        return aicc(self.rss, self.n, len(self.coefficients) + 1)  # sigma is also a parameter

    @property
    def quantile(self) -> float:
        return float(special.stdtrit(self.dof, (1 + CONFIDENCE) / 2))

    def contrast(self, weights: ArrayLike) -> Contrast:
        w = np.asarray(weights, dtype=np.float64)
        estimate, error = float(w @ self.coefficients), math.sqrt(max(float(w @ self.covariance @ w), 0.0))
        t = estimate / error if error > 0 else math.copysign(math.inf, estimate) if estimate else 0.0
        half = self.quantile * error
        return Contrast(estimate, estimate - half, estimate + half, t, 2 * float(special.stdtr(self.dof, -abs(t))))

    def compare(self, weights: ArrayLike, words: str) -> dict[str, Any]:
        """Return a contrast that is above 0 if D is the better choice; words: its verdict, with {} for the network."""
        found = self.contrast(weights)
        verdict = "not significantly different"
        if found.low > 0 or found.high < 0:
            verdict = words.format("D" if found.low > 0 else "G")
        return asdict(found) | {"verdict": verdict}

    def to_json(self, named: dict[str, Any]) -> dict[str, Any]:
        std = math.sqrt(self.rss / self.dof)
        quality = {"rss": self.rss, "residual_std_log": std, "degrees_of_freedom": self.dof, "aicc": self.aicc}
        return {name: asdict(self.contrast(weights)) for name, weights in named.items()} | quality


@dataclass(frozen=True)
class Split:
    """G's share of C at the best split, with its 95 % interval; None, and a remark, if no split counts as best."""

    share: float | None = None
    low: float | None = None
    high: float | None = None
    remark: str = ""


@dataclass(frozen=True)
class Surface:
    """Both fits over trials, the cells they were fitted to, and the trials left out."""

    measured: Protocol
    counted: str  # the columns by which compute is split
    cells: tuple[CellMean, ...]  # by size of G, then of D, cheapest first
    excluded: tuple[Excluded, ...]
    centre: Array  # [2]: mean over cells of ln C_G and ln C_D
    first: Fit
    over_means: Fit | None  # the first-order law through the cells' means of ln value; None without replicates
    quadratic: Fit | None  # None if it is not identifiable
    first_split: Split
    quadratic_split: Split

    @property
    def equal_share(self) -> float:
        """G's share of compute at the mean ratio of the cells with both networks of one size; without any, of all."""
        equal = [mean for mean in self.cells if mean.cell.generator_size == mean.cell.discriminator_size] or self.cells
        return 1 / (1 + math.exp(fmean(math.log(mean.gflops_d / mean.gflops_g) for mean in equal)))

    def per_log(self) -> dict[str, Any]:
        """Return b_d - b_g, and the network that pays more per unit of the logarithm of its own compute."""
        return self.first.compare(DIFFERENCE, "scaling {} pays more")

    def per_flop(self) -> dict[str, Any]:
        """Return the network in which one more FLOP pays more, at the equal share: b_d / C_D against b_g / C_G."""
        share = self.equal_share
        return {"g_share": share} | self.first.compare((0, 1 - share, -share), "an added FLOP pays more in {}")

    def to_json(self) -> dict[str, Any]:
        """Return strictly valid JSON: what is not finite, or not available from these trials, is null."""
        first, second, means = self.first, self.quadratic, self.over_means
        return strict_json(
            {
                "law": f"{self.measured.metric} = a * C_G^-b_g * C_D^-b_d",
                **json_head(self.measured),
                "unit": UNIT,
                "conventions": CONVENTIONS,
                "split_counted_from": self.counted,
                "trials": first.n,
                "first_order": first.to_json({"log_a": (1, *-self.centre)} | EXPONENTS),
                "quadratic": second and second.to_json(dict(zip(TERMS, np.eye(6), strict=True))),
                "aicc_verdict": self._preferred(),
                "comparison": {
                    "per_log_compute": self.per_log(),
                    "per_log_compute_over_cell_means": means and means.compare(DIFFERENCE, "scaling {} pays more"),
                    "per_flop": self.per_flop(),
                },
                "best_split": {
                    "gflops": _mean_gflops(self.cells),
                    "method": METHOD,
                    "first_order": asdict(self.first_split),
                    "quadratic": asdict(self.quadratic_split),
                },
                "replicates": self._replicates(),
                "cells": [mean.to_json() for mean in self.cells],
                "excluded": [trial.to_json() for trial in self.excluded],
            }
        )

    def _preferred(self) -> str:
        if self.quadratic is None:
            return f"not identifiable: {self.quadratic_split.remark}"
        one, two = self.first.aicc, self.quadratic.aicc
        assert one is not None and two is not None  # nine cells or more
        return f"AICc prefers the {'quadratic surface' if two < one else 'first-order law'} by {abs(two - one):.1f}"

    def _replicates(self) -> dict[str, Any] | None:
        """Return the spread within cells, and whether the first-order law misses the cells' means by more than that."""
        cells, n = len(self.cells), self.first.n
        if n == cells:
            return None
        error = sum(float(np.var(np.log(mean.values)) * len(mean.values)) for mean in self.cells)
        lack, variance = max(self.first.rss - error, 0.0) / (cells - 3), error / (n - cells)
        ratio = lack / variance if variance > 0 else math.inf
        p = float(special.fdtrc(cells - 3, n - cells, ratio))
        fits = (
            "does not fit: its intervals over trials are too narrow" if p < 1 - CONFIDENCE else "shows no lack of fit"
        )
        spread = {"pure_error_std_log": math.sqrt(variance), "degrees_of_freedom": n - cells}
        return spread | {"lack_of_fit_f": ratio, "p": p, "verdict": f"the first-order law {fits}"}


# ---------------------------------------------------------------- fit


def analyse(table: Table, better: str | None = None) -> Surface:
    """Fit a table in which sizes of G and of D vary separately (Fig. 6a); a complete trial is an observation.

    Compute is in GFLOPs (multiply-adds / 1e9), split between the networks as CONVENTIONS says.
    Raises ValueError, in one line, for mixed protocols or patches, fewer than four cells off one line in
    (ln C_G, ln C_D), trials of one cell at different compute, or a table that does not say how compute splits.
    """
    trials, excluded = table.complete(), table.excluded()
    measured = one_protocol(trials)
    replicates(trials)
    if len(patches := sorted({trial.cell.patch for trial in trials})) > 1:
        raise ValueError(
            f"a surface needs one patch size, this table has {', '.join(map(str, patches))}; fit them separately"
        )
    shares, counted = _shares(trials)
    cells = _cell_means(trials, shares)
    points = np.log([[mean.gflops_g, mean.gflops_d] for mean in cells]).reshape(-1, 2)
    if measured is None or len(cells) < MIN_CELLS or _on_one_line(points):
        found = "; ".join(mean.name for mean in cells) or "none"
        left_out = "; ".join(f"{e.trial}: {e.reason}" for e in excluded) or "none"
        raise ValueError(
            f"a surface needs at least {MIN_CELLS} complete cells that are not on one line in (ln C_G, ln C_D), this "
            f"table has: {found}; train sizes of G with other sizes of D; left out: {left_out}"
        )
    centre = points.mean(axis=0)
    counts = [len(mean.values) for mean in cells]
    value = np.log([value for mean in cells for value in mean.values])
    design = _design(*(points - centre).T)  # [cells, 6]
    first, over_means, quadratic = _fit(np.repeat(design[:, :3], counts, axis=0), value), None, None
    if len(value) > len(cells):
        over_means = _fit(design[:, :3], np.array([np.log(mean.values).mean() for mean in cells]))
    first_split, second_split = _best_split(first, cells, centre), Split(remark=_why_no_quadratic(points))
    if weak := [name for name, weights in EXPONENTS.items() if first.contrast(weights).low <= 0]:
        first_split = Split(remark=f"no best split: {' and '.join(weak)} not significantly above 0")
    if not second_split.remark:
        quadratic = _fit(np.repeat(design, counts, axis=0), value)
        second_split = _best_split(quadratic, cells, centre)
    fits, splits = (first, over_means, quadratic), (first_split, second_split)
    return Surface(measured, counted, cells, tuple(excluded), centre, *fits, *splits)


def _shares(trials: list[Trial]) -> tuple[Array, str]:
    """Return G's share of each trial's compute [n], and the columns that give it, the same for all trials."""
    facts = [trial.facts for trial in trials]
    if all(f.items for f in facts):
        counted = "flops_per_image"
        g = [sum(flops for item, flops in f.items.items() if item.startswith(OWN)) for f in facts]
        d = [sum(f.items.values()) - own for f, own in zip(facts, g, strict=True)]
    else:
        counted = "g_forward_flops and d_forward_flops"
        if missing := [trial.name for trial in trials if trial.facts.d_forward_flops is None]:
            raise ValueError(
                f"compute cannot be split between G and D: {missing[0]} lacks d_forward_flops, and not all trials have "
                "flops_per_image; add one of these columns"
            )
        g = [FORWARDS["G"] * trial.last.g_forward_flops for trial in trials]
        d = [FORWARDS["D"] * (f.d_forward_flops or 0.0) for f in facts]
    for trial, *both in zip(trials, g, d, strict=True):
        if not (min(both) > 0 and math.isfinite(sum(both))):
            raise ValueError(
                f"compute cannot be split between G and D: {trial.name}'s {counted} must be positive for both networks"
            )
    return np.array(g) / (np.array(g) + np.array(d)), counted


def _cell_means(trials: list[Trial], shares: Array) -> tuple[CellMean, ...]:
    members: dict[Cell, list[int]] = defaultdict(list)
    for i, trial in enumerate(trials):
        members[trial.cell].append(i)
    cells = []
    for cell, found in members.items():
        names = tuple(trials[i].name for i in found)
        compute = np.array([gflops(trials[i].last.flops) for i in found])
        if np.ptp(np.log(compute)) > REPLICATE:
            raise ValueError(f"trials of one cell differ in training compute ({', '.join(names)}); fit them separately")
        g = float((compute * shares[found]).mean())
        cells.append(CellMean(cell, g, float(compute.mean()) - g, names, tuple(trials[i].last.value for i in found)))
    sizes_g, sizes_d = sizes_of(cells)
    return tuple(
        sorted(
            cells,
            key=lambda mean: (sizes_g.index(mean.cell.generator_size), sizes_d.index(mean.cell.discriminator_size)),
        )
    )


def sizes_of(cells: list[CellMean] | tuple[CellMean, ...]) -> tuple[list[str], list[str]]:
    """Return the sizes of G and the sizes of D, each cheapest first."""
    g = {mean.cell.generator_size: mean.gflops_g for mean in cells}
    d = {mean.cell.discriminator_size: mean.gflops_d for mean in cells}
    return sorted(g, key=lambda size: g[size]), sorted(d, key=lambda size: d[size])


def _mean_gflops(cells: tuple[CellMean, ...]) -> float:
    """Geometric mean of C over cells, at which the best split is searched."""
    return math.exp(fmean(math.log(mean.gflops) for mean in cells))


def _on_one_line(points: Array) -> bool:
    along, aside = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    return bool(aside <= LINE * along)


def _why_no_quadratic(points: Array) -> str:
    if len(points) < QUADRATIC_CELLS:
        return f"a quadratic surface needs {QUADRATIC_CELLS} cells, this table has {len(points)}"
    scaled = (points - points.mean(axis=0)) / points.std(axis=0)
    full = np.linalg.svd(_design(*scaled.T), compute_uv=False)
    return "" if full[-1] > 1e-3 * full[0] else "a quadratic surface needs three sizes of G with three of D"


def _design(x: ArrayLike, y: ArrayLike) -> Array:
    u, v = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    return np.stack([np.ones_like(u), u, v, u * u, v * v, u * v], axis=-1)


def _fit(design: Array, value: Array) -> Fit:
    coefficients = np.linalg.lstsq(design, value, rcond=None)[0]
    residuals = value - design @ coefficients
    rss, n = float(residuals @ residuals), len(value)
    covariance = np.linalg.inv(design.T @ design) * rss / (n - len(coefficients))
    return Fit(np.asarray(coefficients, dtype=np.float64), np.asarray(covariance, dtype=np.float64), rss, n)


def _best_split(fit: Fit, cells: tuple[CellMean, ...], centre: Array) -> Split:
    """Find the least value along C_G + C_D = C, at the cells' geometric mean C and inside the grid.

    Inside means between the cells' smallest and largest C_G, C_D and ratio. The slope of ln value over ln(C_G / C_D) is
    linear in the coefficients, so its sign is tested exactly at each split (METHOD). For the first-order law the slope
    is 0 where G's share is b_g / (b_g + b_d), at every C.
    """
    points = np.log([[mean.gflops_g, mean.gflops_d] for mean in cells])
    total, terms = math.log(_mean_gflops(cells)), len(fit.coefficients)
    ratios = points[:, 0] - points[:, 1]
    ratio = np.linspace(ratios.min(), ratios.max(), SPLITS)
    path = total - np.logaddexp(0, np.stack([-ratio, ratio], axis=1))  # ln C_G, ln C_D
    # C_D falls along the path as C_G rises, so the part of it inside a box is one piece.
    kept = ((path >= points.min(axis=0)) & (path <= points.max(axis=0))).all(axis=1)
    ratio, path, last = ratio[kept], path[kept], int(kept.sum()) - 1
    share, (x, y) = np.exp(path[:, 0] - total), (path - centre).T
    dx, dy = 1 - share, -share  # derivatives of ln C_G and ln C_D by the log ratio
    slopes = np.stack([0 * x, dx, dy, 2 * x * dx, 2 * y * dy, x * dy + y * dx], axis=1)[:, :terms]
    slope = slopes @ fit.coefficients
    spread = fit.quantile * np.sqrt(np.maximum(((slopes @ fit.covariance) * slopes).sum(axis=1), 0))
    best = int(np.argmin(_design(x, y)[:, :terms] @ fit.coefficients))

    def edge(i: int) -> str:
        nearest = cells[int(np.argmin(((points - path[i]) ** 2).sum(axis=1)))]
        beyond = "smaller G or larger D" if i == 0 else "larger G or smaller D"
        return f"the edge of the grid: {nearest.name} ({share[i]:.1%} of compute to G; try {beyond})"

    if best in (0, last):
        return Split(remark=f"no optimum: the best split is at {edge(best)}")
    curvature = (slope[best + 1] - slope[best - 1]) / (ratio[best + 1] - ratio[best - 1])
    vertex = float(1 / (1 + np.exp(slope[best] / curvature - ratio[best])))  # a Newton step between two splits
    falls, rises = np.flatnonzero(slope[:best] < -spread[:best]), best + np.flatnonzero((slope > spread)[best:])
    if ends := [edge(i) for i, bound in ((0, falls), (last, rises)) if not len(bound)]:
        reached = " and ".join(ends)
        return Split(remark=f"no valid optimum: a minimum at {vertex:.1%} to G, but its interval reaches {reached}")
    return Split(vertex, float(share[falls[-1]]), float(share[rises[0]]))


# ---------------------------------------------------------------- words


def summary(report: dict[str, Any]) -> str:
    """The surface's JSON in words, for a terminal."""
    first, compared, best = report["first_order"], report["comparison"], report["best_split"]
    log, flop, means = (compared[f"per_{key}"] for key in ("log_compute", "flop", "log_compute_over_cell_means"))
    lines = [
        f"{report['law']}, {report['trials']} trials of {len(report['cells'])} cells",
        *(f"{key} = {estimate(first[key])}, {first['degrees_of_freedom']} degrees of freedom" for key in EXPONENTS),
        f"b_d - b_g = {estimate(log)}: {log['verdict']}, per log unit of that network's compute (p = {log['p']:.2g})",
    ]
    if means:
        lines.append(f"  over cells' means: {estimate(means)}: {means['verdict']} (p = {means['p']:.2g})")
    lines.append(f"where G has {flop['g_share']:.1%} of compute: {flop['verdict']} (p = {flop['p']:.2g})")
    if spread := report["replicates"]:
        verdict = f"{spread['verdict']} (p = {spread['p']:.2g})"
        lines.append(f"ln value varies by {spread['pure_error_std_log']:.3g} between seeds; {verdict}")
    lines.append(report["aicc_verdict"])
    for name, split in (("first-order law", best["first_order"]), ("quadratic surface", best["quadratic"])):
        found = split["remark"]
        if split["share"] is not None:
            ends = f"[{split['low']:.1%}, {split['high']:.1%}]"
            found = f"best split at C = {best['gflops']:.3g} GFLOPs: {split['share']:.1%} to G {ends}"
        lines.append(f"{name}: {found}")
    lines += [f"left out: {e['trial']}: {e['reason']}" for e in report["excluded"]]
    return "\n".join(lines)


def estimate(row: dict[str, Any]) -> str:
    """A contrast's estimate and interval as text."""
    return f"{row['estimate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
