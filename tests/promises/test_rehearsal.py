"""A sweep under all faults on a simulated cluster (benchmarks/rehearsal), and the checks of it under planted damage."""

import json
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.trials import ROOT, save_checkpoint

from benchmarks.rehearsal import checks
from benchmarks.rehearsal.stand_ins import World, work
from benchmarks.rehearsal.trials import NAMES, distance, evaluated_steps, logged_means, rehearsed_sweep
from gat_sweep.run.journal import add_record
from gat_sweep.run.record import sweep_trials
from gat_sweep.run.table import RunTable
from gat_sweep.run.trial import Trial
from gat_sweep.train.recorder import trial_constants

pytestmark = pytest.mark.reliability


@pytest.mark.slow
def test_a_sweep_under_all_faults(tmp_path: Path, figures: Callable[..., None]) -> None:
    """Half a virtual day with a new launch each hour, notices, dead nodes, a full disk, storage and MLflow away, and a
    hang: no row, log point or MLflow point lost, none twice, no checkpoint damaged, no place idle, memory flat."""
    command = [sys.executable, "-m", "benchmarks.rehearsal", "--days", "0.5", "--trials", "16", "--nodes", "16"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [*command, "--work", str(tmp_path / "home"), "--out", str(tmp_path / "figures.json")],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["launches killed"] >= 6 and found["notices"] >= 1
    assert (found["full"], found["away"], found["server down"], found["hung workers named"]) == (1, 1, 1, 1)
    assert (found["lost rows"], found["lost log points"], found["lost in MLflow"], found["twice in MLflow"]) == (0,) * 4
    names = ("trials", "launches killed", "notices", "nodes that died", "rows", "log points", "MLflow points")
    figures(**{name.replace(" ", "_"): found[name] for name in names}, lost=0, twice=0)


# ---------------------------------------------------------------- the checks find what is wrong


def healthy(folder: Path) -> Trial:
    """A trial of a rehearsal without a planted fault, before it begins."""
    trials = sweep_trials(rehearsed_sweep(folder, 8, 8, 0.3, 1000), folder, "rehearsal")
    return next(t for t in trials if (t.config.model.generator, t.config.seed) == ("S", 1))


def train_alone(folder: Path) -> None:
    """A worker group of its own, with a clock that runs by itself."""
    trial = healthy(folder)
    world = World(1000, [trial.id], 1, folder)

    def run_clock() -> None:
        while True:
            time.sleep(0.001)
            world.move(100)

    threading.Thread(target=run_clock, daemon=True).start()
    work(world, [trial], [0], multiprocessing.Pipe()[1])


def test_the_stand_ins_fit_the_loop_of_training(tmp_path: Path) -> None:
    """A trial trains to its end with the product's own loop, and leaves what the checks expect."""
    process = multiprocessing.get_context("spawn").Process(target=train_alone, args=(tmp_path,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    trial = healthy(tmp_path)
    for check in (checks.check_rows, checks.check_journal, checks.check_checkpoints):
        assert check(trial)[0] == []


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    """A healthy trial of a rehearsal as it ends: rows, journal, checkpoint."""
    trial = healthy(tmp_path)
    write_rows(trial, evaluated_steps(trial.config))
    write_journal(trial, sorted(logged_means(trial.config, NAMES[0])))
    write_checkpoint(trial, trial.config.train.steps)
    return trial


def write_rows(trial: Trial, steps: list[int], wrong: int = 0) -> None:
    trial.table.unlink(missing_ok=True)
    table = RunTable(trial.table, trial_constants(trial.run, trial.sweep, trial.id, trial.config))
    for step in steps:
        status = "done" if step == trial.config.train.steps else "running"
        table.put(step, status=status, reason="", value=distance(trial.config, step) + (step == wrong))


def write_journal(trial: Trial, steps: list[int], wrong: int = 0) -> None:
    (trial.folder / "journal.jsonl").unlink(missing_ok=True)
    means = {name: logged_means(trial.config, name) for name in NAMES}
    add_record(trial.folder, {"step": 0, "status": "running", "gpus": 8})
    for step in steps:
        add_record(trial.folder, {"step": step, "metrics": {n: means[n][step] + (step == wrong) for n in NAMES}})


def write_checkpoint(trial: Trial, step: int, holds: int | None = None) -> None:
    module = torch.nn.Module()
    module.register_buffer("steps", torch.tensor([step if holds is None else holds]))
    save_checkpoint(trial.folder / "checkpoints", step, {"ema": module}, {})


def test_rows_that_are_lost_wrong_or_too_many_are_found(trial: Trial) -> None:
    steps = evaluated_steps(trial.config)
    assert checks.check_rows(trial) == ([], {"rows": len(steps), "lost rows": 0})
    write_rows(trial, steps[1:])
    assert checks.check_rows(trial)[0] == [f"{trial.id} has no row of step {steps[0]}"]
    write_rows(trial, steps, wrong=steps[1])
    assert checks.check_rows(trial)[0] == [f"{trial.id} has another value at step {steps[1]}"]
    write_rows(trial, [steps[0] - 1, *steps])
    assert checks.check_rows(trial)[0] == [f"{trial.id} has a row of step {steps[0] - 1} too many"]
    write_rows(trial, steps[:-1])
    assert f"{trial.id} is running, not done" in checks.check_rows(trial)[0]


def test_log_points_that_are_lost_wrong_or_of_two_workers_are_found(trial: Trial) -> None:
    steps = sorted(logged_means(trial.config, NAMES[0]))
    assert checks.check_journal(trial)[0] == []
    write_journal(trial, [step for step in steps if step != steps[3]])
    assert checks.check_journal(trial)[0] == [f"{trial.id} has no log point of step {steps[3]}"]
    write_journal(trial, steps, wrong=steps[2])
    assert checks.check_journal(trial)[0] == [f"{trial.id} has another {name} at step {steps[2]}" for name in NAMES]
    write_journal(trial, [*steps[:4], steps[2], *steps[4:]])  # a second worker's line
    assert [line for line in checks.check_journal(trial)[0] if "in one attempt" in line]
    write_journal(trial, steps[:4])
    add_record(trial.folder, {"step": steps[1], "status": "running", "gpus": 8})  # a resume: trained again, and allowed
    for step in steps[2:]:
        means = {name: logged_means(trial.config, name)[step] for name in NAMES}
        add_record(trial.folder, {"step": step, "metrics": means})
    assert checks.check_journal(trial)[0] == [] and checks.check_journal(trial)[1]["logged again"] == 2


def test_checkpoints_that_are_damaged_or_hold_another_state_are_found(trial: Trial) -> None:
    assert checks.check_checkpoints(trial) == ([], {"checkpoints": 1})
    write_checkpoint(trial, trial.config.train.steps, holds=3)
    assert checks.check_checkpoints(trial)[0][0].endswith("holds step 3")
    file = trial.folder / "checkpoints" / f"step_{trial.config.train.steps:08d}" / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "is damaged" in checks.check_checkpoints(trial)[0][0]


def test_points_that_mlflow_lacks_or_has_twice_are_found(trial: Trial, tmp_path: Path) -> None:
    config, database = trial.config, tmp_path / "store.db"
    points = [(n, mean, s) for n in NAMES for s, mean in logged_means(config, n).items()]
    points += [(config.eval.metric, distance(config, s), s) for s in evaluated_steps(config)]
    with sqlite3.connect(database) as store:
        store.execute("create table tags (run_uuid, key, value)")
        store.execute("create table metrics (run_uuid, key, value, step)")
        store.execute("insert into tags values ('r', 'gat_sweep.trial', ?)", (trial.id,))
        store.executemany("insert into metrics values ('r', ?, ?, ?)", points)
    assert checks.check_store([trial], database)[0] == []
    with sqlite3.connect(database) as store:
        store.execute("insert into metrics values ('r', ?, ?, ?)", points[0])
        store.execute("delete from metrics where key = ? and step = ?", (points[-1][0], points[-1][2]))
    first, last = points[0], points[-1]
    assert checks.check_store([trial], database)[0] == [
        f"MLflow has {first[0]} of {trial.id} at step {first[2]} 2 times",
        f"MLflow has no {last[0]} of {trial.id} at step {last[2]}",
    ]


def test_spending_that_does_not_fit_is_found(trial: Trial) -> None:
    steps = trial.config.train.steps
    hours = checks.check_spending([trial], 0.0, 1.0, steps)[1]["GPU hours counted"]
    assert checks.check_spending([trial], hours, 1.1 * hours, steps)[0] == []
    assert checks.check_spending([trial], 1.2 * hours, 1.3 * hours, steps)[0]  # the caps would miss a sixth
    assert checks.check_spending([trial], hours, 0.9 * hours, steps)[0]  # more than there was
    assert checks.check_spending([replace(trial)], hours, 1.1 * hours, 2 * steps)[0]
