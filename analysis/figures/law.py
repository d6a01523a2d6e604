"""Figure of the laws of a table (the paper's Fig. 21): points, curves with their bands, and the points' distances."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from analysis.figures.style import (
    COLOURS,
    LINES,
    MARKERS,
    STYLE,
    label_points,
    number_text,
    plain,
    save_figure,
    set_ticks,
)
from analysis.law import Law, Laws
from analysis.noise import seed_spread
from analysis.points import Point
from analysis.table import BROKEN, Table, gflops

SEED: dict[str, Any] = {"linestyle": "none", "markersize": 3.5, "alpha": 0.7, "markeredgewidth": 0}
LEFT_OUT: dict[str, Any] = {"color": "0.6", "linestyle": (0, (4, 2.5)), "linewidth": 0.9}
PREDICTED: dict[str, Any] = {
    "marker": "s", "linestyle": "none", "markersize": 7, "color": "black", "markerfacecolor": "white",
}  # fmt: skip
BEYOND: dict[str, Any] = {"linestyle": "none", "color": "0.35", "markersize": 5, "clip_on": False, "zorder": 5}
NEW_SIZE: dict[str, Any] = {"color": "0.5", "alpha": 0.16, "linewidth": 0, "zorder": 1}
OF_CURVE: dict[str, Any] = {"color": "0.35", "alpha": 0.3, "linewidth": 0, "zorder": 1.5}
MAX_LISTED = 5  # trials left out that the legend names
LEGEND_WIDTH = 36  # characters


def plot_laws(
    table: Table, laws: Laws, path_without_suffix: Path, predictions: Sequence[Mapping[str, Any]] = ()
) -> list[Path]:
    """Draw training compute C against the metric (the paper's Fig. 21) as .svg and .png; return both paths.

    Above: every checkpoint of every trial, the points with their seeds, and each law with its 95 % interval and the
    95 % prediction interval of a new size; x is C in GFLOPs (multiply-adds / 1e9). Below: each point and each seed over
    the law. All axes but the last are logarithmic. Equal input gives equal bytes.
    predictions: written before their size ran; each has `gflops`, `predicted`, `low` and `high` (None: no upper end).
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 5.8), layout="constrained")
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        axes.set(xscale="log", yscale="log")
        looks = _looks(laws)
        x, y = _draw_trajectories(axes, table, laws, looks)
        _set_limits(axes, laws, x, y)
        cut = [_draw_law(axes, law) for law in laws.laws]
        _draw_predictions(axes, predictions)
        for law in laws.laws:
            _draw_points(axes, law, looks)
            _draw_distances(below, law, looks)
        _label(axes, below, laws)
        handles = _legend(laws, looks, bool(predictions), any(cut))
        figure.legend(handles=handles, loc="outside right upper", handlelength=3.2)
        figure.draw_without_rendering()  # settles the layout, on which the places of the labels depend
        points = [point for law in laws.laws for point in law.points]
        label_points(axes, [(p.gflops, p.value) for p in points], [_name(p, laws) for p in points])
        return save_figure(figure, Path(path_without_suffix))


def _name(point: Point, laws: Laws) -> str:
    return point.cell.label if len(laws.laws) == 1 or len(point.cell.label) > 6 else point.cell.generator_size


def _looks(laws: Laws) -> dict[Any, dict[str, Any]]:
    """Colour, marker and line of each cell. Sizes differ in colour, several patch sizes in marker and line."""
    sizes = list(dict.fromkeys((p.cell.generator_size, p.cell.discriminator_size) for p in _by_cost(laws)))
    patches = [law.patch for law in laws.laws]
    looks = {}
    for law in laws.laws:
        for point in law.points:
            i = sizes.index((point.cell.generator_size, point.cell.discriminator_size))
            # A seventh size has the first one's colour with another marker.
            other = patches.index(law.patch) if len(patches) > 1 else i + i // len(COLOURS)
            looks[point.cell] = {
                "color": COLOURS[i % len(COLOURS)],
                "marker": MARKERS[other % len(MARKERS)],
                "linestyle": LINES[other % len(LINES)],
            }
    return looks


def _by_cost(laws: Laws) -> list[Point]:
    return sorted((p for law in laws.laws for p in law.points), key=lambda p: (p.g_forward_gflops or p.gflops, p.cell))


def _draw_trajectories(axes: Axes, table: Table, laws: Laws, looks: dict[Any, Any]) -> tuple[list[float], list[float]]:
    """Draw the evaluations with the laws' protocol; return all (C, value) drawn, and the laws' points and seeds."""
    points = [p for law in laws.laws for p in law.points]
    used = {name for p in points for name in p.trials}
    x, y = [p.gflops for p in points for _ in p.values], [v for p in points for v in p.values]
    for trial in table.trials:
        flops, value = trial.trajectory(laws.measured)
        if len(flops) == 0:
            continue
        compute = np.array([gflops(f) for f in flops])
        look: dict[str, Any] = {"marker": ".", **looks.get(trial.cell, {}), "linewidth": 0.9, "alpha": 0.6}
        if trial.name not in used:
            look |= LEFT_OUT
        axes.plot(compute, value, markersize=2.5, markevery=max(1, len(compute) // 12), zorder=2, **look)
        if trial.last.status in BROKEN:
            axes.plot(compute[-1], value[-1], "x", color="0.25", markersize=7, markeredgewidth=1.4, zorder=4)
        x += compute.tolist()
        y += value.tolist()
    return x, y


def _set_limits(axes: Axes, laws: Laws, x: list[float], y: list[float]) -> None:
    """Set the limits from what was drawn; a band that spans decades widens the figure by a factor of two at most."""
    lows, highs = [], []
    for law in laws.laws:
        ends = [law.points[0].gflops, law.points[-1].gflops]
        low, high = law.curve.new_size(ends, _seeds(law))
        lows += low.tolist()
        highs += high.tolist()
    axes.set_xlim(_padded(min(x), max(x)))
    axes.set_ylim(_padded(max(min(y) / 2, min(*y, *lows)), min(max(y) * 2, max(*y, *highs))))


def _seeds(law: Law) -> int:
    return round(float(np.median([len(p.values) for p in law.points])))


def _draw_law(axes: Axes, law: Law) -> bool:
    """Draw the curve and both bands over slightly more than the points' range; return whether the figure cuts them."""
    first, last = law.points[0].gflops, law.points[-1].gflops
    margin = (last / first) ** 0.08
    left, right = axes.get_xlim()
    compute = np.geomspace(max(first / margin, left), min(last * margin, right), 200)
    axes.plot(compute, law.curve.predict(compute), color="black", linewidth=1.5, zorder=3)
    bottom, top = axes.get_ylim()
    cut = False
    for (low, high), look in (
        (law.curve.new_size(compute, _seeds(law)), NEW_SIZE),
        (law.curve.band(compute), OF_CURVE),
    ):
        axes.fill_between(compute, np.clip(low, bottom, top), np.clip(high, bottom, top), **look)
        for outside, at, marker in ((low < bottom, bottom, "v"), (high > top, top, "^")):
            if outside.any():
                cut = True
                where = compute[outside][:: max(1, int(outside.sum()) // 3)]
                axes.plot(where, np.full(len(where), at), marker, **BEYOND)
    return cut


def _draw_predictions(axes: Axes, predictions: Sequence[Mapping[str, Any]]) -> None:
    """Draw open squares with their intervals; the figure cuts off an interval that is wider than itself."""
    bottom, top = axes.get_ylim()
    left, right = axes.get_xlim()
    # A predicted size may not have run yet, so its C may lie outside the limits.
    axes.set_xlim(left, max([right, *(row["gflops"] * 1.2 for row in predictions)]))
    for row in predictions:
        high = math.inf if row["high"] is None else row["high"]
        axes.plot([row["gflops"]] * 2, [max(row["low"], bottom), min(high, top)], "-", color="black", zorder=4)
        axes.plot(row["gflops"], row["predicted"], **PREDICTED, zorder=4)
        for outside, at, marker in ((row["low"] < bottom, bottom, "v"), (high > top, top, "^")):
            if outside:
                axes.plot(row["gflops"], at, marker, **BEYOND)
    axes.set_ylim(bottom, top)


def _draw_points(axes: Axes, law: Law, looks: dict[Any, dict[str, Any]]) -> None:
    for point in law.points:
        look = {key: looks[point.cell][key] for key in ("color", "marker")}
        if len(point.values) > 1:
            axes.plot([point.gflops] * len(point.values), point.values, zorder=4, **look | SEED)
        axes.plot(point.gflops, point.value, markersize=8, markeredgecolor="black", zorder=5, linestyle="none", **look)


def _draw_distances(axes: Axes, law: Law, looks: dict[Any, dict[str, Any]]) -> None:
    """Draw points and seeds over the law, in standard deviations of a seed; of a point, where no size has two seeds."""
    unit = _unit(law)
    for point in law.points:
        fitted = float(law.curve.predict([point.gflops])[0])
        look = {key: looks[point.cell][key] for key in ("color", "marker")}
        if len(point.values) > 1:
            strays = [math.log(value / fitted) / unit for value in point.values]
            axes.plot([point.gflops] * len(strays), strays, zorder=4, **look | SEED)
        stray = math.log(point.value / fitted) / unit
        axes.plot(point.gflops, stray, markersize=7, markeredgecolor="black", zorder=5, linestyle="none", **look)


def _unit(law: Law) -> float:
    spread = seed_spread(law.points)
    return spread[0] if spread and spread[0] > 0 else max(law.curve.residual_std, 1e-12)


def _label(axes: Axes, below: Axes, laws: Laws) -> None:
    measured = laws.measured
    images = f"   (N = {measured.n:,} generated images)" if measured.n else ""
    axes.set_ylabel(plain(measured.metric) + images)
    axes.set_title("\n".join(_title(law, laws) for law in laws.laws), linespacing=1.4)
    axes.grid(which="major")
    set_ticks(axes.yaxis, *axes.get_ylim())
    below.set_xlabel("training compute C   (GFLOPs = $10^9$ multiply-adds)")
    seeds = all((spread := seed_spread(law.points)) and spread[0] > 0 for law in laws.laws)
    below.set_ylabel("over the law,\nin std of a seed" if seeds else "over the law,\nin std of a point")
    below.axhline(0, color="black", linewidth=1)
    below.grid(which="major")
    limit = max(1.2, 1.15 * max(map(abs, below.get_ylim())))
    below.set_ylim(-limit, limit)
    below.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    set_ticks(below.xaxis, *axes.get_xlim())


def _title(law: Law, laws: Laws) -> str:
    curve = law.curve
    floor = f"{number_text(curve.floor, 3)} + " if curve.floor else ""
    low = "-\\infty" if curve.b_low is None else f"{curve.b_low:.3f}"
    high = "\\infty" if curve.b_high is None else f"{curve.b_high:.3f}"
    patch = f"patch {law.patch}:  " if len(laws.laws) > 1 else ""
    a = number_text(curve.a, 3)
    return (
        f"{patch}{plain(law.measured.metric)} = {floor}{a} $\\cdot\\, C^{{{-curve.b:.3f}}}$,   "
        f"$b$ = ${curve.b:.3f}$ [${low}$, ${high}$],  {curve.sizes} sizes"
    )


def _legend(laws: Laws, looks: dict[Any, dict[str, Any]], predicted: bool, cut: bool) -> list[Any]:
    handles = _sizes(laws, looks)
    if any(len(p.values) > 1 for p in _by_cost(laws)):
        handles.append(Line2D([], [], color="0.3", marker="o", label="a seed", **SEED))
    handles.append(Line2D([], [], color="black", linewidth=1.5, label="law"))
    handles.append(Patch(label="law, 95 % (a floor allowed)", **OF_CURVE))
    handles.append(Patch(label="a new size, 95 %", **NEW_SIZE))
    if cut:
        handles.append(Line2D([], [], marker="^", label="goes on outside", **BEYOND))
    if predicted:
        handles.append(Line2D([], [], label="predicted before it ran, 95 %", **PREDICTED))
    if laws.excluded:
        handles.append(Line2D([], [], linestyle="none", label="left out:"))
    for trial in laws.excluded[:MAX_LISTED]:
        text = f"{trial.trial} ({trial.cell.label}): {trial.reason}"
        label = "\n".join(textwrap.wrap(text, LEGEND_WIDTH, max_lines=2, placeholder=" …"))
        cross: dict[str, Any] = {"marker": "x", "markeredgecolor": "0.25"} if trial.status in BROKEN else {}
        handles.append(Line2D([], [], markersize=5, label=plain(label), **LEFT_OUT, **cross))
    if len(laws.excluded) > MAX_LISTED:
        handles.append(Line2D([], [], linestyle="none", label=f"and {len(laws.excluded) - MAX_LISTED} more"))
    return handles


def _sizes(laws: Laws, looks: dict[Any, dict[str, Any]]) -> list[Any]:
    """Handles of the sizes; of several patch sizes, by colour, and then of the patch sizes by marker."""
    cells = list(dict.fromkeys(p.cell for p in _by_cost(laws)))
    if len(laws.laws) == 1:
        return [Line2D([], [], markersize=5, linewidth=1.2, label=plain(c.label), **looks[c]) for c in cells]
    colours = {c.label.rpartition("/")[0].rstrip(", "): looks[c]["color"] for c in cells}
    patches = {
        c.patch: {key: looks[c][key] for key in ("marker", "linestyle")} for c in sorted(cells, key=lambda c: c.patch)
    }
    return [
        *(Line2D([], [], linewidth=5, color=colour, label=plain(name)) for name, colour in colours.items()),
        *(Line2D([], [], color="0.3", markersize=5, label=f"patch {p}", **look) for p, look in patches.items()),
    ]


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = max((high / low) ** 0.06, 1.05)
    return low / margin, high * margin
