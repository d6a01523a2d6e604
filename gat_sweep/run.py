"""What the commands `plan`, `run`, `train` and `bench` do, from arguments to the last line printed."""

import json
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from gat_sweep.budget import Budget, Meter, admitted, check_caps, enforce, kept
from gat_sweep.cluster import local_resources
from gat_sweep.config import TrialConfig
from gat_sweep.data.dataset import check_dataset
from gat_sweep.device import chosen_device
from gat_sweep.errors import UserError
from gat_sweep.files.credentials import check_no_credentials
from gat_sweep.files.storage import Place, write
from gat_sweep.metrics.evaluator import check_evaluation
from gat_sweep.metrics.reference import Reference, load_reference, reference_name
from gat_sweep.plan import Rate, rate_at, trial_plan
from gat_sweep.probe import check_writable
from gat_sweep.progress import Monitor
from gat_sweep.run_table import FINISHED, read_rows
from gat_sweep.steer import EXIT_STOPPED, clear_stop, stop_reason
from gat_sweep.sweep import Sweep, differences, open_run, said, trial_id
from gat_sweep.text import human, nearest, short
from gat_sweep.train import train
from gat_sweep.trial import Trial
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
    from gat_sweep import launch, tracking

    trials = _trials(sweep, home, name)
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
    uri = how.tracking_uri or tracking.default_uri(home)
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


def train_command(config: TrialConfig, home: Place, name: str, device: str | None, console: Console) -> int:
    """Trains one trial in this process; the exit code: 0 when it is done.

    SIGTERM saves and ends with EXIT_STOPPED.
    """
    sweep = Sweep("train", "one trial", config.recipe, {trial_id(config): config})
    (trial,) = _trials(sweep, home, name)
    check_dataset(config)
    check_evaluation(config)
    chosen = chosen_device(device)
    open_run(home, name, sweep, extend=True)
    clear_stop(home / name)
    told: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: told.append("SIGTERM"))
    status = trial.status()
    try:
        if status not in FINISHED:
            with Monitor([trial], console, lambda folders: ""):
                status = train(trial, chosen, lambda: told[0] if told else "").status
    except KeyboardInterrupt:
        console.print(f"\nstopped; results so far are in {home / name}. The same command continues.", soft_wrap=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    console.print(results_table([trial]))
    console.print(f"results  {home / name}", soft_wrap=True, highlight=False)
    return {"done": 0, "stopped": EXIT_STOPPED}.get(status, 1)


def plan_command(
    sweep: Sweep,
    calibrated: bool,
    peak: tuple[float, float] | None,
    price: float | None,
    device: str | None,
    console: Console,
) -> dict[str, Any]:
    """What `plan --json` prints. peak: MFU and FLOP/s of a worker. Raises UserError as the calibration does."""
    from benchmarks.calibration import calibrate

    configs = list(sweep.trials.values())
    rates: list[Rate | None] = [None] * len(configs)
    if calibrated:
        chosen = chosen_device(device)
        rates = list[Rate | None](calibrate(configs, chosen, lambda text: console.print(text, highlight=False)))
    elif peak:
        rates = [rate_at(config, *peak) for config in configs]
    varied = differences(sweep.trials)
    trials = {
        trial: {"varies": varied[trial], **trial_plan(config, rate, price)}
        for (trial, config), rate in zip(sweep.trials.items(), rates, strict=True)
    }
    sums = ["total_flops", "worker_hours", "cost"]
    totals = {key: sum(row[key] for row in trials.values()) for key in sums if key in next(iter(trials.values()))}
    return {"sweep": sweep.name, "about": sweep.about, "recipe": sweep.recipe, **totals, "trials": trials}


def plan_table(plan: dict[str, Any]) -> Table:
    """For people."""
    table = Table(title=f"{plan['sweep']} on {plan['recipe']}: {plan['about']}", title_justify="left")
    names = [
        "trial",
        "varies",
        "G params",
        "D params",
        "G fwd FLOP",
        "D fwd FLOP",
        "lr G",
        "lr D",
        "steps",
        "FLOP",
        "GiB a worker",
    ]
    names += [name for name in ("hours", "cost") if name in next(iter(plan["trials"].values()))]
    for name in names:
        text = name in ("trial", "varies")
        table.add_column(name, justify="left" if text else "right", no_wrap=not text)
    for trial, row in plan["trials"].items():
        numbers = [row[k] for k in ("g_params", "d_params", "g_forward_flops", "d_forward_flops")]
        rates = [f"{row[k]:.3g}" for k in ("lr_g", "lr_d")]
        memory = " to ".join(f"{row[name] / 2**30:.3g}" for name in ("memory_bytes_least", "memory_bytes"))
        hours = [short(row[name]) for name in ("hours", "cost") if name in row]
        steps = [str(row["steps"]), human(row["total_flops"])]
        table.add_row(trial, said(row["varies"]), *map(human, numbers), *rates, *steps, memory, *hours)
    totals = [f"{len(plan['trials'])} trials, {human(plan['total_flops'])}FLOP of training in all (2 per multiply-add)"]
    totals += [f"{short(plan['worker_hours'])} worker hours"] if "worker_hours" in plan else []
    totals += [f"cost {short(plan['cost'])}"] if "cost" in plan else []
    totals += ["GiB with everything recomputed, and with nothing"]
    table.caption = "; ".join(totals)
    return table


def bench_command(
    configs: list[TrialConfig], device: str | None, threads: int | None, iterations: int, console: Console
) -> list[dict[str, Any]]:
    """Times the engine beside the straightforward step for each config; progress goes to the console.

    Raises UserError when there is no such device, a config does not fit it, or the two steps disagree.
    """
    from benchmarks.step import compare

    if sys.platform != "linux":
        raise UserError("bench reads peak memory from /proc; run it on Linux")
    chosen = chosen_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    results = []
    for config in configs:

        def say(text: str, size: str = config.model.generator) -> None:
            console.print(f"{size}: {text}", highlight=False)

        try:
            results.append(compare(config, chosen, iterations, say))
        except ValueError as error:
            raise UserError(str(error)) from None
    return results


def results_table(trials: list[Trial]) -> Table:
    """The last evaluation of every trial."""
    table = Table(title="results", title_justify="left")
    varied = differences({trial.id: trial.config for trial in trials})
    for name in ["trial", "varies", "status", "step", "G params", "lr G", "lr D", "metric", "value", "N", "minutes"]:
        text = name in ("trial", "varies", "status", "metric")
        table.add_column(name, justify="left" if text else "right", no_wrap=name != "varies")
    for trial in trials:
        rows = read_rows(trial.table) if trial.table.exists() else []
        if not rows:
            table.add_row(trial.id, said(varied[trial.id]), "waiting")
            continue
        last = rows[-1]
        value = "" if last["value"] is None else f"{last['value']:.1f}"
        table.add_row(
            trial.id,
            said(varied[trial.id]),
            f"{last['status']} {last['reason']}".strip(),
            f"{last['step']}/{last['steps']}",
            f"{last['params_g']:,}",
            f"{last['lr_g']:.3g}",
            f"{last['lr_d']:.3g}",
            last["metric"],
            value,
            f"{last['n'] or ''}",
            f"{(last['seconds'] or 0) / 60:.1f}",
        )
    return table


def _trials(sweep: Sweep, home: Place, name: str) -> list[Trial]:
    return [Trial(i, name, sweep.name, config.placed(), home) for i, config in sweep.trials.items()]
