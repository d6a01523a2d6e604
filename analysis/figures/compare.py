"""Figure of the compared arms: their curves, and the ratio of each to its reference (Fig. 5a, 5c)."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from analysis.compare import Comparison
from analysis.figures.style import COLOURS, LINES, MARKERS, STYLE, plain, save_figure, set_ticks

LABEL = 36  # longest label beside the ratios, in characters
IN_AXES = 6  # arms whose legend fits among the curves
SURE = ("better", "worse", "higher", "lower")  # verdicts of a significant difference


def plot(comparison: Comparison, path_without_suffix: Path) -> list[Path]:
    """Draw curves over training steps (mean and range over seeds) and ratios with their 95 % intervals.

    Writes .svg and .png and returns the paths. Equal input gives equal bytes.
    """
    differences = comparison.differences
    arms = len(comparison.arms)
    below = 0.55  # inches of axis labels below the axes
    legend = 0.0 if arms <= IN_AXES else 0.19 * -(-arms // 2) + 0.1
    inner = max(2.3, 0.24 * len(differences))
    height = inner + 0.48 + below + legend
    with matplotlib.rc_context(STYLE):
        # Positions are explicit, because the solver of constrained layouts rounds differently each time.
        figure = Figure(figsize=(9.6, height))
        bottom, high = (below + legend) / height, inner / height
        left = figure.add_axes((0.08, bottom, 0.37, high), yscale="log")
        _draw_curves(left, comparison)
        place: Any = (
            {"loc": "best"} if arms <= IN_AXES else {"loc": "upper left", "bbox_to_anchor": (0, -below / inner)}
        )
        left.legend(handlelength=3, ncols=1 if arms <= IN_AXES else 2, **place)
        if differences:
            labels = 0.0063 * max(len(_short(one.arm)) for one in differences)  # their width beside the ratios
            right = figure.add_axes((0.5 + labels, bottom, 0.48 - labels, high), xscale="log")
            _draw_ratios(right, comparison)
        return save_figure(figure, Path(path_without_suffix))


def _look(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % 6], "marker": MARKERS[(i + i // 6) % 6], "linestyle": LINES[i % 6]}


def _draw_curves(axes: Axes, comparison: Comparison) -> None:
    values = []
    for i, arm in enumerate(comparison.arms):
        step, mean, least, most = np.array(arm.curve).T
        axes.plot(
            step,
            mean,
            label=plain(arm.label if len(comparison.arms) > IN_AXES else _short(arm.label)),
            markersize=4,
            linewidth=1.2,
            **_look(i),
        )
        axes.fill_between(step, least, most, color=COLOURS[i % 6], alpha=0.12, linewidth=0)
        if len(step) == 1:
            axes.vlines(step, least, most, color=COLOURS[i % 6], linewidth=1)
        values += [*least, *most]
    better = f" ({comparison.better} is better)" if comparison.better else ""
    axes.set(xlabel="training step", ylabel=plain(f"{comparison.measured.metric}{better}"))
    axes.set_title("mean and range over seeds")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.grid(which="major")
    set_ticks(axes.yaxis, *axes.get_ylim())


def _draw_ratios(axes: Axes, comparison: Comparison) -> None:
    labels = [arm.label for arm in comparison.arms]
    ends = [[d.ratio_low or d.ratio, d.ratio_high or d.ratio] for d in comparison.differences]
    # Few seeds may give an interval of decades; the figure cuts it off, with an arrow.
    low = min(max(0.2, min(min(e) for e in ends) / 1.1), 0.8, *(d.ratio / 1.4 for d in comparison.differences))
    high = max(min(5.0, max(max(e) for e in ends) * 1.1), 1.25, *(d.ratio * 1.4 for d in comparison.differences))
    axes.set_xlim(low, high)
    for y, found in enumerate(comparison.differences):
        look = _look(labels.index(found.arm)) | {"linestyle": "none", "markersize": 6, "markeredgecolor": "black"}
        if found.verdict not in SURE:
            look["markerfacecolor"] = "white"
        if found.ratio_low is not None and found.ratio_high is not None:
            left, right = max(found.ratio_low, low), min(found.ratio_high, high)
            axes.plot([left, right], [y, y], color="black", linewidth=1)
            for end, edge, cut in ((left, low, "<"), (right, high, ">")):
                axes.plot(end, y, cut if end == edge else "|", color="black", markersize=6, clip_on=False)
        axes.plot(found.ratio, y, **look)
    axes.axvline(1, color="0.45", linestyle=":", linewidth=1.2)
    axes.set_yticks(
        range(len(comparison.differences)), [plain(_short(d.arm)) for d in comparison.differences], fontsize=7.5
    )
    axes.set_ylim(len(comparison.differences) - 0.5, -0.5)
    bases = {found.reference for found in comparison.differences}
    axes.set_title(
        f"ratio to {plain(_short(bases.pop()))}" if len(bases) == 1 else "ratio to the reference of its size"
    )
    better = f"{comparison.better} is better; " if comparison.better else ""
    words = f"{better}filled: differs significantly\n95 % intervals, for all ratios together"
    if comparison.noise is None:
        words = f"{better}no intervals"
    axes.set_xlabel(words, fontsize=8)
    axes.grid(which="major", axis="x")
    set_ticks(axes.xaxis, low, high)
    if 20 < high / low < 1000:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))  # more labels would touch each other


def _short(label: str) -> str:
    return label if len(label) <= LABEL else f"{label[: LABEL - 2]} …"
