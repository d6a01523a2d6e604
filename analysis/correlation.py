"""Metric against the generator's forward GFLOPs over sizes (the paper's Fig. 3c), with what so few points can say."""

import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy import stats

from analysis.law import CONFIDENCE, Correlation, gflops, one_protocol, pearson
from analysis.style import COLOURS, MARKERS, STYLE, plain, save_figure, set_ticks
from analysis.table import Cell, Excluded, Protocol, Row, Table, check_one_config

MIN_POINTS = 3


@dataclass(frozen=True)
class Model:
    """One size and patch at the step that all are compared at: mean over seeds."""

    cell: Cell
    g_forward_gflops: float
    value: float
    trials: tuple[str, ...]


@dataclass(frozen=True)
class Correlations:
    """How the metric goes with forward GFLOPs over models, at one training step."""

    measured: Protocol
    step: int
    models: tuple[Model, ...]  # by rising GFLOPs
    excluded: tuple[Excluded, ...]
    pearson: Correlation  # of the metric and GFLOPs
    pearson_log_gflops: Correlation  # of the metric and their logarithm
    pearson_log_log: Correlation
    spearman: Correlation

    def to_json(self) -> dict[str, Any]:
        return {
            **self.measured.to_json(),
            "step": self.step,
            "confidence": CONFIDENCE,
            **{
                name: asdict(getattr(self, name))
                for name in ("pearson", "pearson_log_gflops", "pearson_log_log", "spearman")
            },
            "models": [
                {"size": m.cell.label, **{k: v for k, v in asdict(m).items() if k != "cell"}} for m in self.models
            ],
            "excluded": [trial.to_json() for trial in self.excluded],
        }


def spearman(x: ArrayLike, y: ArrayLike) -> Correlation:
    """Rank correlation of two variables [n]; the interval is Fisher's z with the variance of Bonett and Wright (2000).

    At n = 4 it holds almost everything, which is the point of showing it.
    """
    ranks = pearson(stats.rankdata(x), stats.rankdata(y))
    n = len(np.asarray(x))
    if ranks.r is None or n < 4 or abs(ranks.r) == 1:
        return Correlation(ranks.r, None, None)
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt((1 + ranks.r**2 / 2) / (n - 3))
    return Correlation(ranks.r, math.tanh(math.atanh(ranks.r) - half), math.tanh(math.atanh(ranks.r) + half))


def correlate(table: Table) -> Correlations:
    """The table's sizes and patches, at the last step at which every complete trial was evaluated.

    Raises ValueError, in one line, for fewer than three models, mixed protocols, or no step in common.
    """
    trials = table.complete()
    measured = one_protocol(trials)
    check_one_config(trials)
    at: list[dict[int, Row]] = [{r.step: r for r in t.rows if r.measured == measured and r.value > 0} for t in trials]
    steps = set.intersection(*(set(rows) for rows in at)) if at else set()
    if measured is None or not steps:
        raise ValueError("no step at which every complete trial was evaluated; give trials with such a step")
    step = max(steps)
    by_cell: dict[Cell, list[Row]] = defaultdict(list)
    for rows in at:
        by_cell[rows[step].cell].append(rows[step])
    if len(by_cell) < MIN_POINTS:
        raise ValueError(f"a correlation needs {MIN_POINTS} sizes or patches, this table has {len(by_cell)} complete")
    models = [
        Model(
            cell,
            gflops(fmean(row.g_forward_flops for row in rows)),
            fmean(row.value for row in rows),
            tuple(row.trial for row in rows),
        )
        for cell, rows in by_cell.items()
    ]
    models.sort(key=lambda model: (model.g_forward_gflops, model.cell))
    x, y = np.array([m.g_forward_gflops for m in models]), np.array([m.value for m in models])
    return Correlations(
        measured,
        step,
        tuple(models),
        tuple(table.excluded()),
        pearson=pearson(x, y),
        pearson_log_gflops=pearson(np.log(x), y),
        pearson_log_log=pearson(np.log(x), np.log(y)),
        spearman=spearman(x, y),
    )


def said(found: Correlation) -> str:
    """r and its interval in short."""
    if found.r is None:
        return "undefined: one of the two is constant"
    if found.low is None or found.high is None:
        return f"{found.r:.3f}, no interval"
    return f"{found.r:.3f} [{found.low:.3f}, {found.high:.3f}]"


def summary(report: dict[str, Any]) -> str:
    """The correlations in words, for a terminal."""
    names = {
        "pearson": "Pearson with GFLOPs",
        "pearson_log_gflops": "Pearson with log GFLOPs",
        "pearson_log_log": "Pearson, both logarithmic",
        "spearman": "Spearman",
    }
    lines = [f"{report['metric']} at step {report['step']} against forward GFLOPs of G, {len(report['models'])} models"]
    lines += [f"  {name}: {said(Correlation(**report[key]))}" for key, name in names.items()]
    lines += [f"left out: {e['trial']} ({e['size']}): {e['reason']}" for e in report["excluded"]]
    return "\n".join(lines)


def plot_correlations(found: Correlations, path_without_suffix: Path) -> list[Path]:
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
            for model in models:
                axes.annotate(
                    plain(model.cell.label),
                    (model.g_forward_gflops, model.value),
                    xytext=(7, 5),
                    textcoords="offset points",
                    fontsize=8,
                )
        low, high = axes.get_xlim()
        axes.set_xlim(low, high * (high / low) ** 0.12)  # room for the last label
        axes.margins(y=0.15)
        axes.set_xlabel("forward of G   (GFLOPs = $10^9$ multiply-adds)")
        axes.set_ylabel(f"{plain(found.measured.metric)} at step {found.step:,}")
        axes.set_title(
            f"with GFLOPs: r = {said(found.pearson)}\nwith log GFLOPs: r = {said(found.pearson_log_gflops)}",
            linespacing=1.4,
        )
        axes.grid(which="major")
        set_ticks(axes.xaxis, *axes.get_xlim())
        if len(patches) > 1:
            axes.legend(loc="best")
        return save_figure(figure, Path(path_without_suffix))
