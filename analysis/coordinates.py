"""How the change of an output in one training step depends on width (the paper's Eq. 11 and A.11): slopes, a figure.

change = a C^slope for width C. A.11 derives slope 1 at one rate for all widths, and 0 at rates that fall as 1 / C
(Eq. 4). Seeds are the unit of replication: a slope is fitted to each, and the interval is Student-t over them.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from analysis.law import CONFIDENCE
from analysis.style import COLOURS, LINES, MARKERS, STYLE, save_figure

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


@dataclass(frozen=True)
class Slope:
    """Mean over seeds with its 95 % Student-t interval; None for one seed, which has none."""

    slope: float
    low: float | None
    high: float | None
    by_seed: tuple[float, ...]


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


def slope_over_seeds(by_seed: ArrayLike) -> Slope:
    """Mean and interval of one slope per seed."""
    slopes = np.asarray(by_seed, dtype=np.float64)
    n, mean = len(slopes), float(slopes.mean())
    if n < 2:
        return Slope(mean, None, None, tuple(slopes.tolist()))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * slopes.std(ddof=1) / np.sqrt(n))
    return Slope(mean, mean - half, mean + half, tuple(slopes.tolist()))


def fit_slope(widths: ArrayLike, values: NDArray[np.float64]) -> Slope:
    """Of values [S, W, T]: per seed the slope of the mean over steps of log(value)."""
    return slope_over_seeds(log_slopes(widths, np.moveaxis(values, 1, 0)).mean(axis=1))  # the fit is linear


def fit_steps(widths: ArrayLike, values: NDArray[np.float64]) -> list[Slope]:
    """The same for each of the T steps alone."""
    return [slope_over_seeds(slopes) for slopes in log_slopes(widths, np.moveaxis(values, 1, 0)).T]


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
            "change": asdict(fit_slope(widths, item.change)),
            "relative": asdict(fit_slope(widths, item.change / item.size)),
            "size": asdict(fit_slope(widths, item.size[..., :1])),
            "steps": [asdict(slope) for slope in fit_steps(widths, item.change)],
        }
        for item in measured
    ]


# ---------------------------------------------------------------- figure


def plot_coordinates(
    widths: list[int], measured: list[Changes], first_step: int, path_without_suffix: Path
) -> list[Path]:
    """Draw change against width, and the slope at each step, for both networks, as .svg and .png; return the paths.

    A small mark is a seed (geometric mean over its steps), a large one the mean over seeds, with the fitted line
    through it; dotted lines have the slopes of A.11. first_step: number of the first step measured, from 1.
    Equal input gives equal bytes.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 6.0), layout="constrained")
        rows = figure.subplots(2, 2, width_ratios=(1.25, 1))
        for row, (key, name) in zip(rows, OUTPUTS.items(), strict=True):
            chosen = [item for item in measured if (item.network, item.layer) == key]
            _draw_widths(row[0], widths, chosen, name)
            _draw_steps(row[1], widths, chosen, first_step)
        rows[0][0].set_title("change in one step (Eq. 11)")
        rows[0][1].set_title("slope at each step, 95 % interval over seeds")
        rows[1][0].set_xlabel("width C")
        rows[1][1].set_xlabel("training step")
        return save_figure(figure, Path(path_without_suffix))


def _look(rule: str) -> dict[str, Any]:
    i = list(RULES).index(rule)
    return {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": LINES[i]}


def _draw_widths(axes: Axes, widths: list[int], measured: list[Changes], name: str) -> None:
    axes.set(xscale="log", yscale="log", ylabel=f"{name}, RMS of its change")
    x, handles = np.asarray(widths, dtype=np.float64), []
    for item in measured:
        look, slope = _look(item.rule), fit_slope(widths, item.change)
        seeds = np.exp(np.log(item.change).mean(axis=2))  # [S, W]
        mean = np.exp(np.log(seeds).mean(axis=0))
        centre, height = np.exp(np.log(x).mean()), np.exp(np.log(mean).mean())
        for one in seeds:
            axes.plot(x, one, look["marker"], color=look["color"], markersize=3, alpha=0.55, zorder=3)
        axes.plot(x, mean, look["marker"], color=look["color"], markersize=6.5, markeredgecolor="black", zorder=4)
        line = {"color": look["color"], "linestyle": look["linestyle"], "linewidth": 1.5}
        axes.plot(x, height * (x / centre) ** slope.slope, zorder=2, **line)
        axes.plot(x, height * (x / centre) ** THEORY[item.rule], ":", color="0.45", linewidth=1.2, zorder=1)
        interval = "" if slope.low is None else f" [${slope.low:.2f}$, ${slope.high:.2f}$]"
        label = f"{RULES[item.rule]}: slope ${slope.slope:.2f}${interval}"
        handles.append(Line2D([], [], markersize=5, label=label, linewidth=1.5, **look))
    theory = Line2D([], [], color="0.45", linestyle=":", linewidth=1.2, label="slopes of A.11: 0 and 1")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.42)  # room for the legend
    axes.legend(handles=[*handles, theory], loc="upper left", handlelength=3.2)
    axes.xaxis.set_major_locator(FixedLocator(widths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.grid(which="major")


def _draw_steps(axes: Axes, widths: list[int], measured: list[Changes], first_step: int) -> None:
    for item in measured:
        axes.axhline(THEORY[item.rule], linestyle=":", color="0.45", linewidth=1.2, zorder=1)
        slopes = fit_steps(widths, item.change)
        steps = np.arange(first_step, first_step + len(slopes)) + 0.12 * (item.rule == "none")  # bars side by side
        mean = np.array([slope.slope for slope in slopes])
        spread = [0.0 if slope.high is None else slope.high - slope.slope for slope in slopes]
        axes.errorbar(steps, mean, spread, markersize=4, linewidth=1.2, elinewidth=0.8, capsize=2, **_look(item.rule))
    axes.set_ylabel("slope of log change on log C")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(which="major")
