"""Figure of the coordinate check: change against width, and its slope at each step (Eq. 11, A.11)."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from analysis.coord_check import OUTPUTS, RULES, THEORY, Changes, fit_slope, fit_steps
from analysis.figures.style import COLOURS, LINES, MARKERS, STYLE, save_figure


def plot(widths: list[int], measured: list[Changes], first_step: int, path_without_suffix: Path) -> list[Path]:
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
        axes.plot(x, height * (x / centre) ** slope.mean, zorder=2, **line)
        axes.plot(x, height * (x / centre) ** THEORY[item.rule], ":", color="0.45", linewidth=1.2, zorder=1)
        interval = "" if slope.low is None else f" [${slope.low:.2f}$, ${slope.high:.2f}$]"
        label = f"{RULES[item.rule]}: slope ${slope.mean:.2f}${interval}"
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
        mean = np.array([slope.mean for slope in slopes])
        spread = [0.0 if slope.high is None else slope.high - slope.mean for slope in slopes]
        axes.errorbar(steps, mean, spread, markersize=4, linewidth=1.2, elinewidth=0.8, capsize=2, **_look(item.rule))
    axes.set_ylabel("slope of log change on log C")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(which="major")
