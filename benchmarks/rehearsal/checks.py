"""What must be true of the files, the store and the counts of a rehearsal when it is over.

Each check returns lines, one for each broken promise, and the figures that it counted.
"""

import math
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.rehearsal.trials import (
    NAMES,
    distance,
    evaluated_steps,
    last_step,
    logged_means,
    planted_fault,
)
from gat_sweep.monitor.budget import Meter
from gat_sweep.run.checkpoint import step_checkpoint
from gat_sweep.run.journal import read_records
from gat_sweep.run.saved import Damaged, saved_steps
from gat_sweep.run.table import read_rows
from gat_sweep.run.trial import Trial

Found = tuple[list[str], dict[str, int]]
ENDS = {"fails": "failed", "diverges": "diverged", "": "done"}


def check_rows(trial: Trial) -> Found:
    """Every evaluation once, with the planted value, and the end that was planted."""
    config, fault = trial.config, planted_fault(trial.config)
    rows = read_rows(trial.table) if trial.table.exists() else []
    broken = [] if rows and trial.status() == ENDS[fault] else [f"{trial.id} is {trial.status()}, not {ENDS[fault]}"]
    found = Counter(row["step"] for row in rows if row["value"] is not None)
    expected = [] if fault == "fails" else evaluated_steps(config)
    broken += [f"{trial.id} has no row of step {step}" for step in expected if not found[step]]
    broken += [f"{trial.id} has a row of step {s} too many" for s, n in found.items() if n > 1 or s not in expected]
    wrong = [row["step"] for row in rows if row["value"] is not None and row["value"] != distance(config, row["step"])]
    broken += [f"{trial.id} has another value at step {step}" for step in wrong]
    if fault == "diverges" and rows and rows[-1]["step"] != last_step(config):
        broken.append(f"{trial.id} diverged at step {rows[-1]['step']}, not {last_step(config)}")
    return broken, {"rows": len(found), "lost rows": sum(not found[step] for step in expected)}


def check_journal(trial: Trial) -> Found:
    """Every log point, with the planted mean; steps rise within an attempt, so that only one worker wrote it."""
    if planted_fault(trial.config) == "fails":
        return [], {}
    means = {name: logged_means(trial.config, name) for name in NAMES}
    seen, before, broken, attempts = Counter[int](), -1, list[str](), 0
    for _, record in read_records(trial.folder):
        if record.get("status") == "running":
            before, attempts = record["step"] - 1, attempts + 1
        if NAMES[0] not in record.get("metrics", {}):
            continue
        step = record["step"]
        if step <= before:
            broken.append(f"{trial.id} has a log point of step {step} behind one of step {before} in one attempt")
        before = step
        seen[step] += 1
        for name in NAMES:
            if not math.isclose(record["metrics"][name], means[name].get(step, math.nan), rel_tol=1e-6):
                broken.append(f"{trial.id} has another {name} at step {step}")
    lost = sorted(set(means[NAMES[0]]) - set(seen))
    broken += [f"{trial.id} has no log point of step {step}" for step in lost]
    twice = sum(count - 1 for count in seen.values())
    return broken, {"log points": len(seen), "lost log points": len(lost), "logged again": twice, "attempts": attempts}


def check_store(trials: list[Trial], database: Path) -> Found:
    """Every point of losses and distances once in MLflow, with its value."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30) as store:
        points = store.execute(
            "select tags.value, metrics.key, metrics.step, metrics.value, count(*) from metrics join tags on "
            "tags.run_uuid = metrics.run_uuid and tags.key = 'gat_sweep.trial' group by 1, 2, 3"
        ).fetchall()
    there = {(trial, key, step): (value, count) for trial, key, step, value, count in points}
    twice = {place: count for place, (_, count) in there.items() if count > 1}
    broken = [f"MLflow has {key} of {trial} at step {step} {n} times" for (trial, key, step), n in twice.items()]
    expected: dict[tuple[str, str, int], float] = {}
    for trial in trials:
        if planted_fault(trial.config) == "fails":
            continue
        config = trial.config
        expected |= {(trial.id, n, s): mean for n in NAMES for s, mean in logged_means(config, n).items()}
        expected |= {(trial.id, config.eval.metric, s): distance(config, s) for s in evaluated_steps(config)}
    lost = expected.keys() - there.keys()
    broken += [f"MLflow has no {key} of {trial} at step {step}" for trial, key, step in sorted(lost)]
    for place in expected.keys() & there.keys():
        if not math.isclose(there[place][0], expected[place], rel_tol=1e-6):
            broken.append(f"MLflow has another {place[1]} of {place[0]} at step {place[2]}")
    return broken, {"MLflow points": len(there), "lost in MLflow": len(lost), "twice in MLflow": len(twice)}


def check_checkpoints(trial: Trial) -> Found:
    """Every checkpoint that is left is whole and holds the state of its step; a trial that trained has one."""
    folder, broken = trial.folder / "checkpoints", []
    steps = saved_steps(folder)
    for step in steps:
        try:
            held = int(step_checkpoint(folder, step).part("ema")["steps"])
            broken += [] if held == step else [f"checkpoint {step} of {trial.id} holds step {held}"]
        except Damaged as damage:
            broken.append(f"checkpoint {step} of {trial.id} is damaged: {damage}")
    if not steps and planted_fault(trial.config) != "fails":
        broken.append(f"{trial.id} has no checkpoint")
    return broken, {"checkpoints": len(steps)}


def check_spending(trials: list[Trial], worked: float, held: float, trained: int) -> tuple[list[str], dict[str, Any]]:
    """The caps count between what trials worked and what the cluster gave them, but for what no sign of life shows.

    worked, held: GPU hours from the first step of each attempt to its last, and from the start of each group to its
    end. trained: steps, those of lost attempts included.
    """
    from gat_sweep.compute import step_flops

    hours = steps = 0.0
    for trial in trials:
        spent = Meter(trial).read()
        hours, steps = hours + spent.gpu_hours, steps + spent.flops / step_flops(trial.config)
    figures = {"GPU hours worked": worked, "GPU hours held": held, "GPU hours counted": hours}
    broken = []
    if not 0.9 * worked <= hours <= held:
        broken.append(f"{hours:.4g} GPU hours are counted, between {worked:.4g} worked and {held:.4g} held")
    if not 0.9 * trained <= steps <= trained + 1:
        broken.append(f"{steps:.0f} steps are counted of {trained}")
    return broken, {**figures, "steps trained": trained, "steps counted": round(steps)}
