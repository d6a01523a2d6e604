"""What the commands `plan`, `run`, `train` and `bench` do, from arguments to the last line printed."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from gat_sweep.cluster import local_resources
from gat_sweep.data.dataset import check_dataset
from gat_sweep.errors import UserError
from gat_sweep.files.credentials import check_no_credentials
from gat_sweep.files.storage import Place, write
from gat_sweep.launch.probe import check_writable
from gat_sweep.metrics.evaluator import check_evaluation
from gat_sweep.metrics.reference import Reference, load_reference, reference_name
from gat_sweep.monitor.budget import Budget, Meter, admitted, check_caps, enforce, kept
from gat_sweep.monitor.progress import Monitor
from gat_sweep.monitor.status import results_table
from gat_sweep.monitor.ui import default_uri
from gat_sweep.run.record import open_run, sweep_trials
from gat_sweep.run.stop import EXIT_STOPPED, clear_stop, stop_reason
from gat_sweep.run.table import FINISHED
from gat_sweep.run.trial import Trial
from gat_sweep.sweep import Sweep
from gat_sweep.text import nearest
from gat_sweep.version import source_commit


@dataclass(frozen=True)
class Launch:
    """What the command line says about how a sweep is run."""

    address: str | None = None  # of a running Ray cluster
    tracking_uri: str | None = None
    retry_failed: bool = False
    extend: bool = False
    budget: Budget = field(default_factory=Budget)
    hold: tuple[str, ...] = ()  # sizes that are not begun


def run_command(sweep: Sweep, home: Place, name: str, how: Launch, console: Console) -> int:
    """Runs what is not finished of a sweep; the exit code: 0 when every trial is done or diverged.

    Raises UserError before anything is written when the sweep cannot run.
    """
    from gat_sweep.launch import driver as launch
    from gat_sweep.monitor import tracking

    trials = sweep_trials(sweep, home, name)
    for size in how.hold:
        if not any(size in _sizes(trial) for trial in trials):
            there = sorted({size for trial in trials for size in _sizes(trial)})
            raise UserError(f"--hold {size}: the sweep has no such size; {nearest(size, there)}")
    for trial in trials:
        check_dataset(trial.config)
        check_evaluation(trial.config)
    if how.address is None:
        launch.check_feasible(sweep.trials, local_resources())
    check_caps(trials, how.budget)
    uri = how.tracking_uri or default_uri(home)
    check_no_credentials(uri, "--tracking-uri")
    check_writable(home)
    open_run(home, name, sweep, how.extend)
    run = home / name
    clear_stop(run)
    todo = _to_do(trials, how.retry_failed, console)
    held = [trial for trial in todo if not _sizes(trial).isdisjoint(how.hold)]
    if held:
        console.print(f"{len(held)} of {len(trials)} trials are held back: {', '.join(how.hold)}", highlight=False)
        todo = [trial for trial in todo if trial not in held]
    meters = [Meter(trial) for trial in trials]
    budget = kept(run, how.budget)
    todo, refused = admitted(todo, meters, budget) if todo else ([], {})
    for refusal, text in refused.items():
        console.print(f"{refusal} is not begun: it {text}", soft_wrap=True, highlight=False, markup=False)
    # Of trials that ended while MLflow was away.
    late = tracking.behind(trial.folder for trial in trials if trial not in todo)
    stopped = False
    if todo or late:
        for trial in launch.one_per_reference(todo):
            if launch.measures_here(trial.config, how.address):
                show_floor(load_reference(trial.config, home, say=console.print), console)
        tracking.create_store(uri, home)
        tags = {"gat_sweep.commit": source_commit(), "gat_sweep.reference": reference_name(trials[0].config)}
        tracker = tracking.Tracker(uri, home, sweep.name, name, tags)
        status = "stopped"

        def ship_and_count(folders: list[Path]) -> str:
            enforce(run, meters, budget)
            return tracker.ship([*folders, *late])[1]

        try:
            with Monitor(todo, console, ship_and_count):
                if todo:
                    launch.run_sweep(todo, how.address)
            status = "done" if all(trial.status() == "done" for trial in trials) else "failed"
            stopped = any(stop_reason(run, trial.id) and trial.status() not in FINISHED for trial in todo)
        except KeyboardInterrupt:
            console.print(f"\nstopped; results so far are in {run}. The same command continues.", soft_wrap=True)
            raise
        finally:
            tracker.finish("stopped" if stopped else status)
            write(run / "mlflow.json", json.dumps({"uri": uri, "run_id": tracker.parent_id}).encode())
    console.print(results_table(trials))
    console.print(f"results  {run / 'table'}", soft_wrap=True, highlight=False)
    console.print(f"samples  {run / 'trials'}/<trial>/samples", soft_wrap=True, highlight=False)
    ui = "gat-sweep ui" + ("" if home == Path("runs").absolute() else f" --home {home}")
    console.print(f"MLflow   {how.tracking_uri or ui}", soft_wrap=True, highlight=False)
    if stopped:
        reason = next(filter(None, (stop_reason(run, trial.id) for trial in todo)))
        console.print(f"stopped, with everything saved: {reason}. The same command continues.", soft_wrap=True)
        return EXIT_STOPPED
    return int(any(trial.status() not in FINISHED for trial in trials if trial not in held))


def _to_do(trials: list[Trial], retry_failed: bool, console: Console) -> list[Trial]:
    """Trials that have anything left to do, and a line on the others."""
    status = {trial.id: trial.status() for trial in trials}
    finished = sum(found in FINISHED for found in status.values())
    failed = sum(found == "failed" for found in status.values())
    if finished:
        console.print(f"{finished} of {len(trials)} trials are finished already")
    if failed and not retry_failed:
        console.print(f"{failed} of {len(trials)} trials failed before; --retry failed runs them again")
    left = {"waiting", "running"} | ({"failed"} if retry_failed else set())
    return [trial for trial in trials if status[trial.id] in left]


def _sizes(trial: Trial) -> set[str]:
    return {trial.config.model.generator, trial.config.model.discriminator}


def show_floor(reference: Reference, console: Console) -> None:
    """What a distance of zero looks like here."""
    if reference.halves is not None:
        text = f"{reference.metric}: two random halves of the real data are {reference.halves:.1f} apart"
        console.print(text, highlight=False)
