"""`gat-sweep send`: recorded runs to an MLflow, from their files: what it lacks of them, and nothing twice."""

from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place, children
from gat_sweep.monitor.tracking import Tracker, create_store
from gat_sweep.run.lease import lease
from gat_sweep.run.record import run_trials
from gat_sweep.run.table import read_rows
from gat_sweep.run.trial import Trial
from gat_sweep.text import Say

COLUMNS = ("commit", "reference")  # of a trial's rows, which a launch gives MLflow as tags


def send_command(names: tuple[str, ...], home: Place, uri: str, say: Say) -> None:
    """Sends runs of a home, by default all; says how many points each took.

    Raises UserError when a run is missing, a launch of it lives, or MLflow does not take everything.
    """
    names = names or tuple(folder.name for folder in children(home) if (folder / "run.json").exists())
    if not names:
        raise UserError(f"{home} holds no runs; give another --home")
    found = {name: run_trials(home, name) for name in names}
    create_store(uri, home)
    for name, trials in found.items():
        with lease(home / name, say):  # a launch would write the same notes of what was sent
            points = _send(home, trials, uri)
        say(f"{name}: {points:,} points sent to {uri}")


def _send(home: Place, trials: list[Trial], uri: str) -> int:
    """Sends one run, and records where MLflow has it; returns the number of points."""
    run, tags = trials[0].run_folder, {trial.id: _tags(trial) for trial in trials}
    common = dict(set.intersection(*(set(each.items()) for each in tags.values())))
    tracker = Tracker(uri, home, trials[0].sweep, run.name, common, tags, launch=f"sent:{run.name}")
    points, warning = 0, ""
    while not warning:
        sent, warning = tracker.ship([trial.folder for trial in trials])
        points += sent
        if not tracker.cut:
            break
    done = all(trial.status() in ("done", "raced") for trial in trials)
    if warning := warning or tracker.finish("done" if done else "failed"):
        raise UserError(f"{warning}; the same command goes on where it stands")
    tracker.note(run)
    return points


def _tags(trial: Trial) -> dict[str, str]:
    last = read_rows(trial.table)[-1] if trial.table.exists() else {}
    return {f"gat_sweep.{column}": last[column] for column in COLUMNS if last.get(column)}
