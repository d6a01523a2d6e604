"""From the sqlite store of a laptop to MLflow on PostgreSQL with a bucket: `gat-sweep send`, killed and repeated."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.planted import SIZES_SWEEP
from helpers.postgres import TeamMlflow
from mlflow import MlflowClient
from mlflow.entities import Run

from gat_sweep.errors import UserError
from gat_sweep.files.storage import write
from gat_sweep.monitor.send import send_command
from gat_sweep.monitor.tracking import Tracker
from gat_sweep.monitor.ui import default_uri
from gat_sweep.run.journal import add_record
from gat_sweep.run.record import open_run, run_trials
from gat_sweep.run.table import RunTable
from gat_sweep.run.trial import Trial
from gat_sweep.sweep import load_sweep
from gat_sweep.train.recorder import trial_constants, write_config

RUNS = ("first", "second", "third")
STEPS, EVERY = 400, 100


def finish(trial: Trial, reference: str) -> None:
    """A trial's files as training leaves them, with a resume in the middle."""
    chance = random.Random(trial.run + trial.id)
    write_config(trial)
    add_record(trial.folder, {"step": 0, "status": "running", "gpus": 0})
    for step in [*range(1, 201), *range(190, STEPS + 1)]:
        add_record(trial.folder, {"step": step, "metrics": {"loss_g": chance.random(), "loss_d": chance.random()}})
        if step % EVERY == 0:
            add_record(trial.folder, {"step": step, "metrics": {"fd_x": 1e3 / step, "flops": step * 1e10}})
            write(trial.folder / "samples" / f"step_{step:08d}.png", chance.randbytes(5_000))
    table = RunTable(trial.table, trial_constants(trial.run, trial.sweep, trial.id, trial.config))
    shared = {
        "metric": "fd_x",
        "n": 64,
        "reference": reference,
        "protocol": "{}",
        "flops": STEPS * 1e10,
        "seconds": 1.0,
    }
    table.put(step=trial.config.train.steps, status="done", reason="", value=chance.random(), **shared)
    add_record(trial.folder, {"step": STEPS, "status": "done", "reason": ""})


@pytest.fixture
def laptop(tmp_path: Path) -> list[Trial]:
    """Three runs of four trials each in a home, recorded in its sqlite store as launches do."""
    home = tmp_path / "home"
    (tmp_path / "sizes.yaml").write_text(SIZES_SWEEP)
    sweep = load_sweep(tmp_path / "sizes.yaml", "digits")
    found = []
    for run in RUNS:
        open_run(home, run, sweep)
        trials = run_trials(home, run)
        for trial in trials:
            finish(trial, f"digits:{run}")
        tags = {"gat_sweep.commit": trial_constants("", "", "", trials[0].config)["commit"]}
        tags["gat_sweep.reference"] = f"digits:{run}"
        tracker = Tracker(default_uri(home), home, "sizes", run, tags)
        folders = [trial.folder for trial in trials]
        while tracker.ship(folders)[1] == "" and tracker.cut:
            pass
        assert tracker.finish("done") == ""
        tracker.note(home / run)
        found += trials
    return found


def recorded(uri: str, tmp_path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Everything that a store has of the sweep, by run and trial; of launches, which have no trial, those with runs."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("sizes")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    names = {run.info.run_id: run.info.run_name for run in runs}
    parents = {run.data.tags.get("mlflow.parentRunId") for run in runs}
    found = {}
    for run in runs:
        if not (run.info.run_id in parents or "gat_sweep.trial" in run.data.tags):
            continue
        tags = {key: value for key, value in run.data.tags.items() if key.startswith("gat_sweep.")}
        tags.pop("gat_sweep.launch", None)
        key = (run.info.run_name, "") if "gat_sweep.trial" not in tags else (tags["gat_sweep.run"], run.info.run_name)
        assert key not in found, "there twice"
        parent = run.data.tags.get("mlflow.parentRunId")
        found[key] = {
            "tags": tags,
            "params": run.data.params,
            "status": run.info.status,
            "end": run.info.end_time if parent else None,
            "parent": names[parent] if parent else None,
            "points": points(client, run),
            "samples": samples(client, run, tmp_path) if parent else {},
        }
    return found


def points(client: MlflowClient, run: Run) -> list[tuple[str, int, float, int]]:
    histories = [client.get_metric_history(run.info.run_id, key) for key in run.data.metrics]
    return sorted((p.key, p.step, p.value, p.timestamp) for p in itertools.chain(*histories))


def samples(client: MlflowClient, run: Run, tmp_path: Path) -> dict[str, bytes]:
    folder = tmp_path / run.info.run_id
    folder.mkdir(exist_ok=True)
    there = Path(client.download_artifacts(run.info.run_id, "samples", str(folder)))
    return {file.name: file.read_bytes() for file in there.iterdir()}


def check_moved(laptop: list[Trial], uri: str, tmp_path: Path) -> int:
    """Both stores hold the same; returns the number of points."""
    before = recorded(default_uri(laptop[0].home), tmp_path)
    assert before.keys() == {(run, "") for run in RUNS} | {(trial.run, trial.id) for trial in laptop}
    assert recorded(uri, tmp_path) == before
    trials = [facts for (_, trial), facts in before.items() if trial]
    assert all(len(facts["points"]) == 2 * STEPS + 3 * STEPS // EVERY for facts in trials)
    assert all(len(facts["samples"]) == STEPS // EVERY for facts in trials)
    return sum(len(facts["points"]) for facts in trials)


def test_a_store_is_sent_to_another_and_back(laptop: list[Trial], tmp_path: Path) -> None:
    home, said, uri = laptop[0].home, list[str](), f"sqlite:///{tmp_path / 'other' / 'mlflow.db'}"
    total = 4 * (2 * STEPS + 3 * STEPS // EVERY)
    send_command((), home, uri, said.append)
    assert said == [f"{run}: {total:,} points sent to {uri}" for run in sorted(RUNS)]
    check_moved(laptop, uri, tmp_path)
    for where in (uri, default_uri(home)):  # again, and back: both have everything
        said.clear()
        send_command(RUNS, home, where, said.append)
        assert said == [f"{run}: 0 points sent to {where}" for run in RUNS]
    check_moved(laptop, uri, tmp_path)


LAUNCH = """
import pathlib, sys, time
from gat_sweep.run.lease import lease
with lease(pathlib.Path(sys.argv[1]), print):
    time.sleep(600)
"""


def test_what_send_refuses(sizes: list[Trial], tmp_path: Path, gat: Callable[..., tuple[int, str, str]]) -> None:
    launch = subprocess.Popen([sys.executable, "-c", LAUNCH, str(tmp_path / "sizes")])
    try:
        while not (tmp_path / "sizes" / "launch.json").exists():
            time.sleep(0.05)
        with pytest.raises(UserError, match="is being run by a launch on"):
            send_command(("sizes",), tmp_path, default_uri(tmp_path), print)
    finally:
        launch.kill()
        launch.wait()
    (tmp_path / "sizes" / "launch.json").unlink()
    code, _, error = gat("send", "--home", tmp_path, "--tracking-uri", "postgresql://db/mlflow")
    assert code == 2 and "is a database; start an `mlflow server` before it" in error and len(error.splitlines()) == 1
    code, _, error = gat("send", "--home", tmp_path / "empty")
    assert code == 2 and "holds no runs" in error
    code, _, error = gat("send", "nope", "--home", tmp_path)
    assert code == 2 and "no run 'nope'" in error
    code, _, error = gat("send", "sizes", "--home", tmp_path, "--tracking-uri", "http://127.0.0.1:9")
    assert code == 2 and error.endswith("the same command goes on where it stands\n") and len(error.splitlines()) == 1


@pytest.mark.reliability
@pytest.mark.slow
def test_a_laptops_store_moves_to_postgresql(
    team_mlflow: TeamMlflow, laptop: list[Trial], tmp_path: Path, figures: Callable[..., None]
) -> None:
    """Three runs of a sqlite store sent to a server, killed in the middle, repeated: both stores hold the same."""
    uri, home = team_mlflow.server.uri, laptop[0].home
    count = "select count(*) from metrics m join runs r on r.run_uuid = m.run_uuid join experiments e "
    count += "on e.experiment_id = r.experiment_id where e.name = 'sizes'"
    command = [sys.executable, "-m", "gat_sweep.cli", "send", "--home", str(home), "--tracking-uri", uri]
    sending = subprocess.Popen(command, env=os.environ, start_new_session=True)
    while not (arrived := team_mlflow.postgres.query(count)[0][0]):
        assert sending.poll() is None
        time.sleep(0.02)
    os.killpg(sending.pid, signal.SIGKILL)
    sending.wait()
    said: list[str] = []
    send_command((), home, uri, said.append)
    points = check_moved(laptop, uri, tmp_path)
    assert 0 < arrived < points
    figures(runs=3, trials=len(laptop), kills=1, points=points, lost=0, twice=0)
