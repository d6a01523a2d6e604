"""Figure of a surface: the metric over sizes of G and D, and against training compute (the paper's Fig. 6a)."""

import math
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures.style import MARKERS, STYLE, plain, save_figure, set_ticks
from analysis.split import EXPONENTS, Surface, estimate, sizes_of


def plot(surface: Surface, path_without_suffix: Path) -> list[Path]:
    """Draw the metric over sizes of G and D, and against training compute, as .svg and .png; return the paths.

    Numbers and large marks are means over seeds; C is in GFLOPs (multiply-adds / 1e9). Equal input gives equal bytes.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
        _draw_grid(left, surface)
        _draw_compute(right, surface)
        return save_figure(figure, Path(path_without_suffix))


def _draw_grid(axes: Axes, surface: Surface) -> None:
    sizes_g, sizes_d = sizes_of(surface.cells)
    value = np.full((len(sizes_d), len(sizes_g)), np.nan)
    for mean in surface.cells:
        place = sizes_d.index(mean.cell.discriminator_size), sizes_g.index(mean.cell.generator_size)
        value[place] = fmean(mean.values)
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
    sizes_g, sizes_d = sizes_of(surface.cells)
    shades = dict(zip(sizes_g, map(str, np.linspace(0.95, 0.1, len(sizes_g)).tolist()), strict=True))
    markers = {size: MARKERS[i % len(MARKERS)] for i, size in enumerate(sizes_d)}
    look: Any = {"linestyle": "none", "markeredgecolor": "black", "markersize": 8}
    line: Any = {"color": "0.6", "linewidth": 0.9, "zorder": 2}
    for size in sizes_d:
        row = [mean for mean in surface.cells if mean.cell.discriminator_size == size]
        axes.plot([mean.gflops for mean in row], [fmean(mean.values) for mean in row], **line)
        for mean in row:
            axes.plot([mean.gflops] * len(mean.values), mean.values, "_", color="0.4", markersize=12, zorder=3)
            shade = shades[mean.cell.generator_size]
            axes.plot(mean.gflops, fmean(mean.values), marker=markers[size], color=shade, zorder=4, **look)
    handles = [Line2D([], [], marker=m, color="0.6", label=plain(f"D {size}"), **look) for size, m in markers.items()]
    handles += [Line2D([], [], marker="o", color=c, label=plain(f"G {size}"), **look) for size, c in shades.items()]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1))
    b_g, b_d = (estimate(asdict(surface.first.contrast(weights))) for weights in EXPONENTS.values())
    # Both verdicts, because they may differ: D already has most of the compute.
    verdicts = [
        f"{label}: {row['verdict']} (p = {row['p']:.2g})"
        for label, row in (("per log unit of compute", surface.per_log()), ("per FLOP", surface.per_flop()))
    ]
    axes.set_title("\n".join([f"$b_G$ = {b_g},   $b_D$ = {b_d}", *verdicts]), linespacing=1.4)
    axes.set(xscale="log", yscale="log", ylabel=plain(surface.measured.metric))
    axes.set_xlabel("training compute $C_G + C_D$   (GFLOPs = $10^9$ multiply-adds)")
    axes.grid(which="major")
    set_ticks(axes.xaxis, *axes.get_xlim())
    set_ticks(axes.yaxis, *axes.get_ylim())
