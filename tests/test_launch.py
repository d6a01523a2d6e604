"""A real Ray cluster, a real MLflow store, real digits: a sweep from the command line to a fitted law."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from gat_sweep.sweep import load_sweep
from gat_sweep.tracking import default_uri
from gat_sweep.yamlfile import parse_scalar

pytestmark = pytest.mark.ray

TINY = ["train.steps=4", "train.batch=8", "train.eval_every=2", "train.log_every=1"]
TINY += ["eval.samples=64", "eval.resize=32"]


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "gat_sweep.cli", *args]


def settings(values: list[str]) -> list[str]:
    return [f"--set={value}" for value in values]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, home_with_reference: Path) -> Path:
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(home_with_reference / "cache", home / "cache")
    return home


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sizes, a learning rate that cannot survive, and a trial whose checkpoint will be broken."""
    path = tmp_path_factory.mktemp("sweeps") / "three.yaml"
    path.write_text(
        "about: two sizes, one that blows up, one broken\n"
        "points:\n"
        "  - {model.generator: S, model.discriminator: S}\n"
        "  - {model.generator: B, model.discriminator: B}\n"
        "  - {model.generator: S, model.discriminator: B, train.base_lr: 1.0e+30}\n"
        "  - {model.generator: S, model.discriminator: S, model.patch: 4}\n"
    )
    return path


def run(home: Path, sweep: Path, cwd: Path, *more: str) -> subprocess.CompletedProcess[str]:
    arguments = ["run", str(sweep), "--recipe", "digits", "--home", str(home), *settings(TINY), *more]
    return subprocess.run(command(*arguments), cwd=cwd, env=marked(cwd), capture_output=True, text=True, timeout=280)


def marked(mark: Path) -> dict[str, str]:
    """An environment that every process started from a command inherits, Ray's daemons included."""
    return {**os.environ, "GAT_SWEEP_TEST": str(mark)}


def left_behind(mark: Path) -> list[str]:
    """Processes with the mark that still run, after a moment to end in."""
    deadline = time.monotonic() + 20
    while True:
        found = []
        for process in psutil.process_iter(["name"]):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get("GAT_SWEEP_TEST") == str(mark):
                    found.append(process.info["name"])
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def test_a_sweep_from_the_command_line_to_a_law(home: Path, sweep: Path, tmp_path: Path) -> None:
    overrides = {key: parse_scalar(value) for key, value in (setting.split("=") for setting in TINY)}
    broken = list(load_sweep(sweep, "digits", overrides=overrides).trials)[-1]
    checkpoint = home / "three-digits" / "trials" / broken / "checkpoints" / "step_00000002.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"half a file")

    # Two trials finish, one diverges, one fails: each says so, none stops the others.
    first = run(home, sweep, tmp_path)
    assert first.returncode == 1, first.stdout + first.stderr
    assert first.stderr == "" and "real data" in first.stdout and "Traceback" not in first.stdout
    assert "(pid=" not in first.stdout and "completed. Last result" not in first.stdout  # no log spam
    assert left_behind(tmp_path) == []
    files = (home / "three-digits" / "table").glob("*.parquet")
    last = {file.stem: pq.read_table(file).to_pylist()[-1] for file in files}
    ended = {
        (r["generator_size"], r["discriminator_size"], r["patch"]): (r["status"], r["step"]) for r in last.values()
    }
    done = {(size, size, 2): ("done", 4) for size in "SB"}
    assert ended == {**done, ("S", "B", 2): ("diverged", 0), ("S", "S", 4): ("failed", 0)}
    (diverged,) = [row for row in last.values() if row["status"] == "diverged"]
    assert "gradient norm" in diverged["reason"] and diverged["value"] is None
    assert "cannot be read" in last[broken]["reason"] and "cannot be read" in first.stdout

    # MLflow: experiment = sweep, parent = launch, children = trials
    client = MlflowClient(default_uri(home))
    experiment = client.get_experiment_by_name("three")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    status = {r.data.tags["gat_sweep.trial"]: r.info.status for r in children}
    assert status == {t: "FINISHED" if row["status"] == "done" else "FAILED" for t, row in last.items()}
    assert parent.info.status == "FAILED"
    done = next(r for r in children if r.data.params["model.generator"] == "B")
    assert done.info.status == "FINISHED" and done.data.params["train.steps"] == "4"
    assert [m.step for m in client.get_metric_history(done.info.run_id, "loss_d")] == [1, 2, 3, 4]
    assert [m.step for m in client.get_metric_history(done.info.run_id, "fd_efficientnet_lite0")] == [2, 4]
    grids = [f.path for f in client.list_artifacts(done.info.run_id, "samples")]
    assert grids == ["samples/step_00000002.png", "samples/step_00000004.png"]

    # The same command again, once the cause is gone: only the failed trial runs.
    checkpoint.unlink()
    table = {f.name: f.read_bytes() for f in (home / "three-digits" / "table").iterdir() if f.stem != broken}
    second = run(home, sweep, tmp_path)
    assert second.returncode == 0 and "3 of 4 trials are finished already" in second.stdout, second.stdout
    assert table.items() <= {f.name: f.read_bytes() for f in (home / "three-digits" / "table").iterdir()}.items()
    assert pq.read_table(home / "three-digits" / "table" / f"{broken}.parquet").to_pylist()[-1]["status"] == "done"

    # With another config: refused, in one line.
    third = run(home, sweep, tmp_path, "--set=train.clip=2.0")
    assert third.returncode == 2 and "train.clip: 1.0 -> 2.0" in third.stderr and len(third.stderr.splitlines()) == 1

    fit = subprocess.run(
        command("fit-law", "three-digits", "--home", str(home), "--json"), cwd=tmp_path, capture_output=True, text=True
    )
    law = json.loads(fit.stdout)
    assert fit.returncode == 0 and law["n"] == 3 and [e["status"] for e in law["excluded"]] == ["diverged"]
    newest = json.loads((home / "three-digits" / "mlflow.json").read_text())["run_id"]  # every launch has its own run
    laws = [f.path for f in client.list_artifacts(newest, "law")]
    assert newest != parent.info.run_id and laws == ["law/law.json", "law/law.png", "law/law.svg"]


def test_two_workers_and_ctrl_c(home: Path, sweep: Path, tmp_path: Path) -> None:
    """Interrupted with both workers at work: exit 130, no process left; the same command then finishes."""
    one = tmp_path / "one.yaml"
    one.write_text("about: one trial on two workers\nset: {workers.count: 2}\n")
    values = settings([*TINY[1:], "train.steps=100000", "train.eval_every=5"])
    arguments = command("run", str(one), "--recipe", "digits", "--home", str(home), *values)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(arguments, cwd=tmp_path, env=marked(tmp_path), start_new_session=True, **pipes)
    folder = home / "one-digits" / "trials"
    deadline = time.monotonic() + 240
    while not list(folder.glob("*/checkpoints/step_*.pt")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert f"results so far are in {home / 'one-digits'}" in out and "Traceback" not in err
    assert left_behind(tmp_path) == []
    (table,) = (home / "one-digits" / "table").iterdir()
    assert pq.read_table(table).num_rows >= 1
