"""Predictions of the best run at a budget, written before it begins, and their scores.

    <run>/predictions/budget-<digest>.json

`predict --budget` writes down the best size and length at a compute by the joint law, and what a run of the recommended
size reaches there. `allocate` scores it when trials of that size and length are complete, in whichever run of the home
they are. Like every prediction it is not a proof by itself (results/predict.py).
"""

import json
import shlex
from datetime import UTC, datetime
from statistics import geometric_mean
from typing import Any

from analysis.allocate import Allocation, analyse
from analysis.allocate_text import verdict
from analysis.table import strict_json
from gat_sweep.config import TrialConfig
from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place, children, write
from gat_sweep.recipe import changed_settings
from gat_sweep.results.predict import (
    AT_BUDGET,
    FOLDER,
    SHOWN,
    began,
    digest,
    read_predictions,
    within,
    written_before,
)
from gat_sweep.results.study import Study, home_words
from gat_sweep.run.record import run_trials
from gat_sweep.run.table import read_rows
from gat_sweep.sweep import NETWORKS, trial_id
from gat_sweep.version import source_commit

ONE = "one"  # the sweep file of one size
# Config values that the sweep file and the options of the command line give.
GIVEN = {"seed", "train.steps", "train.eval_at", *NETWORKS}
REPORTED = ("unit_of_length", "confidence", "budget", "at_budget", "law", "approaches", "apart")  # of the answer
SAME = ("metric", "n", "reference", "protocol")  # how a value was measured


def predict_budget(study: Study, budget: float, home: Place, far: bool = False) -> tuple[dict[str, Any], Place]:
    """Write the prediction of the best run at a budget (GFLOPs) with seeds that the run does not have; return its file.

    Raises UserError if the run gives no answer at the budget, or a trial of the prediction has begun somewhere.
    """
    assert study.run is not None
    configs = {trial.id: trial.config for trial in run_trials(home, study.name)}
    try:
        found = analyse(study.table, budget, far)
    except ValueError as error:
        raise UserError(f"nothing to predict: {error}") from None
    report, row = found.to_json(), found.recommended
    steps, trials = round(row["steps"]), [trial_id(config) for config in new_trials(found, configs)]
    for trial in trials:
        if any(began(run, trial) is not None for run in _runs(home)):
            raise UserError(f"trial {trial} has already started; a prediction must be written before")
    prediction = strict_json(
        {
            "run": study.name,
            "size": row["size"],
            "steps": steps,
            "gflops": budget,
            "seeds": len(trials),
            "trials": trials,
            "predicted": row["predicted"],
            "low": row["low"],
            "high": row["high"],
            **found.found.measured._asdict(),
            **{key: report[key] for key in REPORTED},
            "left_out": report["excluded"],
            "command": command_text(found, configs, home),
            "commit": source_commit(),
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )
    prediction["digest"] = digest(prediction)
    place = study.run / FOLDER / f"{AT_BUDGET}{prediction['digest'][:12]}.json"
    write(place, json.dumps(prediction, indent=1, allow_nan=False).encode())
    return prediction, place


def budget_text(prediction: dict[str, Any]) -> str:
    """A prediction in words."""
    low, high = ("none" if end is None else f"{end:.4g}" for end in (prediction["low"], prediction["high"]))
    return "\n".join(
        [
            verdict(prediction),
            f"{prediction['metric']} of {prediction['size']} after {prediction['steps']:,} steps, mean of "
            f"{prediction['seeds']} seeds: {prediction['predicted']:.4g}, 95 % interval [{low}, {high}]",
            f"to train it: {prediction['command']}",
            f"written {prediction['written']}, sha256 {prediction['digest']}",
        ]
    )


def scored(run: Place, home: Place) -> list[dict[str, Any]]:
    """Compare a run's predictions at budgets with what was trained since; return them in the order of writing.

    intact: whether the digest matches. before: whether it was written before any of its trials began, in any run of
    the home. value: geometric mean over the seeds, None until all are measured at the predicted step in the same way.
    """
    found = []
    for file, prediction, intact in read_predictions(run, at_budget=True):
        values = [_value(prediction, trial, home) for trial in prediction["trials"]]
        complete = [value for value in values if value is not None]
        value = geometric_mean(complete) if intact and len(complete) == len(values) else None
        starts = [began(other, trial) for other in _runs(home) for trial in prediction["trials"]]
        started = [time for time in starts if time is not None]
        found.append(
            {key: prediction[key] for key in (*SHOWN, "steps", "seeds")}
            | {
                "file": file.name,
                "intact": intact,
                "before": written_before(prediction, started),
                "value": value,
                "ratio": value and value / prediction["predicted"],
                "inside": value and within(value, prediction["low"], prediction["high"]),
                "inside_seeds": None,
            }
        )
    return sorted(found, key=lambda row: (row["written"], row["file"]))


def new_trials(found: Allocation, configs: dict[str, TrialConfig]) -> list[TrialConfig]:
    """The trials of the recommended size at the budget, as many as the run has of a size, with new seeds."""
    row = found.recommended
    cell = next(size.cell for size in found.found.sizes if size.cell.label == row["size"])
    like = next(
        config
        for config in configs.values()
        if (config.model.generator, config.model.discriminator) == (cell.generator_size, cell.discriminator_size)
    )
    first, train = 1 + max(config.seed for config in configs.values()), like.train
    longer = train.model_copy(update={"steps": round(row["steps"]), "eval_at": ()})
    return [like.model_copy(update={"seed": first + i, "train": longer}) for i in range(found.runs)]


def command_text(found: Allocation, configs: dict[str, TrialConfig], home: Place) -> str:
    """The command that trains the recommended size for the budget."""
    trials = new_trials(found, configs)
    config = trials[0]
    size = {key: getattr(config.model, key.partition(".")[2]) for key in NETWORKS}
    settings = {**size, "train.steps": str(config.train.steps), **changed_settings(config, GIVEN)}
    seeds = ",".join(str(trial.seed) for trial in trials)
    words = ["gat-sweep", "run", ONE, "--recipe", config.recipe, "--seeds", seeds]
    for key, text in settings.items():
        words += ["--set", f"{key}={text}"]
    return shlex.join([*words, *home_words(home)])


def _runs(home: Place) -> list[Place]:
    return [run for run in children(home) if (run / "run.json").exists()]


def _value(prediction: dict[str, Any], trial: str, home: Place) -> float | None:
    """Return a trial's value at the predicted step, from any run of the home; None if it has none yet."""
    for run in _runs(home):
        table = run / "table" / f"{trial}.parquet"
        for row in read_rows(table) if table.exists() else []:
            alike = all((row[key] or None) == (prediction[key] or None) for key in SAME)
            if alike and row["step"] == prediction["steps"] and row["value"] is not None:
                return float(row["value"])
    return None
