"""`gat-sweep log-model`: the trained generator of a trial as an MLflow model, in the trial's own MLflow run."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gat_sweep.errors import UserError
from gat_sweep.files.jsonfile import read_json
from gat_sweep.files.storage import Place
from gat_sweep.files.weights import weights_digest
from gat_sweep.monitor.models import Networks, log_model, register
from gat_sweep.monitor.tracking import PLACE
from gat_sweep.monitor.ui import tracking_uri
from gat_sweep.pretrained import pyfunc
from gat_sweep.pretrained.folder import from_trial, save_pretrained
from gat_sweep.run.record import chosen_trials, run_trials
from gat_sweep.run.saved import saved_step, step_folder
from gat_sweep.run.table import read_rows
from gat_sweep.run.trial import Trial
from gat_sweep.text import Say

NAME = "networks"  # of the folder in the model
PROTOCOL = ("metric", "n", "reference", "protocol")  # columns that equal values have in common


def log_model_command(
    home: Place, run: str, trial: str | None, alias: str | None, uri: str | None, settings: Mapping[str, Any], say: Say
) -> str:
    """Logs the generator of a trial, by id, or with an alias the best one of a run; returns its URI in MLflow.

    alias: also moves this alias of the registered model, which has the name of the run, to the best trial's model.
    uri: of MLflow; default: where the run was recorded. settings: as in from_trial.
    Raises UserError when the trial has no checkpoint or no run in MLflow, no best trial is certain, or MLflow is away.
    """
    if (trial is None) == (alias is None):
        raise UserError("give a TRIAL, or --best for the best one of the run")
    chosen = best_trial(run_trials(home, run)) if trial is None else chosen_trials(home, run, (trial,))[0]
    where = _store(chosen.run_folder, uri)
    step = saved_step(chosen.folder / "checkpoints")
    if not step:
        raise UserError(f"trial {chosen.id} has no checkpoint; train it first")
    if alias is not None and step != chosen.config.train.steps:
        raise UserError(f"the newest checkpoint of trial {chosen.id} is of step {step}, not of the value that is best")
    say(f"{chosen.id}, step {step}")
    with tempfile.TemporaryDirectory() as folder:
        networks = _exported(step_folder(chosen.folder / "checkpoints", step), Path(folder) / NAME, settings)
        model = log_model(where, chosen.folder, networks)
    if alias is None:
        return model
    say(f"version {register(where, model, run, alias)} of the registered model '{run}'")
    return f"models:/{run}@{alias}"


def best_trial(trials: list[Trial]) -> Trial:
    """The trial that is done with the smallest value.

    Raises UserError when none is done, two have the same smallest value, or they were not measured alike.
    """
    rows = {trial.id: read_rows(trial.table)[-1] for trial in trials if trial.status() == "done"}
    if not rows:
        raise UserError("no trial of the run is done; --best needs one")
    for column in PROTOCOL:
        if len(kinds := sorted({str(row[column]) for row in rows.values()})) > 1:
            raise UserError(f"the values are of {len(kinds)} kinds ({column}: {kinds[0]}, {kinds[1]}); name a TRIAL")
    smallest = min(row["value"] for row in rows.values())
    found = [trial for trial in trials if trial.id in rows and rows[trial.id]["value"] == smallest]
    if len(found) > 1:
        raise UserError(f"{' and '.join(trial.id for trial in found)} have the same value {smallest:g}; name a TRIAL")
    return found[0]


def _store(run: Place, given: str | None) -> str:
    if given is None and (run / PLACE).exists():
        return read_json(run / PLACE, lambda value: str(value["uri"]), "run gat-sweep send, which writes it anew")
    return tracking_uri(given, run.parent)


def _exported(checkpoint: Place, folder: Path, settings: Mapping[str, Any]) -> Networks:
    """The generator alone: pictures need no discriminator."""
    found = from_trial(checkpoint, settings)
    save_pretrained(folder, found.generator, found.about)
    spec = found.generator.spec
    example: dict[str, list[Any]] = {"classes": [0]} if spec.classes else {"count": [1]}
    if spec.text_width:
        example = {"captions": ["a picture"]}
    params = {name: value for name, value in pyfunc.PARAMS.items() if spec.conditional or name != "guidance"}
    where = {"tokenizer": settings.get("data.tokenizer") or "", "text_encoder": settings.get("text.folder") or ""}
    _, height, width, _ = pyfunc.Sampler(folder, where).predict(example).shape
    step, weights = found.about.training["step"], weights_digest(found.generator)
    return Networks(folder, pyfunc.__name__, step, weights, example, (height, width), params, pyfunc.SETTINGS)
