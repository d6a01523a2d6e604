"""Figure of a split: the metric over sizes of G and D and against training compute (Fig. 6a), and the best split."""

import math
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from analysis.cells import sizes_of
from analysis.figures.style import MARKERS, STYLE, plain, save_figure, set_ticks
from analysis.split import WORDS, Surface, estimate

COMPUTE = "compute $C_G + C_D$  (GFLOPs = $10^9$ multiply-adds)"
POINT: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "black", "markersize": 8}
BEST: tuple[dict[str, Any], ...] = (  # of the standing laws, that which fits best first
    {"color": "black", "linewidth": 1.6},
    {"color": "black", "linewidth": 1.2, "linestyle": (0, (5, 2))},
)
TITLE_WIDTH = 50  # characters


def plot(surface: Surface, path_without_suffix: Path) -> list[Path]:
    """Draw the metric over sizes of G and D, against training compute, and the best split, as .svg and .png.

    Numbers and large marks are geometric means over seeds; C is in GFLOPs (multiply-adds / 1e9). Returns the paths.
    Equal input gives equal bytes.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(14.5, 4.4), layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.05, 1.05))
        _draw_grid(left, surface)
        _draw_compute(middle, surface)
        lines = _draw_split(right, surface)
        markers, shades = _looks(surface)
        sizes = [Line2D([], [], marker=m, color="0.6", label=plain(f"D {d}"), **POINT) for d, m in markers.items()]
        sizes += [Line2D([], [], marker="o", color=c, label=plain(f"G {g}"), **POINT) for g, c in shades.items()]
        figure.legend(handles=[*lines, *sizes], loc="outside right upper")
        return save_figure(figure, Path(path_without_suffix))


def _draw_grid(axes: Axes, surface: Surface) -> None:
    sizes_g, sizes_d = sizes_of(surface.cells)
    value = np.full((len(sizes_d), len(sizes_g)), np.nan)
    for mean in surface.cells:
        place = sizes_d.index(mean.cell.discriminator_size), sizes_g.index(mean.cell.generator_size)
        value[place] = math.exp(mean.log_value)
    low, high = float(np.nanmin(value)), float(np.nanmax(value))
    norm = LogNorm(low, max(high, low * 1.01))
    mesh = axes.pcolormesh(np.ma.masked_invalid(value), cmap="cividis", norm=norm, edgecolor="white", linewidth=1.5)
    for (row, column), number in np.ndenumerate(value):
        # The lower half of this colour map is dark.
        text, dark = (f"{number:.4g}", norm(number) < 0.5) if math.isfinite(number) else ("none", False)
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(np.arange(len(sizes_g)) + 0.5, [plain(size) for size in sizes_g])
    axes.set_yticks(np.arange(len(sizes_d)) + 0.5, [plain(size) for size in sizes_d])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="size of G", ylabel="size of D", title=f"{plain(surface.measured.metric)}, mean over seeds")
    bar = axes.figure.colorbar(mesh, ax=axes, fraction=0.05)
    set_ticks(bar.ax.yaxis, low, max(high, low * 1.01))


def _draw_compute(axes: Axes, surface: Surface) -> None:
    """Draw a line and a marker for each size of D; along the line G grows and darkens. Dashes are seeds."""
    markers, shades = _looks(surface)
    line: Any = {"color": "0.6", "linewidth": 0.9, "zorder": 2}
    for size, marker in markers.items():
        row = [mean for mean in surface.cells if mean.cell.discriminator_size == size]
        axes.plot([mean.gflops for mean in row], [math.exp(mean.log_value) for mean in row], **line)
        for mean in row:
            axes.plot([mean.gflops] * len(mean.values), mean.values, "_", color="0.4", markersize=12, zorder=3)
            shade = shades[mean.cell.generator_size]
            axes.plot(mean.gflops, math.exp(mean.log_value), marker=marker, color=shade, zorder=4, **POINT)
    axes.set_title(_fits(surface), linespacing=1.4)
    axes.set(xscale="log", yscale="log", ylabel=plain(surface.measured.metric), xlabel=COMPUTE)
    axes.grid(which="major")
    set_ticks(axes.xaxis, *axes.get_xlim())
    set_ticks(axes.yaxis, *axes.get_ylim())


def _fits(surface: Surface) -> str:
    """Return each law's exponents, one law a line."""
    report = surface.to_json()
    lines = []
    for name, symbols in (("additive", {"a_g": "a_G", "a_d": "a_D"}), ("first_order", {"b_g": "b_G", "b_d": "b_D"})):
        if (law := report[name]) is not None:
            found = [f"${symbol}$ = {estimate(law[key], 'z.2f')}" for key, symbol in symbols.items()]
            lines.append(f"{WORDS[name]}: {',  '.join(found)}")
    return "\n".join(lines)


def _draw_split(axes: Axes, surface: Surface) -> list[Line2D]:
    """Draw the best split against the budget, with its interval, and the cells; return the legend's lines."""
    low, high = surface.shares
    handles = []
    if not surface.no_split:
        compute = [split.gflops for split in surface.curve]
        lows = [low if split.low is None else split.low for split in surface.curve]
        highs = [high if split.high is None else split.high for split in surface.curve]
        axes.fill_between(compute, lows, highs, color="0.5", alpha=0.2, linewidth=0, zorder=1)
        handles.append(Line2D([], [], color="0.5", alpha=0.3, linewidth=8, label="95 % interval"))
        for law, look in zip(surface.standing, BEST, strict=False):
            shares = [split.by_law[law].share for split in surface.curve]
            axes.plot(compute, [math.nan if share is None else share for share in shares], zorder=3, **look)
            handles.append(Line2D([], [], label=f"best split, {WORDS[law]}", **look))
    for edge in (low, high):
        axes.axhline(edge, color="0.4", linewidth=0.9, linestyle=(0, (1, 2)), zorder=2)
    handles.append(Line2D([], [], color="0.4", linewidth=0.9, linestyle=(0, (1, 2)), label="ends of the cells' shares"))
    markers, shades = _looks(surface)
    for mean in surface.cells:
        look = {"marker": markers[mean.cell.discriminator_size], "color": shades[mean.cell.generator_size]}
        axes.plot(mean.gflops, mean.gflops_g / mean.gflops, zorder=4, **POINT, **look)
    whole = plain(surface.verdict).replace("p = ", "p\u00a0=\u00a0")  # a line does not end within it
    said = [*textwrap.wrap(whole, TITLE_WIDTH), f"at equal sizes: {surface.pays_more()}"]
    axes.set_title("\n".join(said), linespacing=1.4)
    axes.set(xscale="log", ylim=(-0.03, 1.03), xlabel=COMPUTE, ylabel="G's share of compute")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(which="major")
    set_ticks(axes.xaxis, *axes.get_xlim())
    return handles


def _looks(surface: Surface) -> tuple[dict[str, str], dict[str, str]]:
    """Return the marker of each size of D, and the shade of each size of G."""
    sizes_g, sizes_d = sizes_of(surface.cells)
    shades = dict(zip(sizes_g, map(str, np.linspace(0.95, 0.1, len(sizes_g)).tolist()), strict=True))
    return {size: MARKERS[i % len(MARKERS)] for i, size in enumerate(sizes_d)}, shades
