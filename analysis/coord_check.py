"""How the change of an output in one training step depends on width (the paper's Eq. 11 and A.11): slopes, a figure.

change = a C^slope for width C. A.11 derives slope 1 at one rate for all widths, and 0 at rates that fall as 1 / C
(Eq. 4). Seeds are the unit of replication: a slope is fitted to each, and the interval is Student-t over them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.statistics import Interval, mean_interval

THEORY = {"eq4": 0.0, "none": 1.0}  # slopes of A.11 by rule
RULES = {"eq4": "rate of Eq. 4", "none": "one rate for all"}
OUTPUTS = {("G", "output"): "image of G", ("D", "output"): "logit of D"}  # what the figure shows


@dataclass(frozen=True)
class Changes:
    """What each step did to one output, by seed, width and step: [S, W, T] each, root mean squares over a fixed
    probe's samples and coordinates."""

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
        raise ValueError("a change is zero or not finite, so that it has no logarithm; measure fewer steps")
    x = np.log(x) - np.log(x).mean()
    return np.tensordot(x, np.log(y), axes=1) / (x @ x)


def fit_slope(widths: ArrayLike, values: NDArray[np.float64]) -> Interval:
    """Of values [S, W, T]: per seed the slope of the mean over steps of log(value)."""
    return mean_interval(log_slopes(widths, np.moveaxis(values, 1, 0)).mean(axis=1))  # the fit is linear


def fit_steps(widths: ArrayLike, values: NDArray[np.float64]) -> list[Interval]:
    """The same for each of the T steps alone."""
    return [mean_interval(slopes) for slopes in log_slopes(widths, np.moveaxis(values, 1, 0)).T]


def report(widths: ArrayLike, measured: list[Changes]) -> list[dict[str, Any]]:
    """For JSON: the slopes of each output and rule.

    `change` is Eq. 11, `size` the output's own before the first step, `relative` of change / size in each step: a
    change that grows with an output that is larger anyway is no faster training. `steps`: of `change`, step by step.
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
