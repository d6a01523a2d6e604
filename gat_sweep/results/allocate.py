"""The best size and length at a budget, with the command that trains it: what `gat-sweep allocate` does."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from analysis.allocate import Allocation, analyse
from analysis.allocate_text import summary
from analysis.table import Table, gflops, strict_json
from gat_sweep.config import TrialConfig
from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place
from gat_sweep.results.predict_budget import command_text, scored
from gat_sweep.results.study import Study, log_to_mlflow, open_study
from gat_sweep.results.study import analyse as analyse_study
from gat_sweep.run.record import run_trials
from gat_sweep.run.table import read_rows

ROUNDS = 20  # of finding the compute that some hours pay for, which depends on the best size


@dataclass(frozen=True)
class _Report:
    found: Allocation
    more: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return strict_json(self.found.to_json() | self.more)


def allocate_command(
    source: str,
    metric: str,
    home: Place,
    out: Path | None,
    budget: float | None = None,
    gpu_hours: float | None = None,
    far: bool = False,
    better: str | None = None,
) -> tuple[dict[str, Any], str, list[Path]]:
    """Find, draw and write the best size at a budget, and score predictions; return (the JSON, a summary, the files).

    budget: GFLOPs. gpu_hours: the budget as hours of one GPU, at the speed of the run's trials.
    Raises UserError if the table does not allow an answer, or no speed is known.
    """
    from analysis.figures.allocate import plot

    study = open_study(source, home, out, metric)
    configs = {trial.id: trial.config for trial in run_trials(home, study.name)} if study.run is not None else {}

    def analysed(table: Table) -> _Report:
        ask = partial(analyse, table, far=far, better=better)
        more: dict[str, Any] = {}
        if gpu_hours is None:
            found = ask(budget)
        else:
            found, per_hour = _at_hours(study, configs, table, gpu_hours, ask)
            more |= {"gpu_hours": gpu_hours, "gflops_per_gpu_hour": per_hour}
        if study.run is not None and metric == "value":
            more["command"] = command_text(found, configs, home)
            more["predictions"] = scored(study.run, home)
        return _Report(found, more)

    report, files = analyse_study(study, "allocate", analysed, lambda found, path: plot(found.found, path))
    warning = log_to_mlflow(study, files)
    return report, summary(report) + (f"\n{warning}" if warning else ""), files


def _at_hours(
    study: Study, configs: dict[str, TrialConfig], table: Table, hours: float, ask: Any
) -> tuple[Allocation, float]:
    """Return the answer for hours of one GPU, and GFLOPs per hour: as fast as the trials of the size nearest to it."""
    rates = _rates(study, configs)
    found = ask(hours * median(rates.values()))
    for _ in range(ROUNDS):
        sizes = {size.cell.generator_size: size.cost for size in found.found.sizes if size.cell.generator_size in rates}
        nearest = min(sizes, key=lambda size: abs(sizes[size] / found.budget.cost - 1))
        if abs(found.budget.gflops / (hours * rates[nearest]) - 1) < 1e-3:
            break
        found = ask(hours * rates[nearest])
    return found, found.budget.gflops / hours


def _rates(study: Study, configs: dict[str, TrialConfig]) -> dict[str, float]:
    """GFLOPs in an hour of one GPU, by size: the median over trials, evaluations included."""
    if study.run is None:
        raise UserError("--gpu-hours needs the times of a run's trials; give the name of a run, or --budget")
    found: dict[str, list[float]] = {}
    for name, config in configs.items():
        if config.workers.elastic:  # the table does not say how many it had
            continue
        gpus, table = config.workers.least * config.workers.gpus, study.run / "table" / f"{name}.parquet"
        rows = [row for row in read_rows(table) if row["seconds"] and row["flops"]] if table.exists() else []
        if rows and gpus:
            rate = gflops(rows[-1]["flops"]) / (rows[-1]["seconds"] * gpus / 3600)
            found.setdefault(config.model.generator, []).append(rate)
    if not found:
        raise UserError(
            "--gpu-hours: no trial of the run was trained on a GPU, with one workers.count; give --budget in GFLOPs"
        )
    return {size: median(rates) for size, rates in found.items()}
