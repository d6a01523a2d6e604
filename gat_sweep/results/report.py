"""Report of a run in one HTML file: every analysis that its table allows, its samples and its rows."""

import io
import json
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from analysis import law_text
from analysis.catalogue import ANALYSES
from analysis.html import Picture, Section, html_report
from analysis.table import Cell
from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place, children, write
from gat_sweep.results.fit_law import fit_law_command
from gat_sweep.results.study import Study, log_to_mlflow, open_study, run_analysis
from gat_sweep.run.record import run_trials
from gat_sweep.run.table import read_rows
from gat_sweep.run.trial import Trial
from gat_sweep.sweep import differences, varied_text
from gat_sweep.text import Say

LAW_QUESTION = "How does the metric fall with training compute?"
WIDEST = 768  # pixels of a sample grid in the report
RESULTS = ("step", "flops", "seconds", "value")
ROWS = ("step", "images", "flops", "seconds", "metric", "value", "n", "status", "reason", "flags", "time")
EXTRAS = ("kernel_distance", "precision", "recall", "fd_infinity", "fd_infinity_se", "split_half")


def report_command(name: str, home: Place, out: Path | None, floor: float | None, say: Say) -> tuple[Path, str]:
    """Write report.html, and each analysis' files beside it; return (its path, a warning if MLflow failed, or "").

    floor: that of the law, if it is known from elsewhere. say: receives a line for each analysis.
    Raises UserError if there is no such run, or it has no rows yet.
    """
    trials = run_trials(home, name)
    study = open_study(name, home, out)
    rows = {trial.id: read_rows(trial.table) if trial.table.exists() else [] for trial in trials}
    sections, refused = _sections(study, name, home, out, floor, say)
    varied = differences({trial.id: trial.config for trial in trials})
    results = {trial.id: _result(trial, rows[trial.id], varied_text(varied[trial.id])) for trial in trials}
    text = html_report(
        title=f"{name}",
        about=_about(trials, rows),
        trials=results,
        rows={trial: [_row(row) for row in found] for trial, found in rows.items()},
        sections=sections,
        refused=refused,
        pictures=_pictures(trials, results),
    )
    path = study.folder / "report.html"
    write(path, text.encode())
    return path, log_to_mlflow(study, [path])


def _sections(
    study: Study, name: str, home: Place, out: Path | None, floor: float | None, say: Say
) -> tuple[list[Section], list[tuple[str, str]]]:
    sections, refused = [], []
    try:
        report, text, files = fit_law_command(name, "value", home, out, floor, verbose=True)
        sections.append(Section("Scaling law", LAW_QUESTION, law_text.verdict(report), text, report, _svg(files)))
        say("Scaling law: fitted")
    except UserError as reason:
        refused.append((LAW_QUESTION, str(reason)))
    for command, analysis in ANALYSES.items():
        try:
            report, text, files = run_analysis(study, command)
        except UserError as reason:
            # The report may be passed on, so it leaves out where the table lies on this machine.
            refused.append((analysis.question, str(reason).removeprefix(f"{study.table.path}: ")))
            say(f"{analysis.title}: {reason}")
            continue
        answer = import_module(f"analysis.{command}").verdict(report)
        sections.append(Section(analysis.title, analysis.question, answer, text, report, _svg(files)))
        say(f"{analysis.title}: done")
    return sections, refused


def _svg(files: list[Path]) -> Path | None:
    return next((file for file in files if file.suffix == ".svg"), None)


def _about(trials: list[Trial], rows: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    states = [trial.status() for trial in trials]
    every = [row for found in rows.values() for row in found]
    protocols = sorted({row["protocol"] for row in every if row["protocol"]})
    return {
        "sweep": f"{trials[0].sweep}, recipe {trials[0].config.recipe}",
        "trials": ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "commits": ", ".join(sorted({row["commit"] for row in every})) or "none",
        "metrics": ", ".join(sorted({f"{row['metric']} of {row['n']:,} samples" for row in every if row["metric"]})),
        "references": ", ".join(sorted({row["reference"] for row in every if row["reference"]})) or "none",
        "protocol": "; ".join(
            ", ".join(f"{key} {value}" for key, value in json.loads(text).items() if value is not None)
            for text in protocols
        ),
    }


def _result(trial: Trial, rows: list[dict[str, Any]], varies: str) -> dict[str, Any]:
    config = trial.config
    last = rows[-1] if rows else {}
    size = Cell(config.model.generator, config.model.discriminator, config.model.patch).label
    found = {"size": size, "seed": config.seed, "varies": varies, **{name: last.get(name) for name in RESULTS}}
    remarks = [last.get("reason"), last.get("flags")]
    return found | {"status": trial.status(), "remarks": "; ".join(remark for remark in remarks if remark)}


def _row(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in (*ROWS, *(extra for extra in EXTRAS if row[extra] is not None))}


def _pictures(trials: list[Trial], results: dict[str, dict[str, Any]]) -> list[Picture]:
    """Return the newest sample grid of each trial."""
    found = []
    for trial in trials:
        files = [file for file in children(trial.folder / "samples") if file.name.endswith(".png")]
        if not files:
            continue
        newest = max(files, key=lambda file: file.name)
        with Image.open(io.BytesIO(newest.read_bytes())) as image:
            image.thumbnail((WIDEST, WIDEST))
            content = io.BytesIO()
            image.save(content, format="PNG", optimize=True)
        value = results[trial.id]["value"]
        step = int(newest.name.removesuffix(".png").rpartition("_")[2])
        caption = f"{trial.id}, step {step:,}" + ("" if value is None else f", {value:.4g} at the end")
        found.append(Picture(trial.id, caption, content.getvalue()))
    return found
