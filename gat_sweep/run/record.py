"""The record of a run, run.json: which trials it has."""

import json
from typing import Any

from gat_sweep.config import PLACES, TrialConfig
from gat_sweep.errors import UserError
from gat_sweep.files.jsonfile import read_json
from gat_sweep.files.storage import Place, children, write
from gat_sweep.recipe import flatten
from gat_sweep.run.trial import Trial
from gat_sweep.sweep import Sweep
from gat_sweep.text import nearest

LONGEST = 100  # letters of a name; file systems allow 255 bytes, of which Ray's folders take some
REBUILD = "remove it and give the command of the sweep again, which writes it anew; no result is lost"


def check_name(name: str, option: str = "--name") -> None:
    """Raises UserError when a name cannot be the name of a run's folder. option: where it was given."""
    if len(name) > LONGEST:
        raise UserError(f"{option}: {len(name)} letters are too many; use at most {LONGEST}")
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
        raise UserError(f"{option} {name!r}: use letters, digits, '-', '_' and '.' only")


def open_run(home: Place, name: str, sweep: Sweep, extend: bool = False) -> None:
    """Records a run's trials in <home>/<name>/run.json.

    A run may get more trials and, with `extend`, more steps. Nothing else of the record ever changes.
    Raises UserError, which names the difference, when a recorded trial is not in the sweep.
    """
    path = home / name / "run.json"
    record: dict[str, Any] = {"sweep": sweep.name, "recipe": sweep.recipe}
    if path.exists():
        record = read_run(home, name)
        for trial, old in record["trials"].items():
            _check_same(home, name, trial, old, sweep, extend)
    trials = {trial: config.model_dump(mode="json") for trial, config in sweep.trials.items()}
    write(path, json.dumps({**record, "trials": trials}, indent=1).encode())


def read_run(home: Place, name: str) -> dict[str, Any]:
    """The record of a run. Raises UserError when there is none."""
    path = home / name / "run.json"
    try:
        return read_json(path, _checked, REBUILD)
    except FileNotFoundError:
        runs = [folder.name for folder in children(home) if (folder / "run.json").exists()]
        known = nearest(name, runs) if runs else "it holds no runs yet"
        raise UserError(f"no run '{name}' in {home}; {known}") from None


def _checked(value: Any) -> dict[str, Any]:
    """A record whose trials can be read."""
    for config in value["trials"].values():
        TrialConfig.model_validate(config)
    return {**value, "sweep": str(value["sweep"])}


def _check_same(home: Place, name: str, trial: str, old: dict[str, Any], sweep: Sweep, extend: bool) -> None:
    now = sweep.trials.get(trial)
    if now is None:
        difference = _difference(old, sweep)
        raise UserError(
            f"run '{name}' exists in {home} with another config, in trial {trial} {difference}; choose another --name, "
            "or the settings it was made with"
        )
    before, after = old["train"]["steps"], now.train.steps
    if after < before or (after > before and not extend):
        more = "add --extend to train it further" if after > before else "trained steps cannot be removed"
        raise UserError(
            f"run '{name}' exists in {home} with another config, in trial {trial} train.steps: {before} -> {after}; "
            f"{more}, or choose another --name"
        )


def _difference(old: dict[str, Any], sweep: Sweep) -> str:
    """Keys in which a recorded trial differs from the most similar one in the sweep, with both values."""
    places = {f"{section}.{key}" for section, keys in PLACES.items() for key in keys}
    before = {k: v for k, v in flatten(old).items() if not k.startswith("workers.") and k not in places}
    candidates: list[list[str]] = []
    for config in sweep.trials.values():
        now = flatten(config.identity())
        keys = [key for key in sorted({**before, **now}) if before.get(key) != now.get(key)]
        candidates.append([f"{key}: {before.get(key)} -> {now.get(key)}" for key in keys])
    fewest = min(candidates, key=len)
    return ", ".join(fewest) or "that the sweep no longer has"


def run_trials(home: Place, name: str) -> list[Trial]:
    """The trials of a run as they were recorded. Raises UserError when there is no such run."""
    record = read_run(home, name)
    configs = {trial: TrialConfig.model_validate(values) for trial, values in record["trials"].items()}
    return [Trial(trial, name, record["sweep"], config, home) for trial, config in configs.items()]


def chosen_trials(home: Place, name: str, chosen: tuple[str, ...]) -> list[Trial]:
    """Trials of a run by id; default: all. Raises UserError for an unknown id."""
    trials = {trial.id: trial for trial in run_trials(home, name)}
    for trial in chosen:
        if trial not in trials:
            raise UserError(f"run '{name}' has no trial '{trial}'; {nearest(trial, trials)}")
    return [trials[trial] for trial in chosen or trials]


def sweep_trials(sweep: Sweep, home: Place, name: str) -> list[Trial]:
    return [Trial(i, name, sweep.name, config.placed(), home) for i, config in sweep.trials.items()]
