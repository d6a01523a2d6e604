"""Slopes of an output's change in one training step over width (the paper's Eq. 11 and A.11).

change = a C^slope for width C. A.11 derives slope 1 at one rate for all widths, and 0 at rates that fall as 1 / C
(Eq. 4). Seeds are the unit of replication: each seed gets a slope, and the interval is Student-t over seeds.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.statistics import Interval, mean_interval

THEORY = {"eq4": 0.0, "none": 1.0}  # slopes of A.11 by rule
RULES = {"eq4": "rate of Eq. 4", "none": "one rate for all"}
OUTPUTS = {("G", "output"): "image of G", ("D", "output"): "logit of D"}  # rows of the figure


@dataclass(frozen=True)
class Changes:
    """Change of one output in each step, by seed, width and step: [S, W, T] each.

    Values are root mean squares over the samples and coordinates of a fixed probe.
    """

    network: str  # G or D
    layer: str  # output, or last block
    rule: str  # of the learning rate: eq4 or none
    change: NDArray[np.float64]  # of the output in the step (Eq. 11)
    size: NDArray[np.float64]  # of the output itself, before the step


def log_slopes(widths: ArrayLike, values: ArrayLike) -> NDArray[np.float64]:
    """Least-squares slope of log(value) on log(width); values [W, ...] -> [...].

    Raises ValueError for fewer than two widths, and for values without a logarithm.
    """
    x, y = np.asarray(widths, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if len(np.unique(x)) < 2:
        raise ValueError("a slope needs at least two widths")
    if not (np.isfinite(y).all() and (y > 0).all()):
        raise ValueError("a change is zero or not finite and has no logarithm; measure fewer steps")
    x = np.log(x) - np.log(x).mean()
    return np.tensordot(x, np.log(y), axes=1) / (x @ x)


def fit_slope(widths: ArrayLike, values: NDArray[np.float64]) -> Interval:
    """Fit one slope per seed to values [S, W, T]: that of the mean of log(value) over steps."""
    # The fit is linear, so the mean of the steps' slopes is the slope of their mean.
    return mean_interval(log_slopes(widths, np.moveaxis(values, 1, 0)).mean(axis=1))


def fit_steps(widths: ArrayLike, values: NDArray[np.float64]) -> list[Interval]:
    """Fit one slope per seed to each of the T steps of values [S, W, T]."""
    return [mean_interval(slopes) for slopes in log_slopes(widths, np.moveaxis(values, 1, 0)).T]


def report(widths: ArrayLike, measured: list[Changes]) -> list[dict[str, Any]]:
    """Return the slopes of each output and rule, for JSON.

    change: of Eq. 11. size: of the output itself before the first step. relative: of change / size in each step,
    because a change that only follows the output's size is not faster training. steps: of change, step by step.
    """
    return [
        {
            "network": item.network,
            "layer": item.layer,
            "rule": item.rule,
            "theory": THEORY[item.rule],
            "change": _slope(fit_slope(widths, item.change)),
            "relative": _slope(fit_slope(widths, item.change / item.size)),
            "size": _slope(fit_slope(widths, item.size[..., :1])),
            "steps": [_slope(slope) for slope in fit_steps(widths, item.change)],
        }
        for item in measured
    ]


def _slope(found: Interval) -> dict[str, Any]:
    return {"slope": found.mean, "low": found.low, "high": found.high, "by_seed": found.by_seed}
