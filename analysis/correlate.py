"""Correlation of the metric with the generator's forward GFLOPs over sizes (the paper's Fig. 3c), with intervals."""

import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from analysis.statistics import Correlation, pearson, spearman
from analysis.table import (
    Cell,
    Excluded,
    Protocol,
    Row,
    Table,
    check_seeds,
    gflops,
    json_head,
    one_protocol,
    replicates,
)

MIN_POINTS = 3


@dataclass(frozen=True)
class Model:
    """One size and patch at the step of the comparison: geometric mean over seeds."""

    cell: Cell
    g_forward_gflops: float
    value: float
    trials: tuple[str, ...]


@dataclass(frozen=True)
class Correlations:
    """Correlations of the metric with forward GFLOPs over models, at one training step."""

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
            **json_head(self.measured),
            "step": self.step,
            **{
                name: asdict(getattr(self, name))
                for name in ("pearson", "pearson_log_gflops", "pearson_log_log", "spearman")
            },
            "models": [
                {"size": m.cell.label, **{k: v for k, v in asdict(m).items() if k != "cell"}} for m in self.models
            ],
            "excluded": [trial.to_json() for trial in self.excluded],
        }


def analyse(table: Table) -> Correlations:
    """Correlate over the table's sizes and patches, at the last step at which every complete trial was evaluated.

    Raises ValueError, in one line, for fewer than three models, mixed protocols, no step in common, trials of a model
    that are not replicates, or a table without g_forward_flops.
    """
    trials = table.complete()
    measured = one_protocol(trials)
    replicates(trials)
    at: list[dict[int, Row]] = [{r.step: r for r in t.rows if r.measured == measured and r.value > 0} for t in trials]
    steps = set.intersection(*(set(rows) for rows in at)) if at else set()
    if measured is None or not steps:
        raise ValueError("there is no step at which every complete trial was evaluated; give trials with such a step")
    step = max(steps)
    by_cell: dict[Cell, list[Row]] = defaultdict(list)
    for trial, rows in zip(trials, at, strict=True):
        if rows[step].g_forward_flops is None:
            raise ValueError(f"{trial.name} has no g_forward_flops, which a correlation needs; add the column")
        by_cell[rows[step].cell].append(rows[step])
    for cell in by_cell:  # of two lengths of one size and seed, both have this step
        check_seeds([trial for trial in trials if trial.cell == cell])
    if len(by_cell) < MIN_POINTS:
        raise ValueError(f"a correlation needs {MIN_POINTS} sizes or patches, this table has {len(by_cell)} complete")
    models = [
        Model(
            cell,
            gflops(fmean(row.g_forward_flops or 0.0 for row in rows)),
            math.exp(fmean(math.log(row.value) for row in rows)),
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


def correlation_text(found: Correlation) -> str:
    """Return r and its interval as short text."""
    if found.r is None:
        return "undefined: one of the two is constant"
    if found.low is None or found.high is None:
        return f"{found.r:.3f}, no interval"
    return f"{found.r:.3f} [{found.low:.3f}, {found.high:.3f}]"


def verdict(report: dict[str, Any]) -> str:
    """The answer in one line."""
    found = correlation_text(Correlation(**report["pearson_log_gflops"]))
    return f"Pearson of {report['metric']} and log GFLOPs: {found}, over {len(report['models'])} models"


def summary(report: dict[str, Any]) -> str:
    """The correlations in words, for a terminal."""
    names = {
        "pearson": "Pearson with GFLOPs",
        "pearson_log_gflops": "Pearson with log GFLOPs",
        "pearson_log_log": "Pearson, both logarithmic",
        "spearman": "Spearman",
    }
    lines = [f"{report['metric']} at step {report['step']} against forward GFLOPs of G, {len(report['models'])} models"]
    lines += [f"  {name}: {correlation_text(Correlation(**report[key]))}" for key, name in names.items()]
    lines += [f"left out: {e['trial']} ({e['size']}): {e['reason']}" for e in report["excluded"]]
    return "\n".join(lines)
