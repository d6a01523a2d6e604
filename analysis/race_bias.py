"""Values of the survivors of a race, naive and adjusted for their having been chosen by their values.

An arm survives a look the more easily, the luckier its noise; part of that luck is still in its last value. So values
of survivors are biased in their favour. The bias is estimated by a parametric bootstrap of the race (Efron and
Tibshirani 1993, chapter 10): arms with the means, noise and correlation over steps that were measured race again and
again by the same decisions; the mean error of an arm's last value, over those races that it survives, is subtracted.
The correction is of first order: the means that it starts from are themselves biased, so a part of the bias remains.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.race import Decision, Group, dropped, residuals

Array = NDArray[np.float64]
RACES = 2000  # of a bootstrap
FEWEST = 100  # races that an arm has to survive for an estimate of its bias


@dataclass(frozen=True)
class Survivor:
    """An arm that no look dropped: geometric means over its seeds at the last step."""

    size: str
    arm: str  # as race.json names it
    naive: float
    bias: float | None  # of ln value; None if the arm survives too few races of the bootstrap
    adjusted: float | None
    trials: tuple[str, ...]


def adjust(group: Group, values: Mapping[str, Mapping[int, float]]) -> list[Survivor]:
    """Adjust the survivors of a group.

    values: by trial and step, at the looks and at the last step of all trials that reached it.
    """
    if not group.decisions:
        return []
    end = max(step for found in values.values() for step in found)
    steps = [*(decision.step for decision in group.decisions), end]
    logs: dict[int, dict[str, Array]] = {}  # by step and arm, [seeds]
    for step in steps:
        for label, trials in group.arms.items():
            found = [values.get(trial, {}).get(step) for _, trial in sorted(trials.items())]
            if all(one is not None for one in found):
                logs.setdefault(step, {})[label] = np.log(np.array(found, dtype=np.float64))
    raced = list(group.decisions[0].arms)
    left = [label for label in group.decisions[-1].left if label in logs.get(end, {})]
    biases = _biases(group.decisions, steps, logs, raced)
    survivors = []
    for label in left:
        mean, bias = float(logs[end][label].mean()), biases[raced.index(label)]
        adjusted = None if math.isnan(bias) else math.exp(mean - bias)
        known = None if math.isnan(bias) else bias
        survivors.append(
            Survivor(group.size, label, math.exp(mean), known, adjusted, tuple(group.arms[label].values()))
        )
    return survivors


def _biases(
    decisions: tuple[Decision, ...], steps: list[int], logs: dict[int, dict[str, Array]], raced: list[str]
) -> Array:
    """Return the mean error of the last ln value of each arm [arms] over the races that it survives; else NaN."""
    means = _means(steps, logs, raced)
    noise, correlation = _noise(steps, logs)
    seeds = len(next(iter(logs[steps[0]].values())))
    random = np.random.default_rng(0)  # equal input gives equal output
    errors: list[list[float]] = [[] for _ in raced]
    for _ in range(RACES):
        shocks = random.normal(size=(len(steps), len(raced), seeds))
        for before, now in pairwise(shocks):
            now *= math.sqrt(1 - correlation**2)
            now += correlation * before
        alive = np.arange(len(raced))
        for decision, mean, shock in zip(decisions, means, shocks, strict=False):
            if len(alive) > 1:
                alive = alive[~dropped(mean[alive, None] + noise * shock[alive], decision.alpha)]
        for arm in alive:
            errors[arm].append(noise * float(shocks[-1, arm].mean()))
    return np.array([np.mean(found) if len(found) >= FEWEST else math.nan for found in errors])


def _means(steps: list[int], logs: dict[int, dict[str, Array]], raced: list[str]) -> Array:
    """Return the mean ln value [steps, arms]; after its last value, an arm moves as the other arms do on average."""
    means = np.full((len(steps), len(raced)), math.nan)
    for row, step in enumerate(steps):
        for column, label in enumerate(raced):
            if label in logs.get(step, {}):
                means[row, column] = logs[step][label].mean()
    for row in range(1, len(steps)):
        moved = means[row] - means[row - 1]
        known = moved[np.isfinite(moved)]
        lost = np.isnan(means[row])
        means[row, lost] = means[row - 1, lost] + (known.mean() if len(known) else 0.0)
    return means


def _noise(steps: list[int], logs: dict[int, dict[str, Array]]) -> tuple[float, float]:
    """Return the noise of ln value over all steps, and its correlation from one of these steps to the next (0 to 1)."""
    squares = dof = product = before = after = 0.0
    for step in steps:
        arms = logs.get(step, {})
        if len(arms) > 1:
            left = residuals(np.stack(list(arms.values())))
            squares, dof = squares + float((left**2).sum()), dof + (left.shape[0] - 1) * (left.shape[1] - 1)
    for one, other in pairwise(steps):
        both = [label for label in logs.get(one, {}) if label in logs.get(other, {})]
        if not both:
            continue
        first, second = (np.stack([logs[step][label] for label in both]) for step in (one, other))
        # One arm alone has no other to tell what its seeds share.
        a, b = (residuals(x) if len(both) > 1 else x - x.mean(axis=1, keepdims=True) for x in (first, second))
        product, before, after = (
            product + float((a * b).sum()),
            before + float((a**2).sum()),
            after + float((b**2).sum()),
        )
    correlation = product / math.sqrt(before * after) if before > 0 and after > 0 else 0.0
    return (math.sqrt(squares / dof) if dof else 0.0), min(1.0, max(0.0, correlation))


def survivors_json(survivors: list[Survivor]) -> list[dict[str, Any]]:
    return [{**vars(one), "trials": list(one.trials)} for one in survivors]


def lines(survivors: list[dict[str, Any]]) -> list[str]:
    """The survivors in words, for a terminal."""
    found = ["survivors of the race, geometric mean over seeds: naive, and adjusted for the choice by their values"]
    for one in survivors:
        text = "not adjusted: it survives too few races of the bootstrap"
        if one["adjusted"] is not None:
            text = f"adjusted {one['adjusted']:.4g} (bias of ln value {one['bias']:.2g})"
        found.append(f"  {one['size']}, {one['arm']}: naive {one['naive']:.4g}, {text}")
    return found
