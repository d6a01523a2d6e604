"""Split of compute between G and D (the paper's Fig. 6a): two laws of a metric over the training compute of each.

The additive law, value = E + A_G C_G^-a_g + A_D C_D^-a_d, has a best split that changes with the budget; the
first-order law, value = a C_G^-b_g C_D^-b_d, has one for all budgets. The table rejects one of them, both or none.
"""

import math
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.best_split import METHOD, BestSplit, best_splits
from analysis.cells import CONVENTIONS, CellMean, cells_of, sizes_of
from analysis.fits.additive import AdditiveLaw, fit_additive
from analysis.fits.descent import NAMES
from analysis.fits.first_order import FirstOrder, fit_first_order
from analysis.statistics import lack_of_fit
from analysis.table import UNIT, Excluded, Protocol, Table, json_head, one_protocol, strict_json
from analysis.table import better as direction_of
from analysis.two_laws import DRAWS, LEVEL, Choice, choose

Array = NDArray[np.float64]
BUDGETS = 9  # of the curve of best splits
SIZES = 3  # of each network that the additive law needs: an exponent and a factor for each, and E
WORDS = {"additive": "additive law", "first_order": "first-order law"}
LETTERS = {"floor": "E", "a": "A_G", "alpha": "a_g", "b": "A_D", "beta": "a_d"}  # of the additive law's parameters
TEST = (
    f"{DRAWS} draws from each law (Williams 1970); the statistic is the ratio of the laws' residual sums of squares of "
    f"ln value; a law with p of {LEVEL} or less is rejected"
)


@dataclass(frozen=True)
class Surface:
    """Both laws through the cells' means, the test between them, and the best splits."""

    measured: Protocol
    direction: int  # -1 if a lower value is better, 1 if a higher one is
    counted: str  # the columns by which compute is split
    cells: tuple[CellMean, ...]  # by size of G, then of D, cheapest first
    excluded: tuple[Excluded, ...]
    first: FirstOrder
    additive: AdditiveLaw | None
    choice: Choice | None
    standing: tuple[str, ...]  # the laws that are not rejected, that which fits best first
    remark: str  # why the additive law is not possible; empty if it is
    no_split: str  # why a best split is not possible; empty if it is
    at_mean: BestSplit  # at the geometric mean compute of the cells
    curve: tuple[BestSplit, ...]  # from the smallest to the largest compute of the cells

    @property
    def shares(self) -> tuple[float, float]:
        """The smallest and the largest share of compute that G has in a cell."""
        found = [mean.gflops_g / mean.gflops for mean in self.cells]
        return min(found), max(found)

    @property
    def equal_share(self) -> float:
        """G's share of compute at the mean ratio of the cells with both networks of one size; without any, of all."""
        equal = [mean for mean in self.cells if mean.cell.generator_size == mean.cell.discriminator_size] or self.cells
        return 1 / (1 + math.exp(fmean(math.log(mean.gflops_d / mean.gflops_g) for mean in equal)))

    @property
    def verdict(self) -> str:
        """Which law the table allows."""
        return self.choice.verdict if self.choice else f"the first-order law alone: {self.remark}"

    def pays_more(self) -> str:
        """Return the network in which one more FLOP pays more at the equal share, by the best split at mean compute."""
        if self.no_split:
            return "not possible without a best split"
        low, high = self.at_mean.low, self.at_mean.high
        if low is not None and self.equal_share < low:
            return "an added FLOP pays more in G"
        if high is not None and self.equal_share > high:
            return "an added FLOP pays more in D"
        return "not significantly different"

    def to_json(self) -> dict[str, Any]:
        """Return strictly valid JSON: what is not finite, or not available from these trials, is null."""
        sign = "-" if self.direction < 0 else ""
        name, choice = self.measured.metric, self.choice
        return strict_json(
            {
                "laws": {
                    "additive": f"{name} = E + A_G * C_G^-a_g + A_D * C_D^-a_d",
                    "first_order": f"{name} = a * C_G^{sign}b_g * C_D^{sign}b_d",
                },
                **json_head(self.measured),
                "better": "lower" if self.direction < 0 else "higher",
                "unit": UNIT,
                "conventions": CONVENTIONS,
                "split_counted_from": self.counted,
                "trials": sum(len(mean.values) for mean in self.cells),
                "choice": {
                    "verdict": self.verdict,
                    "standing": self.standing,
                    "p_additive": choice and choice.additive,
                    "p_first_order": choice and choice.first_order,
                    "test": TEST,
                },
                "additive": self._additive_json(),
                "first_order": self._first_json(),
                "best_split": {
                    "remark": self.no_split,
                    "method": METHOD,
                    "shares_of_cells": self.shares,
                    "at_mean": asdict(self.at_mean),
                    "curve": [asdict(split) for split in self.curve],
                    "equal_sizes": {"g_share": self.equal_share, "verdict": self.pays_more()},
                },
                "cells": [mean.to_json() for mean in self.cells],
                "excluded": [trial.to_json() for trial in self.excluded],
            }
        )

    def _additive_json(self) -> dict[str, Any] | None:
        if (law := self.additive) is None:
            return None
        found, at_bound = law.coefficients(), [LETTERS[name] for name in law.at_bound]
        rows: dict[str, Any] = {LETTERS[name]: {"estimate": found[name]} for name in NAMES}
        for name in ("floor", "alpha", "beta"):
            rows[LETTERS[name]] |= dict(zip(("low", "high"), law.interval(name), strict=True))
        ended = {"at_bound": at_bound, "starts": law.starts, "agreeing": law.agreeing, "converged": law.converged}
        fitted = law.points.log_values(law.parameters[None])[0]
        return rows | ended | self._quality(fitted, law.rss, law.dof)

    def _first_json(self) -> dict[str, Any]:
        law = self.first
        weights = {"log_a": (1, 0, 0), "b_g": (0, 1, 0), "b_d": (0, 0, 1)}
        rows = {name: asdict(law.contrast(each)) for name, each in weights.items()}
        return rows | {"difference": law.difference()} | self._quality(law.fitted, law.rss, law.dof)

    def _quality(self, fitted: Array, rss: float, dof: int) -> dict[str, Any]:
        """Return how far the cells are from a law, and whether that is more than the spread of their seeds explains."""
        out: dict[str, Any] = {"rss": rss, "residual_std_log": math.sqrt(rss / dof), "degrees_of_freedom": dof}
        return out | {"lack_of_fit": lack_of_fit([np.log(mean.values) for mean in self.cells], fitted, dof)}


def analyse(table: Table, better: str | None = None) -> Surface:
    """Fit a table in which sizes of G and of D vary separately (Fig. 6a); a point is a cell.

    better: `lower` or `higher`, for a metric whose name does not say which value is better.
    Compute is in GFLOPs (multiply-adds / 1e9), split between the networks as CONVENTIONS says.
    Raises ValueError, in one line, for mixed protocols or patches, fewer than four cells off one line in
    (ln C_G, ln C_D), trials of one cell at different compute, or a table that does not say how compute splits.
    """
    trials, excluded = table.complete(), table.excluded()
    measured = one_protocol(trials)
    cells, counted = cells_of(trials, excluded)
    assert measured is not None  # there are cells, so there are trials
    direction = direction_of(measured.metric, better)
    compute = np.array([[mean.gflops_g, mean.gflops_d] for mean in cells])
    log_value = np.array([mean.log_value for mean in cells])
    g, d = compute.T
    first = fit_first_order(np.log(g), np.log(d), log_value, direction)
    additive: AdditiveLaw | None = None
    choice: Choice | None = None
    standing: tuple[str, ...] = ("first_order",)
    if not (remark := _why_no_additive(cells, measured, direction)):
        additive = fit_additive(g, d, np.exp(log_value))
        choice = choose(first, additive)
        rss = {"additive": additive.rss, "first_order": first.rss}
        standing = tuple(sorted(choice.standing, key=lambda law: rss[law]))
    no_split = ""
    if standing[0] == "first_order" and not first.improves():
        no_split = f"no best split: {measured.metric} does not get better with compute"
    total = compute.sum(axis=1)
    budgets = [math.exp(np.log(total).mean()), *np.geomspace(total.min(), total.max(), BUDGETS).tolist()]
    at_mean, *curve = best_splits(budgets, compute, first, additive, standing)
    return Surface(
        measured, direction, counted, cells, tuple(excluded), first, additive, choice, standing, remark, no_split,
        at_mean, tuple(curve),
    )  # fmt: skip


def _why_no_additive(cells: tuple[CellMean, ...], measured: Protocol, direction: int) -> str:
    """Return why these cells have no additive law, in words; empty if they have one."""
    if direction > 0:
        return f"the additive law falls to a floor, and of {measured.metric} a higher value is better"
    sizes_g, sizes_d = sizes_of(cells)
    if min(len(sizes_g), len(sizes_d)) < SIZES or len(cells) <= len(NAMES):
        found = f"{len(cells)} cells of {len(sizes_g)} sizes of G and {len(sizes_d)} of D"
        needed = f"{len(NAMES) + 1} cells of {SIZES} sizes of each"
        return f"the additive law needs {needed}, this table has {found}"
    return ""


# ---------------------------------------------------------------- words


def verdict(report: dict[str, Any]) -> str:
    """The answer in one line."""
    best = report["best_split"]
    if best["remark"]:
        return str(best["remark"])
    at = best["at_mean"]
    return f"{share_text(at, best['shares_of_cells'])} at C = {at['gflops']:.3g} GFLOPs; {report['choice']['verdict']}"


def summary(report: dict[str, Any]) -> str:
    """The surface's JSON in words, for a terminal."""
    additive, first, best, choice = (report[key] for key in ("additive", "first_order", "best_split", "choice"))
    lines = [f"{report['trials']} trials of {len(report['cells'])} cells; {choice['verdict']}"]
    for name, law, keys in (("additive", additive, ("a_g", "a_d")), ("first_order", first, ("b_g", "b_d"))):
        if law is not None:
            floor = f", E = {estimate(law['E'], '.3g')}" if "E" in law else ""
            lines.append(f"{WORDS[name]}: {report['laws'][name]}")
            lines.append("  " + ", ".join(f"{key} = {estimate(law[key])}" for key in keys) + floor)
            if at_bound := law.get("at_bound"):
                lines.append(f"  at a bound of what a law may be: {', '.join(at_bound)}")
            if "p" in (fit := law["lack_of_fit"]):
                words = "misses the cells by more than their seeds vary" if fit["found"] else "shows no lack of fit"
                lines.append(f"  {words} (p = {fit['p']:.2g}, {fit['seeds_std_log']:.3g} between seeds)")
    gap = first["difference"]
    lines.append(f"  b_d - b_g = {estimate(gap)}: {gap['verdict']}, per log unit of its compute (p = {gap['p']:.2g})")
    if best["remark"]:
        lines.append(best["remark"])
    else:
        shares = best["shares_of_cells"]
        lines.append("best split:")
        if choice["standing"] == ["first_order"]:
            lines[-1] = f"best split at every C: {share_text(best['at_mean'], shares)}"
        else:
            for split in (best["curve"][0], best["at_mean"], best["curve"][-1]):
                beyond = "" if split["trained"] else " (sizes beyond those trained)"
                lines.append(f"  at C = {split['gflops']:.3g} GFLOPs: {share_text(split, shares)}{beyond}")
        equal = best["equal_sizes"]
        lines.append(f"where G has {equal['g_share']:.1%}, as at equal sizes: {equal['verdict']}")
    lines += [f"left out: {e['trial']}: {e['reason']}" for e in report["excluded"]]
    return "\n".join(lines)


def estimate(row: dict[str, Any], form: str = ".3f") -> str:
    """An estimate and its interval as text."""
    low, high = ("none" if row[end] is None else format(row[end], form) for end in ("low", "high"))
    return f"{row['estimate']:{form}} [{low}, {high}]"


def share_text(split: dict[str, Any], shares: tuple[float, float]) -> str:
    """The best split of a budget as text; shares: the smallest and the largest of the cells."""
    share, low, high = split["share"], split["low"], split["high"]
    if low is None and high is None:
        ends = f"any share from {shares[0]:.1%} to {shares[1]:.1%} may be best"
    elif low is not None and high is not None:
        ends = f"[{low:.1%}, {high:.1%}]"
    else:
        ends = f"at least {low:.1%}" if high is None else f"at most {high:.1%}"
    return ends if share is None else f"{share:.1%} to G, {ends}"
