"""Figure of a law (the paper's Fig. 21): checkpoints, points, the line with its band, and earlier predictions."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from analysis.figures.style import COLOURS, LINES, MARKERS, STYLE, number_text, plain, save_figure, set_ticks
from analysis.law import Law
from analysis.table import BROKEN, Cell, Table, gflops

LEFT_OUT: dict[str, Any] = {"color": "0.6", "linestyle": (0, (4, 2.5)), "linewidth": 0.9}
PREDICTED: dict[str, Any] = {
    "marker": "s", "linestyle": "none", "markersize": 7, "color": "black", "markerfacecolor": "white",
}  # fmt: skip
MAX_LISTED = 5  # trials left out that the legend names
LEGEND_WIDTH = 36  # characters


def plot_law(
    table: Table, law: Law, path_without_suffix: Path, predictions: Sequence[Mapping[str, Any]] = ()
) -> list[Path]:
    """Draw training compute C against the metric (the paper's Fig. 21) as .svg and .png; return both paths.

    x is C in GFLOPs (multiply-adds / 1e9), y the metric, both logarithmic: every checkpoint of every trial,
    the law's points, its line and its 95 % prediction band. Equal input gives equal bytes.
    predictions: written before their size ran; each has `gflops`, `predicted`, `low` and `high` (None: no upper end).
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 4.4), layout="constrained")
        axes = figure.add_subplot(xscale="log", yscale="log")
        looks = _looks(law)
        x, y = _draw_trajectories(axes, table, law, looks)
        _draw_law(axes, law, x, y)
        _draw_predictions(axes, predictions)
        _draw_points(axes, law, looks)
        _label(axes, law)
        figure.legend(handles=_legend(law, looks, bool(predictions)), loc="outside right upper", handlelength=3.2)
        return save_figure(figure, Path(path_without_suffix))


def _looks(law: Law) -> dict[Cell, dict[str, Any]]:
    """Colour, marker and line style of each of the law's sizes, cheapest generator first."""
    looks = {}
    for i, point in enumerate(sorted(law.points, key=lambda p: (p.g_forward_gflops, p.cell))):
        shifted = i + i // len(COLOURS)  # a seventh size has the first one's colour with another marker
        looks[point.cell] = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[shifted % len(MARKERS)],
            "linestyle": LINES[shifted % len(LINES)],
        }
    return looks


def _draw_trajectories(
    axes: Axes, table: Table, law: Law, looks: dict[Cell, dict[str, Any]]
) -> tuple[list[float], list[float]]:
    """Draw the evaluations with the law's protocol; return all (C, value) drawn, and the law's points."""
    x, y = [p.gflops for p in law.points], [p.value for p in law.points]
    for trial in table.trials:
        flops, value = trial.trajectory(law.measured)
        if len(flops) == 0:
            continue
        compute = np.array([gflops(f) for f in flops])
        look: dict[str, Any] = {"marker": ".", **looks.get(trial.cell, {}), "linewidth": 0.9, "alpha": 0.75}
        if not trial.complete:
            look |= LEFT_OUT
        axes.plot(compute, value, markersize=3, markevery=max(1, len(compute) // 12), zorder=2, **look)
        if trial.last.status in BROKEN:
            axes.plot(compute[-1], value[-1], "x", color="0.25", markersize=7, markeredgewidth=1.4, zorder=4)
        x += compute.tolist()
        y += value.tolist()
    return x, y


def _draw_law(axes: Axes, law: Law, x: list[float], y: list[float]) -> None:
    """Set the limits from what was drawn, then draw line and band over slightly more than the points' range."""
    # A band on one degree of freedom spans decades; it may widen the figure by no more than a factor of two.
    ends = np.array([law.points[0].gflops, law.points[-1].gflops])
    low, high = law.fit.band(ends)
    y_low = max(min(y) / 2, min(*y, *low))
    y_high = min(max(y) * 2, max(*y, *high))
    axes.set_xlim(_padded(min(x), max(x)))
    axes.set_ylim(_padded(y_low, y_high))

    margin = (ends[1] / ends[0]) ** 0.08
    compute = np.geomspace(ends[0] / margin, min(ends[1] * margin, axes.get_xlim()[1]), 200)
    axes.plot(compute, law.fit.predict(compute), color="black", linewidth=1.5, zorder=3)
    low, high = law.fit.band(compute)
    bottom, top = axes.get_ylim()  # clipped, because an infinite end would not be filled
    low, high = np.clip(low, bottom / 10, top * 10), np.clip(high, bottom / 10, top * 10)
    axes.fill_between(compute, low, high, color="0.5", alpha=0.18, linewidth=0, zorder=1)


def _draw_predictions(axes: Axes, predictions: Sequence[Mapping[str, Any]]) -> None:
    """Draw open squares with their intervals; the figure cuts off an interval that is wider than itself."""
    limits = axes.get_ylim()
    left, right = axes.get_xlim()
    # A predicted size may not have run yet, so its C may lie outside the limits.
    axes.set_xlim(left, max([right, *(row["gflops"] * 1.2 for row in predictions)]))
    for row in predictions:
        ends = [row["low"], limits[1] * 10 if row["high"] is None else row["high"]]
        axes.plot([row["gflops"]] * 2, ends, "-", color="black", linewidth=1.1, zorder=4)
        axes.plot(row["gflops"], row["predicted"], **PREDICTED, zorder=4)
    axes.set_ylim(limits)


def _draw_points(axes: Axes, law: Law, looks: dict[Cell, dict[str, Any]]) -> None:
    # A label goes below and to the left of its point, where the figure is empty: the line falls to the right, and the
    # curves of larger models come from above. It goes above at the left edge, and if another label is already below.
    below, above = (-6, -6, "right", "top"), (7, 5, "left", "bottom")
    taken: list[tuple[float, float]] = []
    for point in law.points:
        look = looks[point.cell]
        x, y = axes.transAxes.inverted().transform(axes.transData.transform((point.gflops, point.value)))
        crowded = x < 0.12 or any(abs(x - x0) < 0.09 and abs(y - y0) < 0.05 for x0, y0 in taken)
        dx, dy, ha, va = above if crowded else below
        if not crowded:
            taken.append((x, y))
        axes.plot(
            point.gflops, point.value, look["marker"], color=look["color"], markersize=9,
            markeredgecolor="black", markeredgewidth=1.2, zorder=5,
        )  # fmt: skip
        axes.annotate(
            plain(point.cell.label), (point.gflops, point.value),
            xytext=(dx, dy), textcoords="offset points", ha=ha, va=va, fontweight="bold", zorder=6,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip


def _label(axes: Axes, law: Law) -> None:
    fit, measured = law.fit, law.measured
    images = f"   (N = {measured.n:,} generated images)" if measured.n else ""
    axes.set_xlabel("training compute C   (GFLOPs = $10^9$ multiply-adds)")
    axes.set_ylabel(plain(measured.metric) + images)
    axes.set_title(
        f"{plain(measured.metric)} = {number_text(fit.a, 3)} $\\cdot\\, C^{{{-fit.b:.3f}}}$\n"
        f"exponent's 95 % interval [${-fit.b_high:.3f}$, ${-fit.b_low:.3f}$], {fit.n} sizes",
        linespacing=1.4,
    )
    axes.grid(which="major")
    set_ticks(axes.xaxis, *axes.get_xlim())
    set_ticks(axes.yaxis, *axes.get_ylim())


def _legend(law: Law, looks: dict[Cell, dict[str, Any]], predicted: bool) -> list[Line2D]:
    handles = [
        Line2D([], [], markersize=5, linewidth=1.2, label=plain(cell.label), **look) for cell, look in looks.items()
    ]
    handles.append(Line2D([], [], color="black", linewidth=1.5, label="power law"))
    handles.append(Line2D([], [], color="0.5", alpha=0.25, linewidth=8, label="95 % prediction band"))
    if predicted:
        handles.append(Line2D([], [], label="predicted before it ran, 95 %", **PREDICTED))
    if law.excluded:
        handles.append(Line2D([], [], linestyle="none", label="left out:"))
    for trial in law.excluded[:MAX_LISTED]:
        text = f"{trial.trial} ({trial.cell.label}): {trial.reason}"
        label = "\n".join(textwrap.wrap(text, LEGEND_WIDTH, max_lines=2, placeholder=" …"))
        cross: dict[str, Any] = {"marker": "x", "markeredgecolor": "0.25"} if trial.status in BROKEN else {}
        handles.append(Line2D([], [], markersize=5, label=plain(label), **LEFT_OUT, **cross))
    if len(law.excluded) > MAX_LISTED:
        more = f"and {len(law.excluded) - MAX_LISTED} more"
        handles.append(Line2D([], [], linestyle="none", label=more))
    return handles


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = max((high / low) ** 0.06, 1.05)
    return low / margin, high * margin
