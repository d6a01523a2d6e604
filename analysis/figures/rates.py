"""Figure of learning rates: each network's grids, their optima against width, and Table 4 (Fig. 5b)."""

import math
import textwrap
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.figures.style import COLOURS, LINES, MARKERS, STYLE, plain, save_figure, set_ticks
from analysis.fits.parabola import Curve, Slope
from analysis.rates import CrossCheck, Grid, Transfer, short_rate

SEED: dict[str, Any] = {"linestyle": "none", "markersize": 3, "alpha": 0.55}
MEAN: dict[str, Any] = {"linestyle": "none", "markersize": 6.5, "markeredgecolor": "black", "zorder": 3}
CROSS: dict[str, Any] = {"linestyle": "none", "marker": "x", "markeredgewidth": 1.6, "clip_on": False}


STAR: dict[str, Any] = {
    "linestyle": "none", "marker": "*", "markersize": 12, "markeredgecolor": "black", "zorder": 5,
}  # fmt: skip


def plot(transfer: Transfer, path_without_suffix: Path) -> list[Path]:
    """Draw each network's grids and its optima against width, and Table 4 below, as .svg and .png; return the paths.

    A small mark is a trial, a large one the mean over seeds. A line is a width's curve, a star its optimum with the
    interval, an arrow an end of one that lies outside the figure, and a cross a rate at which a seed diverged. The grey
    band has the ends of the slope's interval. Equal input gives equal bytes.
    """
    networks, rows = list(transfer.fits), transfer.cross_check
    width, height = 8.2 if networks else 4.8, 3.7 * len(networks) + (0.7 + 0.35 * len(rows)) * bool(rows)
    metric = plain(transfer.measured.metric)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))

        # Positions are in inches: the solver of constrained layouts rounds so many panels differently each time.
        def panel(left: float, bottom: float, wide: float, high: float, **scales: Any) -> Axes:
            return figure.add_axes((left / width, bottom / height, wide / width, high / height), **scales)

        for row, network in enumerate(networks):
            bottom = height - 3.7 * (row + 1) + 1.05
            left = panel(0.75, bottom, 4.1, 2.2, xscale="log", yscale="log")
            right = panel(5.75, bottom, 2.3, 2.2, xscale="log", yscale="log")
            left.set(xlabel=f"learning rate of {network}", ylabel=metric)
            right.set(xlabel=f"width of {network}", ylabel=f"best learning rate of {network}")
            _draw_grids(left, transfer, transfer.of(network))
            _draw_optima(right, transfer.of(network), transfer.fits[network].slope)
        if rows:
            axes = panel(0.75, 0.55, width - 2.1, 0.35 * len(rows), xscale="log", xlabel=metric)
            _draw_cross_check(axes, rows)
        return save_figure(figure, Path(path_without_suffix))


def _draw_grids(axes: Axes, transfer: Transfer, grids: list[Grid]) -> None:
    values = [value for grid in grids for seeds in grid.rates for value in seeds.values] or [1.0]
    margin = (max(values) / min(values) * 1.1) ** 0.1
    axes.set(xlim=_range_tried(grids), ylim=(min(values) / margin, max(values) * margin**2))
    handles = []
    for i, grid in enumerate(grids):
        look, label, curve = _look(i), "no optimum", grid.curve
        for seeds in grid.rates:
            axes.plot([seeds.rate] * len(seeds.values), seeds.values, **look | SEED)
            if seeds.mean is not None:
                axes.plot(seeds.rate, seeds.mean, **look | MEAN)
            if seeds.diverged:
                axes.plot(seeds.rate, 0.98 - 0.04 * i, transform=axes.get_xaxis_transform(), **look | CROSS)
        if curve:
            held = [float(seeds.rate) for seeds in grid.rates if seeds.values]
            x = np.geomspace(held[0], held[-1], 100)
            axes.plot(x, transfer.value(curve, x), color=look["color"], linestyle=LINES[i % 6], linewidth=1.5)
        if curve and curve.vertex is not None:
            label = f"best {short_rate(curve.vertex)}"
            height = float(transfer.value(curve, curve.vertex))
            axes.plot(curve.vertex, height, **look | STAR)
            if curve.low and curve.high:
                axes.plot([curve.low, curve.high], [height] * 2, color="black", marker="|", markersize=8, zorder=4)
        name = f"{plain(grid.size)}: {label}"
        handles.append(Line2D([], [], markersize=5, linewidth=1.5, label=name, linestyle=LINES[i % 6], **look))
    if any(seeds.diverged for grid in grids for seeds in grid.rates):
        handles.append(Line2D([], [], color="0.25", label="diverged", **CROSS))
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.45, -0.19), ncols=3, handlelength=2.8)
    axes.grid(which="major")
    set_ticks(axes.xaxis, *axes.get_xlim())
    set_ticks(axes.yaxis, *axes.get_ylim())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: short_rate(rate)))


def _draw_optima(axes: Axes, grids: list[Grid], slope: Slope) -> None:
    widths = sorted({grid.width for grid in grids})
    axes.set_xlim(widths[0] / 1.3, widths[-1] * 1.3)
    axes.set_ylim(_range_tried(grids))
    axes.xaxis.set_major_locator(FixedLocator(widths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda width, _: f"{width:.0f}"))
    axes.tick_params(axis="x", rotation=45)  # neighbours such as 1280 and 1536 would overlap
    axes.grid(which="major")
    said = slope.verdict.partition(";")[0].replace("(p = ", "(p=").replace(" -1", "\u00a0$-1$")
    axes.set_title("\n".join(line for part in said.split(", ") for line in textwrap.wrap(part, 36)))
    found = [(grid.width, grid.curve.vertex) for grid in grids if grid.curve and grid.curve.vertex is not None]
    if not found:
        axes.yaxis.set_major_locator(NullLocator())  # nothing is drawn, so a scale would mislead
        axes.yaxis.set_minor_locator(NullLocator())
        return
    for i, grid in enumerate(grids):
        if grid.curve and grid.curve.vertex is not None:
            _draw_optimum(axes, grid.curve, grid.width, _look(i))
    x = np.geomspace(*axes.get_xlim(), 50)
    centre, height = (math.exp(fmean(math.log(pair[k]) for pair in found)) for k in (0, 1))
    if slope.slope is not None and slope.low is not None and slope.high is not None:
        ends = [height * (x / centre) ** end for end in (slope.low, slope.high)]
        axes.fill_between(x, np.minimum(*ends), np.maximum(*ends), color="0.88", linewidth=0, zorder=0)
        label = f"slope ${slope.slope:.2f}$ [${slope.low:.2f}$, ${slope.high:.2f}$]"
        axes.plot(x, height * (x / centre) ** slope.slope, color="black", linewidth=1.2, label=label)
    axes.plot(x, height * centre / x, ":", color="0.5", linewidth=2.4, zorder=1, label="Eq. 4: slope $-1$")
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.27), handlelength=2.8)
    set_ticks(axes.yaxis, *axes.get_ylim())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: short_rate(rate)))


def _draw_optimum(axes: Axes, curve: Curve, x: float, look: dict[str, Any]) -> None:
    """Draw a vertex above its width x with its interval; an arrow is an end outside the figure."""
    first, last = axes.get_ylim()
    low, high = max(curve.low or first, first), min(curve.high or last, last)
    axes.plot([x, x], [low, high], color="black", linewidth=1.2, zorder=4)
    for end, own, arrow in ((low, curve.low, "v"), (high, curve.high, "^")):
        mark: dict[str, Any] = {"marker": "_", "markersize": 8} if own == end else {"marker": arrow, "markersize": 5}
        axes.plot(x, end, color="black", clip_on=False, zorder=4, **mark)
    if curve.vertex is not None and first < curve.vertex < last:
        axes.plot(x, curve.vertex, **look | STAR)


def _draw_cross_check(axes: Axes, rows: tuple[CrossCheck, ...]) -> None:
    names = list(dict.fromkeys(seeds.rate for row in rows for seeds in row.columns))
    for y, row in enumerate(rows):
        for seeds in row.columns:
            look = _look(names.index(seeds.rate))
            axes.plot(seeds.values, [y] * len(seeds.values), **look | SEED)
            if seeds.mean is not None:
                axes.plot(seeds.mean, y, **look | MEAN)
            if seeds.diverged:
                axes.plot(0.98, y, transform=axes.get_yaxis_transform(), **look | CROSS)
    axes.set_yticks(range(len(rows)), [plain(row.size) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.grid(which="major")
    labels = [f"rate {short_rate(name)}" if isinstance(name, float) else f"rate of {plain(name)}" for name in names]
    handles = [Line2D([], [], label=label, **_look(i) | MEAN) for i, label in enumerate(labels)]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.2)
    set_ticks(axes.xaxis, *axes.get_xlim())


def _look(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % 6], "marker": MARKERS[i % 6]}


def _range_tried(grids: list[Grid]) -> tuple[float, float]:
    rates = [float(seeds.rate) for grid in grids for seeds in grid.rates]
    return min(rates) / 1.35, max(rates) * 1.35
