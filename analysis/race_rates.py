"""Arms that a race dropped, in a rate grid: their values at the last step, extrapolated in images seen.

A dropped trial has its last value at a look. The trials of its size with values both there and at the end show how the
metric falls in between, as a power D^-c of the images seen, D. The mean of their c extrapolates the dropped trial. Two
errors follow: that of the mean, which all dropped arms of a size share, and that of an arm, whose c may be as far from
the mean as theirs are. Fits are repeated with DRAWS draws of both, and every interval becomes as wide as the widest of
them. (Rubin's rules for imputed values need a variance; these intervals may lack an end.) The trials that show c are
the survivors, whose values at the look were lucky: they seem to fall a little less than others would.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

import numpy as np

from analysis.fits.parabola import Curve, Curves, Slope
from analysis.statistics import CONFIDENCE
from analysis.table import RACED, Table, Trial

DRAWS = 20
P = ("p_minus_one", "p_zero")
MIN_TRIALS = 3  # that have values at the look and at the end; two say almost nothing about their spread


@dataclass(frozen=True)
class Extrapolated:
    """A dropped trial with the value that it is given at the last step."""

    trial: str
    size: str
    step: int  # of its last value
    exponent: float  # c of D^-c
    value: float  # extrapolated
    spread: float  # standard deviation of ln value at the end between trials that agree at the look
    references: int  # trials that have both values


def extrapolate(table: Table) -> tuple[Table, list[Extrapolated], list[dict[str, float]]]:
    """Give dropped trials a last row; return the table, what was done, and draws of the errors of ln value by trial.

    A trial whose size has fewer than MIN_TRIALS references stays as it is.
    """
    trials, moved = list[Trial](), list[Extrapolated]()
    arms: dict[str, Any] = {}
    for trial in table.trials:
        row = trial.last
        falls = _falls(table, trial) if row.status == RACED else []
        if len(falls) < MIN_TRIALS:
            trials.append(trial)
            continue
        c, span = fmean(falls), math.log(trial.steps / row.step)
        value = row.value * math.exp(-c * span)
        end = replace(row, step=trial.steps, value=value, flops=row.flops * trial.steps / row.step, status="done")
        trials.append(replace(trial, rows=(*trial.rows, end)))
        moved.append(Extrapolated(trial.name, trial.cell.label, row.step, c, value, stdev(falls) * span, len(falls)))
        facts = trial.facts
        arms[trial.name] = (trial.cell, facts.lr_g, facts.lr_d, facts.config.get("train.rate_of"))
    random = np.random.default_rng(0)  # equal input gives equal output
    return replace(table, trials=tuple(trials)), moved, [_errors(moved, arms, random) for _ in range(DRAWS)]


def _errors(moved: list[Extrapolated], arms: Mapping[str, Any], random: np.random.Generator) -> dict[str, float]:
    """Draw the errors of ln value, by trial; the seeds of an arm share theirs."""
    means = {(one.size, one.step): random.standard_t(one.references - 1) for one in moved}
    own = {arm: random.normal() for arm in dict.fromkeys(arms.values())}
    return {
        one.trial: one.spread * (means[one.size, one.step] / math.sqrt(one.references) + own[arms[one.trial]])
        for one in moved
    }


def _falls(table: Table, dropped: Trial) -> list[float]:
    """Return c of each trial of the size that was measured both at the look and at the same last step."""
    last, found = dropped.last, []
    for trial in table.trials:
        if not trial.complete or trial.cell != dropped.cell or trial.steps != dropped.steps:
            continue
        at = next((row for row in trial.rows if row.step == last.step and row.measured == last.measured), None)
        if at is not None and trial.last.measured == last.measured and math.isfinite(at.value):
            found.append(math.log(at.value / trial.last.value) / math.log(trial.steps / last.step))
    return found


# ---------------------------------------------------------------- intervals over draws


def widened(fit: Curves, draws: Sequence[Curves]) -> Curves:
    """The fit with intervals that hold those of all draws; without an end where one of them has none."""
    if not draws:
        return fit
    curves = []
    for i, curve in enumerate(fit.of):
        low, high = _ends([one.of[i] for one in (fit, *draws)])
        curves.append(curve and replace(curve, low=low, high=high))
    return replace(fit, of=tuple(curves), slope=_slope(fit.slope, [one.slope for one in draws]))


def _ends(found: Sequence[Curve | Slope | None]) -> tuple[float | None, float | None]:
    """Return the lowest and the highest end of these intervals; None where one of them has none."""
    lows, highs = [one.low if one else None for one in found], [one.high if one else None for one in found]
    low = None if None in lows else min(low for low in lows if low is not None)
    return low, None if None in highs else max(high for high in highs if high is not None)


def _slope(slope: Slope, others: Sequence[Slope]) -> Slope:
    if slope.slope is None:
        return slope
    low, high = _ends([slope, *others])
    if low is None or high is None:
        why = "not identifiable: the values of dropped arms are too uncertain; go on with them, --retry raced"
        return Slope(None, None, None, None, None, None, why)
    ps = [max(p for p in (getattr(one, name) for one in [slope, *others]) if p is not None) for name in P]
    words = ["differs from" if p < 1 - CONFIDENCE else "consistent with" for p in ps]
    verdict = f"{words[0]} -1 (p = {ps[0]:.2g}), {words[1]} 0 (p = {ps[1]:.2g})"
    method = f"{slope.method}; widened over {len(others)} draws of the extrapolated values"
    return replace(slope, low=low, high=high, method=method, p_minus_one=ps[0], p_zero=ps[1], verdict=verdict)


def lines(moved: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was extrapolated, in words, for a terminal."""
    return [
        f"extrapolated: {one['trial']} ({one['size']}), dropped by a race at step {one['step']}: {one['value']:.4g} "
        f"at the end, as images^{-one['exponent']:.2g}, +- {one['spread']:.2g} of ln value, {one['references']} trials"
        for one in moved
    ]
