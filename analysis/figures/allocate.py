"""Figure of the frontier: trajectories and their best, isoFLOP curves, best size and length, and the law as a map."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.allocate import Allocation, Best
from analysis.figures.style import COLOURS, LINES, MARKERS, STYLE, number_text, plain, save_figure, set_ticks
from analysis.isoflop import Parabola

BAND: dict[str, Any] = {"color": "0.35", "alpha": 0.22, "linewidth": 0, "zorder": 1}
FRONTIER: dict[str, Any] = {"color": "black", "linewidth": 1.8, "zorder": 4}
BUDGET: dict[str, Any] = {
    "marker": "*", "markersize": 13, "color": "black", "markerfacecolor": "white", "linestyle": "none", "zorder": 6,
}  # fmt: skip
OTHERS = (("#CC79A7", (0, (1.5, 1))), ("#D55E00", (0, (6, 2))))  # colours and lines of approaches 1 and 2
NEXT_TO: dict[str, Any] = {"xytext": (5, 0), "textcoords": "offset points", "fontsize": 7.5, "va": "center"}
AT_LINE: dict[str, Any] = {"fontsize": 7, "color": "0.4", "va": "bottom"}
LEVELS = 9  # contours
SHOWN = 6  # isoFLOP curves


def plot(found: Allocation, path_without_suffix: Path) -> list[Path]:
    """Draw the frontier as .svg and .png; return both paths. All axes are logarithmic. Equal input gives equal bytes.

    Top left: the metric over training compute C, every run, and the least value of the law with its 95 % interval.
    Top right: the metric over the compute of an image c at some C, with parabolas and their vertices; for a grid of
    sizes, G's share instead. Bottom left: the best c and the best D over C. Bottom right: contours of the law over c
    and D, the runs, and the frontier.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 8.4), layout="constrained")
        (runs, iso), (best, field) = figure.subplots(2, 2)
        looks = _looks(found)
        _draw_runs(runs, found, looks)
        _draw_shares(iso, found) if found.found.grid else _draw_isoflops(iso, found)
        _draw_best(best, found)
        _draw_field(field, found, looks)
        handles = [
            *(
                Line2D([], [], label=plain(size.cell.label), **look)
                for size, look in zip(found.found.sizes, looks, strict=True)
            ),
            Line2D([], [], label="joint law", **FRONTIER),
            Patch(label="its 95 % interval", **BAND),
            Line2D([], [], label=f"best at {number_text(found.budget.gflops, 3)} GFLOPs", **BUDGET),
            *(
                Line2D([], [], color=colour, linestyle=line, label=approach.name)
                for approach, (colour, line) in zip(found.approaches, OTHERS, strict=False)
                if not approach.remark
            ),
        ]
        figure.legend(handles=handles, loc="outside right upper", handlelength=3)
        return save_figure(figure, Path(path_without_suffix))


def _looks(found: Allocation) -> list[dict[str, Any]]:
    """Colour, marker and line of each size."""
    return [
        {
            "color": COLOURS[i % len(COLOURS)], "marker": MARKERS[(i + i // len(COLOURS)) % len(MARKERS)],
            "linestyle": LINES[(i + i // len(COLOURS)) % len(LINES)], "markersize": 3.5, "linewidth": 1.0,
        }
        for i in range(len(found.found.sizes))
    ]  # fmt: skip


def _draw_runs(axes: Axes, found: Allocation, looks: list[dict[str, Any]]) -> None:
    data, compute = found.found.data, found.found.compute
    value = np.exp(data.log_value)
    axes.set(xscale="log", yscale="log")
    for run in np.unique(data.run):
        of = np.flatnonzero(data.run == run)
        of = of[np.argsort(compute[of])]
        axes.plot(compute[of], value[of], alpha=0.75, zorder=3, **looks[data.size[of[0]]])
    if not found.kept.all():
        axes.plot(compute[~found.kept], value[~found.kept], "x", color="0.2", markersize=6, zorder=5)
    _curve(axes, found.frontier, [b.value for b in found.frontier], [b.value_ends for b in found.frontier])
    axes.plot(found.budget.gflops, found.budget.value, **BUDGET)
    axes.set_ylim(*_padded(min(value.min(), found.budget.value), value.max()))
    _label(axes, "training compute C   (GFLOPs = $10^9$ multiply-adds)", plain(found.found.measured.metric))
    axes.set_title("the least value at a compute")


def _draw_isoflops(axes: Axes, found: Allocation) -> None:
    axes.set_title("sizes at equal C, with parabolas")
    made = found.isoflops
    if not made:
        where: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "center"}
        axes.text(0.5, 0.5, "no compute at which\nfour sizes stand", color="0.4", **where)
        axes.set(xticks=[], yticks=[])
        return
    axes.set(xscale="log", yscale="log")
    shown = [made[i] for i in sorted({round(i) for i in np.linspace(0, len(made) - 1, min(SHOWN, len(made)))})]
    for i, one in enumerate(shown):
        shade = f"{0.72 * (1 - (i + 1) / len(shown)):.2f}"
        x, y = np.exp(one.log_costs), np.exp(one.log_values)
        axes.plot(x, y, "o", color=shade, markersize=4, zorder=3)
        _draw_parabola(axes, one, shade)
        axes.annotate(number_text(one.gflops, 2), (x[-1], y[-1]), color=shade, **NEXT_TO)
    _label(axes, "c   (GFLOPs per image)", plain(found.found.measured.metric))


def _draw_parabola(axes: Axes, one: Parabola, shade: str) -> None:
    x = np.linspace(min(one.log_costs), max(one.log_costs), 80)
    q0, q1, q2 = one.coefficients
    axes.plot(np.exp(x), np.exp(q0 + q1 * x + q2 * x * x), color=shade, linewidth=1, zorder=2)
    if one.vertex is None:
        return
    at = math.exp(q0 + q1 * one.vertex + q2 * one.vertex**2)
    low, high = (one.vertex if end is None else end for end in (one.low, one.high))
    ends = np.clip([low, high], min(one.log_costs), max(one.log_costs))
    axes.plot(np.exp(ends), [at, at], color=OTHERS[1][0], linewidth=1.2, zorder=4)
    axes.plot(math.exp(one.vertex), at, "D", color=OTHERS[1][0], markersize=5, zorder=5)


def _draw_shares(axes: Axes, found: Allocation) -> None:
    axes.set(xscale="log")
    shares = [b.share or 0.0 for b in found.frontier]
    _curve(axes, found.frontier, shares, [b.share_ends for b in found.frontier], span=(0.0, 1.0))
    axes.plot(found.budget.gflops, found.budget.share or 0.0, **BUDGET)
    axes.set_ylim(0, 1)
    axes.set(xlabel="training compute C   (GFLOPs = $10^9$ multiply-adds)", ylabel="G's share of c")
    set_ticks(axes.xaxis, *axes.get_xlim())
    axes.grid(which="major")
    axes.set_title("the best split between G and D")


def _draw_best(axes: Axes, found: Allocation) -> None:
    """Draw the best c on the left axis and the best D on the right one."""
    axes.set(xscale="log", yscale="log")
    other = axes.twinx()
    other.set(yscale="log")
    other.spines["right"].set_visible(True)
    _curve(axes, found.frontier, [b.cost for b in found.frontier], [b.cost_ends for b in found.frontier])
    compute = np.array([b.gflops for b in found.frontier])
    for approach, (colour, line) in zip(found.approaches, OTHERS, strict=False):
        costs = [approach.cost(c) for c in compute]
        if None not in costs:
            axes.plot(compute, np.array(costs, dtype=np.float64), color=colour, linestyle=line, linewidth=1.3, zorder=3)
    axes.plot(found.budget.gflops, found.budget.cost, **BUDGET)
    trained = [size.cost for size in found.found.sizes]
    axes.set_ylim(*_padded(min(trained), max(*trained, found.budget.cost)))
    for size in found.found.sizes:
        axes.axhline(size.cost, color="0.85", linewidth=0.6, zorder=0)
        name = plain(size.cell.generator_size)
        axes.annotate(name, (0.005, size.cost), xycoords=("axes fraction", "data"), **AT_LINE)
    images = [b.images for b in found.frontier]
    other.plot(compute, images, color="#0072B2", linewidth=1.4, linestyle=(0, (3, 1, 1, 1)))
    other.set_ylim(*_padded(min(images), max(images)))
    _label(axes, "training compute C   (GFLOPs = $10^9$ multiply-adds)", "best c   (GFLOPs per image)")
    axes.grid(visible=False)
    set_ticks(other.yaxis, *other.get_ylim())
    other.set_ylabel(f"best D   ({found.found.unit}, dash-dotted)", color="#0072B2")
    axes.set_title("the best size and length")


def _draw_field(axes: Axes, found: Allocation, looks: list[dict[str, Any]]) -> None:
    axes.set(xscale="log", yscale="log")
    data, law = found.found.data, found.law
    cost = data.costs.sum(axis=0)
    path_c, path_d = np.array([b.cost for b in found.frontier]), np.array([b.images for b in found.frontier])
    x = np.geomspace(*_padded(min(cost.min(), path_c.min()), max(cost.max(), path_c.max())), 70)
    y = np.geomspace(*_padded(data.images.min(), max(data.images.max(), path_d.max())), 70)
    grid_c, grid_d = np.meshgrid(x, y)
    split = data.costs.sum(axis=1) / cost.sum()  # of a grid of sizes: both networks' mean shares
    costs = split[:, None] * grid_c.ravel()
    value = np.log(law.predict(costs, grid_d.ravel())).reshape(grid_c.shape)
    levels = np.linspace(value.min(), value.max(), LEVELS + 2)[1:-1]
    drawn = axes.contour(grid_c, grid_d, value, levels=levels, colors="0.6", linewidths=0.8)
    axes.clabel(drawn, fmt=lambda level: number_text(math.exp(level), 3), fontsize=7)
    for run in np.unique(data.run):
        of = np.flatnonzero(data.run == run)
        axes.plot(cost[of], data.images[of], alpha=0.8, zorder=3, **looks[data.size[of[0]]])
    axes.plot(path_c, path_d, **FRONTIER)
    axes.plot(found.budget.cost, found.budget.images, **BUDGET)
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    _label(axes, "c   (GFLOPs per image)", f"D   ({found.found.unit})")
    axes.grid(visible=False)
    axes.set_title(f"the joint law: {plain(found.found.measured.metric)} over size and length")


def _curve(
    axes: Axes,
    frontier: tuple[Best, ...],
    middle: list[float],
    ends: Sequence[Any],
    span: tuple[float, float] = (0.0, math.inf),
) -> None:
    """Draw a quantity of the frontier over C with its interval; an end that does not exist is off the figure."""
    compute = [b.gflops for b in frontier]
    below, above = max(span[0], min(middle) / 1e3), min(span[1], max(middle) * 1e3)
    low = [below if low is None else low for low, _ in ends]
    high = [above if high is None else high for _, high in ends]
    axes.fill_between(compute, low, high, **BAND)
    axes.plot(compute, middle, **FRONTIER)


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.grid(which="major")
    set_ticks(axes.xaxis, *axes.get_xlim())
    set_ticks(axes.yaxis, *axes.get_ylim())


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = max((high / low) ** 0.06, 1.05)
    return float(low / margin), float(high * margin)
