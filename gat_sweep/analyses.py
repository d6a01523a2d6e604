"""What the commands that read results do: a table in, a JSON with figures and a few sentences out.

The analyses themselves are in analysis/, which knows nothing of runs; here are the tables of runs, the places where
results go, and MLflow.
"""

import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from analysis.catalogue import ANALYSES
from analysis.reading import load_table
from analysis.table import Table
from gat_sweep import paper
from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place, children, write
from gat_sweep.run.record import read_run

FOLDER = "analysis"  # of a run, and of its launch in MLflow


@dataclass(frozen=True)
class Source:
    """A table, where what is said of it goes, and the run that it is of."""

    table: Table
    folder: Path
    run: Place | None  # None: a file of the user's

    @property
    def name(self) -> str:
        return self.run.name if self.run else self.table.path.stem


def open_source(source: str, home: Place, out: Path | None, metric: str = "value") -> Source:
    """A run's table by the run's name, or a .parquet or .csv by its path.

    metric: the column to read values from. out: where results go instead of the run's own folder.
    Raises UserError when there is no such run or file, or the table is at fault.
    """
    if source.endswith((".parquet", ".csv")):
        path = Path(source)
        return Source(_loaded(path, metric), out or path.with_suffix("").with_name(f"{path.stem}-{FOLDER}"), None)
    read_run(home, source)
    run = home / source
    here = run / FOLDER if isinstance(run, Path) else Path(f"{source}-{FOLDER}")
    return Source(_loaded(_table(run), metric), out or here, run)


def analyse(
    source: Source,
    name: str,
    analysis: Callable[[Table], Any],
    plot: Callable[[Any, Path], list[Path]] | None,
) -> tuple[dict[str, Any], list[Path]]:
    """(the JSON of an analysis, the files written): <name>.json, and <name>.svg and .png where it is drawn.

    Raises UserError when the table does not hold what the analysis needs; nothing is written then.
    """
    try:
        found = analysis(source.table)
    except ValueError as error:
        raise UserError(str(error)) from None
    report = {"source": source.name, **found.to_json()}
    write(source.folder / f"{name}.json", json.dumps(report, indent=1, allow_nan=False).encode())
    return report, [source.folder / f"{name}.json", *(plot(found, source.folder / name) if plot else [])]


def log_to_mlflow(source: Source, files: Iterable[Place]) -> str:
    """Puts files beside the launch that they are about; one line on what went wrong, or "".

    A file of the user's, and a run without MLflow, have no record.
    """
    if source.run is None or not (source.run / "mlflow.json").exists():
        return ""
    from gat_sweep.monitor.tracking import log_artifacts

    where = json.loads((source.run / "mlflow.json").read_text(encoding="utf-8"))
    return log_artifacts(where["uri"], where["run_id"], files, FOLDER)


def run_analysis(source: Source, command: str, **options: Any) -> tuple[dict[str, Any], str, list[Path]]:
    """One of ANALYSES; (its JSON, a summary to print, the files).

    options: of the analysis' function, beside the table.
    Raises UserError as `analyse` does.
    """
    asked = ANALYSES[command]
    module = import_module(f"analysis.{asked.module}")
    place, _, name = asked.figure.partition(".")
    plot = getattr(import_module(f"analysis.{place}"), name) if place else None
    report, files = analyse(source, asked.module, partial(getattr(module, asked.function), **options), plot)
    return report, module.summary(report), files


# ---------------------------------------------------------------- fit-law


@dataclass(frozen=True)
class _LawReport:
    """A law with every check of it."""

    law: Any
    more: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return self.law.to_json() | self.more


def fit_law_command(
    source: str | None, metric: str, home: Place, out: Path | None, floor: float | None
) -> tuple[dict[str, Any], str, list[Path]]:
    """Fits, checks and draws a law, and scores the run's predictions; (its JSON, a summary to print, the files).

    source: as of open_source, or None for the paper's own points.
    Raises UserError when there is nothing to fit, or the table is at fault.
    """
    from analysis.law import fit_law
    from analysis.law_figure import plot_law
    from analysis.scrutiny import scrutinise
    from gat_sweep.prediction import scored

    if source is None:
        folder = out or Path("law-paper")
        folder.mkdir(parents=True, exist_ok=True)
        paper.write_table(folder / "table3.csv", paper.FORWARDS)
        opened = Source(_loaded(folder / "table3.csv", metric), folder, None)
    else:
        opened = open_source(source, home, out, metric)

    def scrutinised(table: Table) -> _LawReport:
        law = fit_law(table)
        more = scrutinise(table, law, floor)
        if source is None:
            more |= paper.remarks(table)
        if opened.run is not None and metric == "value":
            more["predictions"] = scored(opened.run, law)
        return _LawReport(law, more)

    def plotted(found: _LawReport, path: Path) -> list[Path]:
        predictions = [row for row in found.more.get("predictions", []) if row["intact"]]
        return plot_law(opened.table, found.law, path, predictions)

    report, files = analyse(opened, "law", scrutinised, plotted)
    warning = log_to_mlflow(opened, files)
    return report, law_summary(report) + (f"\n{warning}" if warning else ""), files


def law_summary(report: dict[str, Any]) -> str:
    """The law in words, for a terminal."""
    metric = report["metric"]
    lines = [
        f"{metric} = {report['a']:.4g} C^-{report['b']:.4f}, C in {report['unit']}",
        f"b = {report['b']:.4f}, 95 % interval {_interval(report)} (Student t, {report['n']} sizes)",
        f"Pearson({metric}, G-forward GFLOPs) = {report['pearson_gflops']:.3f}"
        if report["pearson_gflops"] is not None
        else f"Pearson({metric}, G-forward GFLOPs) is undefined",
        f"floor: {report['floor']['verdict']}",
    ]
    if fitted := report["floor"]["with_floor"]:
        lines.append(
            f"  with a floor: E = {fitted['floor']:.4g}, b = {fitted['b']:.4f} {_interval(fitted)}, "
            f"{fitted['starts_agreeing']} of {len(fitted['starts'])} starts agree"
        )
    lines += [
        f"  floor pinned at {row['floor']:.4g}: b = {row['b']:.4f} {_interval(row)}"
        for row in report["floor"].get("pinned", [])
    ]
    if report["leave_one_size_out"]:
        largest = report["leave_one_size_out"][-1]
        lines.append(
            f"largest size from the others: {largest['size']} {largest['value']:.4g}, predicted "
            f"{largest['predicted']:.4g} {_interval(largest)}, {'inside' if largest['inside'] else 'OUTSIDE'}"
        )
    lines += [_prediction_line(row) for row in report.get("predictions", [])]
    without = [row["b"] for row in report["without_run"] if row["b"] is not None]
    if without:
        lines.append(f"leaving out each run: b from {min(without):.4f} to {max(without):.4f}")
    if clustered := report["checkpoints"]:
        lines.append(
            f"through all {clustered['checkpoints']} checkpoints of {clustered['runs']} runs: b = {clustered['b']:.4f} "
            f"{_interval(clustered)} (clustered by run)"
        )
    lines += [f"b = {row['b']:.4f} {_interval(row)} with C of {row['counted']}" for row in report["itemisations"]]
    lines += [f"b = {b:.4f} with C counted as {how}" for how, b in report.get("counts", {}).items()]
    lines += [f"left out: {e['trial']}: {e['reason']}" for e in report["excluded"]]
    lines += [f"flagged: {e['trial']} ({e['size']}): {e['flags']}" for e in report["flagged"]]
    if "remark" in report:
        lines.append(report["remark"])
    return "\n".join(lines)


def _interval(row: dict[str, Any]) -> str:
    low, high = (row.get(key, row.get(f"b_{key}")) for key in ("low", "high"))
    return f"[{'-inf' if low is None else f'{low:.4g}'}, {'inf' if high is None else f'{high:.4g}'}]"


def _prediction_line(row: dict[str, Any]) -> str:
    said = f"prediction of {row['size']} written {row['written']}: {row['predicted']:.4g} {_interval(row)}"
    if not row["intact"]:
        return f"{said}: ALTERED since, its digest does not fit; not scored"
    if row["value"] is None:
        return f"{said}: {row['size']} is not complete yet"
    when = "before" if row["before"] else "AFTER"
    where = "inside" if row["inside"] else "outside"
    lines = f"{said}: {where}, it is {row['value']:.4g}; written {when} its first step"
    if row["inside_seeds"] is not None:
        held = "inside" if row["inside_seeds"] else "outside"
        lines += (
            f"; {held} [{row['seeds_low']:.4g}, {row['seeds_high']:.4g}], where only seeds would stray from the law"
        )
    return lines


# ---------------------------------------------------------------- tables


def _loaded(path: Path, metric: str) -> Table:
    try:
        return load_table(path, metric)
    except ValueError as error:
        raise UserError(str(error)) from None


def _table(run: Place) -> Path:
    """The folder of a run's rows; a copy when they lie in an object store."""
    table = run / "table"
    files = children(table)
    if not files:
        raise UserError(f"run '{run.name}' has no results yet; wait for its first evaluation")
    if isinstance(table, Path):
        return table
    copy = Path(tempfile.mkdtemp(prefix=f"{run.name}-table-"))
    for file in files:
        write(copy / file.name, file.read_bytes())
    return copy
