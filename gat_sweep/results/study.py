"""Steps of every command that reads results: open a table, analyse it, write JSON and figures.

The analyses are in analysis/, which does not know runs. This module knows where the tables of runs are, where results
go, and MLflow.
"""

import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from analysis.csvfile import SUFFIXES
from analysis.reading import load_table
from analysis.table import Table, Trial
from gat_sweep.config import ADDED
from gat_sweep.errors import UserError
from gat_sweep.files.jsonfile import read_json
from gat_sweep.files.storage import Place, children, place, write
from gat_sweep.run.race import read_run_race
from gat_sweep.run.record import read_run

FOLDER = "analysis"  # folder in a run, and in its launch in MLflow


@dataclass(frozen=True)
class Study:
    """A table, the folder for its results, and the run that it belongs to."""

    table: Table
    folder: Path
    run: Place | None  # None for a file of the user's

    @property
    def name(self) -> str:
        return self.run.name if self.run else self.table.path.stem


def is_table(source: str) -> bool:
    """Whether a source is a table by its path, and not a run by its name."""
    return source.lower().endswith((".parquet", *SUFFIXES))


def open_study(source: str, home: Place, out: Path | None, metric: str = "value") -> Study:
    """Open a run's table by the run's name, or a .parquet, .csv or .tsv by its path.

    metric: the column to read values from. out: folder for results; default: the run's own, or one beside the file.
    Raises UserError if there is no such run or file, or the table has an error.
    """
    if is_table(source):
        path = Path(source)
        return Study(loaded_table(path, metric), out or path.with_suffix("").with_name(f"{path.stem}-{FOLDER}"), None)
    if Path(source).is_file() and not (home / source / "run.json").exists():
        raise UserError(f"{source} is a file, but not a table by its name, which ends in .parquet, .csv or .tsv")
    read_run(home, source)
    run = home / source
    here = run / FOLDER if isinstance(run, Path) else Path(f"{source}-{FOLDER}")
    return Study(replace(loaded_table(_table(run), metric), race=read_run_race(run)), out or here, run)


def home_words(home: Place) -> list[str]:
    """The option of a printed command that finds the home; [] for the usual one, `runs` where the command is typed."""
    return [] if home == place("runs") else ["--home", str(home)]


def analyse(
    study: Study,
    name: str,
    analysis: Callable[[Table], Any],
    plot: Callable[[Any, Path], list[Path]],
) -> tuple[dict[str, Any], list[Path]]:
    """Analyse a table; write <name>.json, <name>.svg and <name>.png; return (the JSON, the files).

    Raises UserError if the table lacks what the analysis needs; nothing is written then.
    """
    try:
        found = analysis(study.table)
    except ValueError as error:
        raise UserError(str(error)) from None
    report = {"source": study.name, **found.to_json()}
    write(study.folder / f"{name}.json", json.dumps(report, indent=1, allow_nan=False).encode())
    return report, [study.folder / f"{name}.json", *plot(found, study.folder / name)]


def log_to_mlflow(study: Study, files: Iterable[Place]) -> str:
    """Log files to the launch of the study's run; return one line on what went wrong, or "".

    Nothing is logged for a file of the user's or a run without MLflow.
    """
    if study.run is None or not (study.run / "mlflow.json").exists():
        return ""
    from gat_sweep.monitor.tracking import log_artifacts

    uri, launch = read_json(
        study.run / "mlflow.json",
        lambda value: (str(value["uri"]), str(value["run_id"])),
        "remove it; the next launch of the run writes it anew",
    )
    return log_artifacts(uri, launch, files, FOLDER)


def run_analysis(study: Study, command: str, **options: Any) -> tuple[dict[str, Any], str, list[Path]]:
    """Run one of ANALYSES; return (its JSON, a summary to print, the files).

    options: further arguments of the analysis.
    Raises UserError as `analyse` does.
    """
    module = import_module(f"analysis.{command}")
    plot = import_module(f"analysis.figures.{command}").plot
    report, files = analyse(study, command, partial(module.analyse, **options), plot)
    return report, module.summary(report), files


# ---------------------------------------------------------------- tables


def loaded_table(path: Path, metric: str) -> Table:
    """Load a table as load_table does, with UserError in place of ValueError.

    Configs that are older than a config value get what the code did before.
    """
    try:
        table = load_table(path, metric)
    except ValueError as error:
        raise UserError(str(error)) from None
    before = {".".join(key): value for key, value in ADDED.items()}

    def completed(trial: Trial) -> Trial:
        config = trial.facts.config
        return replace(trial, facts=replace(trial.facts, config={**before, **config})) if "recipe" in config else trial

    return replace(table, trials=tuple(completed(trial) for trial in table.trials))


def _table(run: Place) -> Path:
    """Return the folder of a run's rows; for rows in an object store, that of a copy."""
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
