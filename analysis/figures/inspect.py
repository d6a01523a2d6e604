"""Figures of `gat-sweep inspect` for one trial at one step: measures by block, and features as colours."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.style import COLOURS, STYLE, save_figure

NAMES = {"real": "real images", "fake": "generated images"}


def plot_influence(result: dict[str, Any], path: Path) -> list[Path]:
    """Draw the distance between pictures with and without a block, by block of G (Fig. 4b), as .svg and .png."""
    protocol = result["protocol"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        axes = figure.add_subplot()
        _curve(axes, result, "G", "fake", f"influence_{protocol['distance']}", 0)
        axes.set_ylim(bottom=0)
        _stages(axes, result)
        axes.set_ylabel(_wrapped(protocol["distance_label"]))
        axes.set_xlabel("block of G left out")
        return save_figure(figure, path)


def plot_similarity(result: dict[str, Any], path: Path) -> list[Path]:
    """Draw cosines of tokens (Fig. 9): (a) before and after a block of G, (b) of two codes z of a class."""
    panels = {
        "similarity_input_output": "(a) input and output of the block",
        "similarity_other_z": "(b) two codes z" + (" of the same class" if result["classes"] else ""),
    }
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 2.9), layout="constrained")
        for axes, (measure, title) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
            _curve(axes, result, "G", "fake", measure, 0)
            axes.set_title(title, pad=15 if result["levels"] > 1 else None)  # space for the levels' names
            axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.02)
            _stages(axes, result)
            axes.set_xlabel("block of G")
        figure.axes[0].set_ylabel("cosine similarity")
        return save_figure(figure, path)


def plot_alignment(result: dict[str, Any], path: Path) -> list[Path]:
    """Draw CKNNA with the vision model by block of G and of D, on real and generated images (Fig. 6b)."""
    protocol = result["protocol"]
    panels = {
        "G, mean of tokens": ("G", "cknna_patches"),
        "D, mean of patch tokens": ("D", "cknna_patches"),
        "D, [cls] token": ("D", "cknna_cls"),
    }
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 3.1), layout="constrained")
        for axes, (title, (network, measure)) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
            _curve(axes, result, network, "fake", measure, 0, NAMES["fake"])
            if network == "D":
                _curve(axes, result, network, "real", measure, 1, NAMES["real"])
            axes.set_title(title)
            axes.set_xlabel(f"block of {network}")
            _block_axis(axes, result["depth"][network])
        left, right = figure.axes[0], figure.axes[1]
        left.set_ylim(min(0.0, left.get_ylim()[0]), None)
        left.set_ylabel(f"CKNNA (k = {protocol['neighbours']}) with\n{protocol['teacher']}")
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=2, handlelength=3.2)
        return save_figure(figure, path)


def plot_features(network: str, pictures: dict[str, np.ndarray], maps: dict[int, np.ndarray], path: Path) -> list[Path]:
    """Draw pictures on top, and below them a row of feature maps per block (Fig. 4a, 26, 27).

    pictures: by data, uint8 [n, h, w, 3]. maps: by block, [sum of n, rows, columns, 3] in [0, 1], in the same order.
    Writes .svg and .png and returns the paths.
    """
    rows, gap, margin = 1 + len(maps), 0.4, 0.06  # in widths of a picture
    starts: list[list[float]] = []
    x = 0.0
    for shown in pictures.values():
        starts.append([x + i for i in range(len(shown))])
        x += len(shown) + gap
    width = x - gap
    columns = [start for part in starts for start in part]
    with matplotlib.rc_context({**STYLE, "image.composite_image": False}):
        size = min(0.72, 7.2 / width)  # inches of a picture
        figure = Figure(figsize=(size * (width + 0.2) + 0.75, size * (rows + gap) + 0.35), layout="constrained")
        axes = figure.add_subplot()
        images = [image for shown in pictures.values() for image in shown]
        for y, row in enumerate([images, *map(list, maps.values())]):
            top = y + (0.15 if y else 0)
            for left, image in zip(columns, row, strict=True):
                small = len(image) < 64  # its pixels should be visible
                extent = (left + margin / 2, left + 1 - margin / 2, top + 1 - margin / 2, top + margin / 2)
                axes.imshow(image, extent=extent, interpolation="nearest" if small else "antialiased")
        axes.set(xlim=(0, width), ylim=(rows + 0.15, 0), aspect="equal", xticks=[])
        axes.set_yticks([0.5, *(y + 1.65 for y in range(len(maps)))], ["image", *(f"block {i}" for i in maps)])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for data, part in zip(pictures, starts, strict=True):
            axes.text((part[0] + part[-1] + 1) / 2, -0.08, NAMES[data], ha="center", va="bottom")
        return save_figure(figure, path)


def _curve(
    axes: Axes, result: dict[str, Any], network: str, data: str, measure: str, look: int, label: str = ""
) -> None:
    rows = [r for r in result["rows"] if (r["network"], r["data"], r["measure"]) == (network, data, measure)]
    values = [np.nan if r["value"] is None else r["value"] for r in rows]
    errors = None if rows[0]["standard_error"] is None else [r["standard_error"] for r in rows]
    styles = [("o", "-"), ("s", (0, (4, 2)))]
    axes.errorbar(
        [r["block"] for r in rows], values, errors, label=label, color=COLOURS[look], marker=styles[look][0],
        linestyle=styles[look][1], markersize=4, linewidth=1.3, capsize=2, elinewidth=0.9,
        markerfacecolor="white" if look else COLOURS[look],
    )  # fmt: skip


def _block_axis(axes: Axes, depth: int) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.set_xlim(0.5, depth + 0.5)
    axes.grid(which="major", axis="y")


def _stages(axes: Axes, result: dict[str, Any]) -> None:
    """Mark which blocks lead to which output of G (Eq. 1), if G has several outputs."""
    depth, levels = result["depth"]["G"], result["levels"]
    _block_axis(axes, depth)
    stage = depth // levels
    for level in range(1, levels):
        axes.axvline(level * stage + 0.5, color="0.75", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
    if levels > 1:
        for level in range(levels):
            axes.annotate(
                f"level {level + 1}", ((level + 0.5) / levels, 1.0), xycoords="axes fraction",
                xytext=(0, 3), textcoords="offset points", ha="center", color="0.4", fontsize=7.5,
            )  # fmt: skip


def _wrapped(label: str) -> str:
    return label.replace(" feature distance", "\nfeature distance")
