"""Predictions that are written before a size runs, and their scores.

    <run>/predictions/<size>-<digest>.json

`predict` fits the law to the complete sizes and writes its prediction for a size that has not started, with a digest
over the whole file. `fit-law` scores the prediction when the size is complete. Neither the time nor the digest in the
file is proof, because both can be changed. For proof, publish the digest; in MLflow the file has the server's own time.
"""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from analysis.law import Law, Laws, fit_curve, fit_laws
from analysis.law_text import interval, law_text
from analysis.noise import Noise
from analysis.points import Point
from analysis.statistics import CONFIDENCE
from analysis.table import Cell, gflops, strict_json
from gat_sweep.compute import step_flops
from gat_sweep.config import TrialConfig
from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place, children, write
from gat_sweep.results.study import Study
from gat_sweep.run.journal import read_records
from gat_sweep.run.record import run_trials
from gat_sweep.version import source_commit

FOLDER = "predictions"
AT_BUDGET = "budget-"  # how the files of results/predict_budget.py begin
LAW = (
    "a",
    "log10_a",
    "b",
    "b_low",
    "b_high",
    "floor",
    "floor_low",
    "floor_high",
    "sizes",
    "chosen",
)  # of the law, in the file


SHOWN = ("size", "gflops", "predicted", "low", "high", "written", "digest")  # of every prediction, beside its score


def predict_command(
    study: Study, size: str, home: Place, floor: float | None = None
) -> list[tuple[dict[str, Any], Place]]:
    """Write a prediction for every cell of a size in the run; return each with its file.

    floor: that of the law, if it is known from elsewhere.
    Raises UserError if the run has no such size, one of its trials has started, or the others give no law.
    """
    assert study.run is not None
    configs = {trial.id: trial.config for trial in run_trials(home, study.name)}
    chosen = {name: config for name, config in configs.items() if size in _sizes(config)}
    if not chosen:
        there = ", ".join(sorted({size for config in configs.values() for size in _sizes(config)}))
        raise UserError(f"run '{study.name}' has no trial of size '{size}'; it has {there}")
    for name in chosen:
        if began(study.run, name) is not None:
            raise UserError(f"trial {name} of size {size} has already started; a prediction must be written before")
    try:
        laws = fit_laws(study.table, floor)
    except ValueError as error:
        raise UserError(f"nothing to predict {size} from: {error}") from None
    cells: dict[Cell, list[str]] = {}
    for name, config in chosen.items():
        cells.setdefault(Cell(*_sizes(config), config.model.patch), []).append(name)
    found = {cell: laws.at(cell.patch) for cell in cells}
    if lacking := [cell.label for cell, law in found.items() if law is None]:
        raise UserError(f"nothing to predict {lacking[0]} from: its patch size has fewer than three complete sizes")
    written = []
    for cell, names in cells.items():
        law = found[cell]
        assert law is not None
        prediction = predict_cell(law, laws, cell, [configs[name] for name in names])
        prediction = {"run": study.name, "trials": names, **prediction, "commit": source_commit()}
        prediction |= {"written": datetime.now(UTC).isoformat(timespec="seconds")}
        prediction["digest"] = digest(prediction)
        label = f"G{cell.generator_size}-D{cell.discriminator_size}-p{cell.patch}"
        place = study.run / FOLDER / f"{label}-{prediction['digest'][:12]}.json"
        write(place, json.dumps(prediction, indent=1, allow_nan=False).encode())
        written.append((prediction, place))
    return written


def predict_cell(law: Law, laws: Laws, cell: Cell, configs: list[TrialConfig]) -> dict[str, Any]:
    """Predict a cell by the law of its patch size: the geometric mean over its seeds at its last step.

    low, high: the law's prediction interval, whose unit is a size: with three sizes it has one degree of freedom.
    seeds_low, seeds_high: the interval if sizes lay exactly on the law and only seeds deviated; None without several
    seeds of a size.
    Raises UserError if the cell's trials differ in length, since each length would be another prediction.
    """
    steps = {config.train.steps for config in configs}
    per_trial = [gflops(step_flops(config) * config.train.steps) for config in configs]
    compute = sum(per_trial) / len(per_trial)
    if len(steps) > 1:
        lengths = ", ".join(map(str, sorted(steps)))
        raise UserError(
            f"trials of {cell.label} have several lengths ({lengths} steps); predict a run with one of them"
        )
    curve = law.curve
    low, high = (float(end[0]) for end in curve.new_size([compute], len(configs)))
    single = [(p.gflops, value) for p in law.points for value in p.values]
    found: dict[str, Any] = {
        "size": cell.label,
        **cell._asdict(),
        "steps": max(steps),
        "gflops": compute,
        "metric": law.measured.metric,
        "n": law.measured.n,
        "reference": law.measured.reference,
        "protocol": law.measured.protocol,
        "predicted": float(curve.predict([compute])[0]),
        "low": low,
        "high": high if high < float("inf") else None,
        "confidence": CONFIDENCE,
        "seeds": len(configs),
        "law": {name: getattr(curve, name) for name in LAW},
        "from": [
            {"size": p.cell.label, "gflops": p.gflops, "trials": list(p.trials), "values": list(p.values)}
            for p in law.points
        ],
        "left_out": [{"trial": e.trial, "reason": e.reason} for e in laws.excluded],
        "seeds_low": None,
        "seeds_high": None,
    }
    if len(single) > len(law.points):
        seeds_only = Noise(curve.noise.mean_log_compute, spread=1.0, effect=0.0)
        fit = fit_curve([c for c, _ in single], [v for _, v in single], law.given_floor, seeds_only)
        ends = fit.new_size([compute], len(configs))
        found |= {"seeds_low": float(ends[0][0]), "seeds_high": float(ends[1][0])}
    return strict_json(found)


def prediction_text(prediction: dict[str, Any]) -> str:
    """A prediction in words."""
    law = prediction["law"]
    lines = [
        f"{prediction['metric']} of {prediction['size']} after {prediction['steps']} steps, mean of "
        f"{prediction['seeds']} seeds: {prediction['predicted']:.4g}, 95 % interval {interval(prediction)}",
        f"from {law['sizes']} sizes, {law_text(prediction['metric'], law)}, b {interval(law, 'b_low', 'b_high')}",
    ]
    if prediction["seeds_low"] is not None:
        ends = interval(prediction, "seeds_low", "seeds_high")
        lines.append(f"{ends} if all sizes lay on the law exactly and only seeds deviated, which is an assumption")
    return "\n".join([*lines, f"written {prediction['written']}, sha256 {prediction['digest']}"])


def digest(prediction: dict[str, Any]) -> str:
    """sha256 of everything in a prediction but the digest itself."""
    values = {key: value for key, value in prediction.items() if key != "digest"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_predictions(run: Place, at_budget: bool) -> Iterator[tuple[Place, dict[str, Any], bool]]:
    """Yield a run's predictions of sizes, or those at budgets: file, prediction, and whether its digest matches.

    Raises UserError for a file that is not a prediction.
    """
    for file in children(run / FOLDER):
        if not file.name.endswith(".json") or file.name.startswith(AT_BUDGET) != at_budget:
            continue
        try:
            prediction = json.loads(file.read_bytes())
            intact = digest(prediction) == prediction["digest"]
            if missing := {*SHOWN, "trials"} - prediction.keys():
                raise KeyError(missing)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{file} is not a prediction; delete it, or copy it again") from None
        yield file, prediction, intact


def written_before(prediction: dict[str, Any], started: list[float]) -> bool:
    """Whether a prediction was written before any of its trials began; started: seconds since 1970."""
    return not started or datetime.fromisoformat(prediction["written"]).timestamp() <= min(started)


def scored(run: Place, laws: Laws) -> list[dict[str, Any]]:
    """Compare a run's predictions with the laws' points; return them in the order of writing.

    intact: whether the digest matches. before: whether it was written before any trial of the size started.
    value, inside, inside_seeds, ratio: None until the size is complete.
    """
    found = []
    for file, prediction, intact in read_predictions(run, at_budget=False):
        point = _point_of(prediction, laws)
        same = point is not None and all(
            prediction[key] == getattr(laws.measured, key) for key in ("metric", "n", "reference", "protocol")
        )
        started = [time for trial in prediction["trials"] if (time := began(run, trial)) is not None]
        value = point.value if point is not None and same and intact else None
        found.append(
            {key: prediction[key] for key in (*SHOWN, "seeds_low", "seeds_high", "law")}
            | {
                "file": file.name,
                "intact": intact,
                "began": datetime.fromtimestamp(min(started), UTC).isoformat(timespec="seconds") if started else None,
                "before": written_before(prediction, started),
                "value": value,
                "ratio": value and value / prediction["predicted"],
                "inside": value and within(value, prediction["low"], prediction["high"]),
                "inside_seeds": value
                and prediction["seeds_low"]
                and within(value, prediction["seeds_low"], prediction["seeds_high"]),
            }
        )
    return sorted(found, key=lambda row: row["written"])


def _point_of(prediction: dict[str, Any], laws: Laws) -> Point | None:
    """Return the point of the predicted trials; None until one is complete."""
    points = [point for law in laws.laws for point in law.points]
    return next((point for point in points if set(point.trials) & set(prediction["trials"])), None)


def within(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or low <= value) and (high is None or value <= high)


def began(run: Place, trial: str) -> float | None:
    """Return the time of a trial's first journal record, seconds since 1970; None without a record."""
    return next((record["time"] for _, record in read_records(run / "trials" / trial)), None)


def _sizes(config: TrialConfig) -> tuple[str, str]:
    return config.model.generator, config.model.discriminator
