"""Figure of the correlation: the metric against the generator's forward GFLOPs (Fig. 3c)."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from analysis.correlate import Correlations, correlation_text
from analysis.figures.style import COLOURS, MARKERS, STYLE, label_points, plain, save_figure, set_ticks


def plot(found: Correlations, path_without_suffix: Path) -> list[Path]:
    """Draw the metric against forward GFLOPs, a marker for each patch size, as .svg and .png; return the paths.

    Equal input gives equal bytes.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 3.6), layout="constrained")
        axes = figure.add_subplot(xscale="log")
        patches = sorted({model.cell.patch for model in found.models})
        for i, patch in enumerate(patches):
            models = [model for model in found.models if model.cell.patch == patch]
            look: Any = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "linestyle": "none"}
            x, y = [m.g_forward_gflops for m in models], [m.value for m in models]
            axes.plot(x, y, markersize=8, markeredgecolor="black", label=f"patch {patch}", zorder=3, **look)
        low, high = axes.get_xlim()
        axes.set_xlim(low, high * (high / low) ** 0.12)  # room for the last label
        axes.margins(y=0.15)
        axes.set_xlabel("forward pass of G   (GFLOPs = $10^9$ multiply-adds)")
        axes.set_ylabel(f"{plain(found.measured.metric)} at step {found.step:,}")
        axes.set_title(
            f"with GFLOPs: r = {correlation_text(found.pearson)}\n"
            f"with log GFLOPs: r = {correlation_text(found.pearson_log_gflops)}",
            linespacing=1.4,
        )
        axes.grid(which="major")
        set_ticks(axes.xaxis, *axes.get_xlim())
        if len(patches) > 1:
            axes.legend(loc="best")
        figure.draw_without_rendering()  # settles the layout, on which the places of the labels depend
        label_points(axes, [(m.g_forward_gflops, m.value) for m in found.models], [m.cell.label for m in found.models])
        return save_figure(figure, Path(path_without_suffix))
