"""State of a run for the commands `status`, `stop` and `logs`, on any machine that sees the run's files."""

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from rich.table import Table

from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place, children
from gat_sweep.monitor.budget import Amount, Meter, kept
from gat_sweep.run.alive import BEAT, signs
from gat_sweep.run.crowd import crowd_line
from gat_sweep.run.journal import read_records
from gat_sweep.run.record import run_trials
from gat_sweep.run.saved import saved_step
from gat_sweep.run.stop import stop_reason
from gat_sweep.run.table import read_rows, status_of
from gat_sweep.run.trial import Trial
from gat_sweep.sweep import differences, varied_text

FRESH = 6 * BEAT  # seconds; a worker that was silent for longer is gone or cut off
POLL = 1.0  # seconds between two looks of `logs --follow`


def run_status(home: Place, name: str) -> dict[str, Any]:
    """Everything that `status --json` prints for a run."""
    trials = run_trials(home, name)
    found = [trial_status(trial) for trial in trials]
    budget = kept(home / name)
    spent = sum((Amount(row["flops"], row["gpu_hours"]) for row in found), Amount())
    return {
        "run": name,
        "home": str(home),
        "trials": found,
        "spent": vars(spent),
        "budget": vars(budget),
        "crowd": crowd_line(home / name),
        "stop": next(filter(None, (stop_reason(home / name, trial.id) for trial in trials)), ""),
    }


def trial_status(trial: Trial) -> dict[str, Any]:
    """The state of a trial, from its rows; of an unfinished trial, from its workers and journal.

    "running": a worker gave a sign of life recently; "stopped": saved and ended on request; "paused": saved, and waits
    for a look of a race; "cut off": ended without a record, or its machine does not answer.
    """
    now = time.time()
    rows = read_rows(trial.table) if trial.table.exists() else []
    measured = next((row for row in reversed(rows) if row["value"] is not None), None)
    workers = [signs_of | {"age": round(now - signs_of["time"], 1)} for signs_of in _signs(trial)]
    alive = [worker for worker in workers if not worker["ended"] and worker["age"] < FRESH]
    meter = Meter(trial)
    spent, last = meter.read(), meter.changed
    status, reason = status_of(rows, trial.config.train.steps), rows[-1]["reason"] if rows else ""
    if status in ("waiting", "running"):
        reason = ""
        if alive:
            status = "running"
        elif last is not None and last["status"] == "done":  # and was given more steps since
            status, reason = "waiting", f"was done at step {rows[-1]['step']}; its steps were extended"
        elif last is not None:
            ended = last["status"] in ("stopped", "paused")
            status, reason = (last["status"], last["reason"]) if ended else ("cut off", "no sign of life; run it again")
    return {
        "trial": trial.id,
        "status": status,
        "reason": reason,
        "flags": rows[-1]["flags"] or "" if rows else "",
        "step": max([worker["step"] for worker in workers] + [row["step"] for row in rows], default=0),
        "steps": trial.config.train.steps,
        "saved": saved_step(trial.folder / "checkpoints"),
        "metric": measured["metric"] if measured else None,
        "value": measured["value"] if measured else None,
        "flops": spent.flops,
        "gpu_hours": spent.gpu_hours,
        "workers": workers if alive else [],
    }


def runs_of(home: Place) -> list[dict[str, Any]]:
    """The runs of a home, each with the number of its trials per status in their rows.

    "unfinished": has rows and steps left; whether somebody works on it is a question to run_status.
    """
    found = []
    for folder in children(home):
        if (folder / "run.json").exists():
            found.append({"run": folder.name, **_counts(home, folder.name)})
    return found


def _counts(home: Place, name: str) -> dict[str, Any]:
    """Trials per status, and why that is unknown; a damaged run does not hide the others."""
    try:
        states = (trial.status() for trial in run_trials(home, name))
        return {"trials": dict(Counter("unfinished" if state == "running" else state for state in states))}
    except (UserError, OSError) as error:
        return {"trials": {}, "trouble": str(error)}


def log_records(trials: list[Trial], follow: bool) -> Iterator[dict[str, Any]]:
    """Records of the trials' journals in order of time, each with its trial. follow: wait for more, without end."""
    offsets = dict.fromkeys([trial.id for trial in trials], 0)
    while True:
        news = []
        for trial in trials:
            for end, record in read_records(trial.folder, offsets[trial.id]):
                offsets[trial.id] = end
                news.append({"trial": trial.id, **record})
        yield from sorted(news, key=lambda record: record["time"])
        if not follow:
            return
        time.sleep(POLL)


def _signs(trial: Trial) -> list[dict[str, Any]]:
    return [sign for _, sign in sorted(signs(trial.folder / "alive").items())]


def results_table(trials: list[Trial]) -> Table:
    """Table of the last row of every trial."""
    table = Table(title="results", title_justify="left")
    varied = differences({trial.id: trial.config for trial in trials})
    for name in ["trial", "varies", "status", "step", "G params", "lr G", "lr D", "metric", "value", "N", "minutes"]:
        text = name in ("trial", "varies", "status", "metric")
        table.add_column(name, justify="left" if text else "right", no_wrap=name != "varies")
    for trial in trials:
        rows = read_rows(trial.table) if trial.table.exists() else []
        if not rows:
            table.add_row(trial.id, varied_text(varied[trial.id]), "waiting")
            continue
        last = rows[-1]
        value = "" if last["value"] is None else f"{last['value']:.1f}"
        table.add_row(
            trial.id,
            varied_text(varied[trial.id]),
            # Why a race dropped a trial is long, and `status` has it.
            last["status"] if last["status"] == "raced" else f"{last['status']} {last['reason']}".strip(),
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
