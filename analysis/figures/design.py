"""Figure of a design: what to train, and what other budgets would bring."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.design import Choice, Design
from analysis.figures.style import COLOURS, STYLE, save_figure, set_ticks

AT: dict[str, Any] = {
    "marker": "*",
    "markersize": 13,
    "color": "black",
    "markerfacecolor": "white",
    "linestyle": "none",
}
NAMES = {
    "exponent": "error of the exponent",
    "predict": "error of ln value",
    "allocate": "error of ln best size",
    "rates": "error of ln best rate",
}


def plot(found: Design, unit: str, path_without_suffix: Path) -> list[Path]:
    """Draw a design as .svg and .png; return both paths. Equal input gives equal bytes.

    Left: the sizes and how long each trains, or its rates. Middle: the expected error by the number of sizes, for each
    law. Right: that of the best design over the budget.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.4, 3.8), layout="constrained")
        cells, sizes, budgets = figure.subplots(1, 3)
        _draw_cells(cells, found)
        _draw_sizes(sizes, found)
        budget, error = np.array(found.curve).T
        budgets.plot(budget, error, color=COLOURS[0], marker="o", markersize=4)
        budgets.plot(found.budget, found.best.error, label="this design", **AT)
        if found.plain is not None:
            budgets.plot(found.plain.price, found.plain.error, "s", color=COLOURS[1], label="all sizes alike")
        budgets.set(xscale="log", xlabel=f"budget in {unit}", ylabel=NAMES[found.goal.name], ylim=(0, None))
        set_ticks(budgets.xaxis, *budgets.get_xlim())
        budgets.legend()
        budgets.grid(visible=True)
        return save_figure(figure, Path(path_without_suffix))


def _draw_cells(axes: Axes, found: Design) -> None:
    goal, rates, seeds = found.goal, found.goal.name == "rates", found.best.seeds
    if found.known is not None and not rates:
        there = found.known.used(goal)
        axes.plot(there.costs.sum(axis=0), there.images, "x", color="0.6", markersize=4, label="there already")
    for cell in found.cells(found.best):
        x, tops = (cell["width"], cell["rates"]) if rates else (cell["cost"], [cell["images"]])
        axes.plot([x] * len(tops), tops, "o", color=COLOURS[0], markersize=5)
        axes.annotate(
            cell["size"], (x, max(tops)), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=8
        )  # fmt: skip
    axes.set(xscale="log", yscale="log")
    if rates:
        axes.axhline(1, color="0.6", linewidth=0.8)
        axes.set(xlabel="width", ylabel="rate in units of Eq. 4's")
    else:
        axes.plot(goal.cost, goal.images, label=f"{goal.size} at the recipe's length, the goal", **AT)
        axes.set(xlabel="c, GFLOPs per image", ylabel="D, images")
    axes.margins(0.1, 0.15)
    if goal.name == "allocate":
        x_limits = axes.get_xlim()
        axes.set(xlim=x_limits, ylim=axes.get_ylim())
        axes.plot(x_limits, goal.gflops / np.array(x_limits), color="0.6", linewidth=0.8, label="its compute")
    if not rates:
        axes.legend()
    set_ticks(axes.xaxis, *axes.get_xlim())
    set_ticks(axes.yaxis, *axes.get_ylim())
    axes.set_title(f"{found.best.sizes} sizes, {seeds} seed{'s' if seeds > 1 else ''} of each")
    axes.grid(visible=True)


def _draw_sizes(axes: Axes, found: Design) -> None:
    rows: tuple[Choice, ...] = found.by_sizes
    counts = [row.sizes for row in rows]
    for i, law in enumerate(found.best.errors):
        colour = COLOURS[(i + 1) % len(COLOURS)]
        axes.plot(counts, [row.errors[law] for row in rows], marker="o", markersize=3, color=colour, label=law)
    axes.plot(counts, [row.error for row in rows], color="black", linewidth=1.8, label="all laws")
    axes.plot(found.best.sizes, found.best.error, **AT)
    axes.set(xlabel="sizes", ylabel=NAMES[found.goal.name], ylim=(0, None), xticks=counts)
    axes.legend()
    axes.grid(visible=True)
