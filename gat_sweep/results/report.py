"""Report of a run in one HTML file: every analysis that its table allows, its samples and its rows."""

import io
import json
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from analysis import law_text
from analysis.catalogue import ANALYSES
from analysis.figures.samples import plot_samples
from analysis.html import Picture, Section, html_report
from analysis.table import Cell
from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place, children, write
from gat_sweep.monitor.status import trial_status
from gat_sweep.results.fit_law import fit_law_command
from gat_sweep.results.study import Study, log_to_mlflow, open_study, run_analysis
from gat_sweep.run.record import run_trials
from gat_sweep.run.table import read_rows
from gat_sweep.run.trial import GRID, Trial
from gat_sweep.sweep import differences, varied_text
from gat_sweep.text import Say

LAW_QUESTION = "How does the metric fall with training compute?"
PLACES = [(y, x) for y in range(2) for x in range(GRID)]  # of the samples that stand side by side by size
WIDEST = 768  # pixels of a sample grid in the report
RESULTS = ("step", "flops", "seconds", "value")
ROWS = ("step", "images", "flops", "seconds", "metric", "value", "n", "status", "reason", "flags", "time")
EXTRAS = (
    *("kernel_distance", "precision", "recall", "fd_infinity", "fd_infinity_se", "retrieval", "retrieval_chance"),
    *("clip_score", "split_half"),
)


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
        about=_about(trials, [result["status"] for result in results.values()], rows),
        trials=results,
        rows={trial: [_row(row) for row in found] for trial, found in rows.items()},
        sections=sections,
        refused=refused,
        pictures=_pictures(trials, results),
    )
    path = study.folder / "report.html"
    write(path, text.encode())
    files = [path]
    if by_size := _by_size(trials, rows):
        files += plot_samples(by_size, study.folder / "samples")
        say(f"samples by size: {files[-1]}")
    return path, log_to_mlflow(study, files)


def _sections(
    study: Study, name: str, home: Place, out: Path | None, floor: float | None, say: Say
) -> tuple[list[Section], list[tuple[str, str]]]:
    sections, refused = [], []
    try:
        report, text, files = fit_law_command(name, "value", home, out, floor, verbose=True)
        sections.append(Section("Scaling law", LAW_QUESTION, law_text.verdict(report), text, report, _svg(files)))
        say(f"Scaling law: {law_text.verdict(report)}")
    except UserError as reason:
        refused.append((LAW_QUESTION, str(reason)))
        say(f"Scaling law: {reason}")
    without = []
    for command, analysis in ANALYSES.items():
        try:
            report, text, files = run_analysis(study, command)
        except UserError as reason:
            # The report may be passed on, so it leaves out where the table lies on this machine.
            refused.append((analysis.question, str(reason).removeprefix(f"{study.table.path}: ")))
            without.append(command)
            continue
        answer = import_module(f"analysis.{command}").verdict(report)
        sections.append(Section(analysis.title, analysis.question, answer, text, report, _svg(files)))
        say(f"{analysis.title}: {answer}")
    if without:
        say(f"this run is not for {', '.join(without)}; the report has the reasons")
    return sections, refused


def _by_size(trials: list[Trial], rows: dict[str, list[dict[str, Any]]]) -> list[tuple[str, NDArray[np.uint8]]]:
    """Return a label and the first samples of each size of both networks, by rising compute of a step.

    Fewer than two sizes are none.
    """
    found: dict[str, tuple[float, str, NDArray[np.uint8]]] = {}
    for trial in sorted(trials, key=lambda trial: trial.config.seed):
        model, grid = trial.config.model, _newest(trial)
        if model.generator != model.discriminator or model.generator in found or grid is None or not rows[trial.id]:
            continue
        with Image.open(io.BytesIO(grid.read_bytes())) as image:
            pixels = np.asarray(image.convert("RGB"))
        side = pixels.shape[0] // GRID
        pictures = np.stack([pixels[y * side : (y + 1) * side, x * side : (x + 1) * side] for y, x in PLACES])
        last = rows[trial.id][-1]
        value = "" if last["value"] is None else f"  {last['value']:.4g}"
        found[model.generator] = ((last["flops"] or 0.0) / max(last["step"], 1), f"{model.generator}{value}", pictures)
    ordered = sorted(found.values(), key=lambda one: one[0])
    return [(label, pictures) for _, label, pictures in ordered] if len(ordered) > 1 else []


def _newest(trial: Trial) -> Place | None:
    """Return the newest sample grid of a trial; None if it has none."""
    files = [file for file in children(trial.folder / "samples") if file.name.endswith(".png")]
    return max(files, key=lambda file: file.name, default=None)


def _svg(files: list[Path]) -> Path | None:
    return next((file for file in files if file.suffix == ".svg"), None)


def _about(trials: list[Trial], states: list[str], rows: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
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
    state = trial_status(trial)
    remarks = [state["reason"], state["flags"]]
    return found | {"status": state["status"], "remarks": "; ".join(remark for remark in remarks if remark)}


def _row(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in (*ROWS, *(extra for extra in EXTRAS if row[extra] is not None))}


def _pictures(trials: list[Trial], results: dict[str, dict[str, Any]]) -> list[Picture]:
    """Return the newest sample grid of each trial."""
    found = []
    for trial in trials:
        newest = _newest(trial)
        if newest is None:
            continue
        with Image.open(io.BytesIO(newest.read_bytes())) as image:
            image.thumbnail((WIDEST, WIDEST))
            content = io.BytesIO()
            image.save(content, format="PNG", optimize=True)
        value = results[trial.id]["value"]
        step = int(newest.name.removesuffix(".png").rpartition("_")[2])
        caption = f"{trial.id}, step {step:,}" + ("" if value is None else f", {value:.4g} at the end")
        found.append(Picture(trial.id, caption, content.getvalue()))
    return found
