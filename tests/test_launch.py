"""Packs; then a real Ray cluster, a real MLflow store, real digits: a sweep from the command line to a fitted law."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from conftest import tiny_config, tiny_trial
from mlflow import MlflowClient
from test_cli import call
from test_train import assert_same_state

from gat_sweep.launch import SHARE_BELOW, STEP_FLOPS, local_resources, packs, train_pack
from gat_sweep.sweep import load_sweep
from gat_sweep.tracking import default_uri
from gat_sweep.train import Trial, record_failure, train
from gat_sweep.yamlfile import parse_scalar

TINY = ["train.steps=4", "train.batch=8", "train.eval_every=2", "train.log_every=1"]
TINY += ["eval.samples=64", "eval.resize=32"]
HALF = f"workers.cpus={max(1, local_resources().cpus // 2):g}"  # two packs at once on any machine
LADDER = ["S", "B", "L", "XL"]


# ---------------------------------------------------------------- packs, without Ray


def planted(name: str, steps: int, **overrides: Any) -> Trial:
    """A trial that costs as many steps."""
    return Trial(name, "run", "sweep", tiny_config(train__steps=steps, **overrides), Path("/nowhere"))


def names(trials: list[Trial], slots: int) -> list[list[str]]:
    return [[trial.id for trial in pack] for pack in packs(trials, slots)]


def test_small_trials_share_a_worker_per_slot() -> None:
    """Balanced by cost, each pack in the order of the sweep, the costliest pack first."""
    trials = [planted(*trial) for trial in [("a", 20), ("b", 90), ("c", 30), ("d", 70), ("e", 40)]]
    assert names(trials, 2) == [["a", "d", "e"], ["b", "c"]]
    assert names(trials, 1) == [["a", "b", "c", "d", "e"]]
    assert names(trials, 9) == [["b"], ["d"], ["e"], ["c"], ["a"]]
    sizes = [planted(size, 20, model__generator=size, model__discriminator=size, train__batch=64) for size in LADDER]
    assert names(sizes, 2) == [["S", "XL"], ["B", "L"]]


def test_who_does_not_share() -> None:
    """Long trials, trials on several workers, and trials that ask for other workers."""
    long = int(SHARE_BELOW / STEP_FLOPS)
    trials = [
        planted("small", 10),
        planted("long", 2 * long),
        planted("two", 10, workers__count=2),
        planted("wide", 20, workers__cpus=2),
        planted("two more", 20, workers__count=2),
        planted("small too", 20),
        planted("longer", 3 * long),
        planted("wide too", 30, workers__cpus=2),
    ]
    shared = [["wide", "wide too"], ["small", "small too"]]
    assert names(trials, 1) == [["longer"], ["long"], *shared, ["two more"], ["two"]]
    dealt = names(trials, 3)
    assert dealt[:2] == [["longer"], ["long"]]
    assert sorted(name for pack in dealt for name in pack) == sorted(trial.id for trial in trials)


def test_a_pack_mate_changes_nothing(home: Path, tmp_path: Path) -> None:
    """The second trial of a pack equals the same trial alone bit for bit; what is finished is left as it is."""
    shutil.copytree(home / "cache", tmp_path / "cache")
    mate = tiny_trial(tmp_path, "mate", model__generator="B", seed=3)
    second, alone = tiny_trial(tmp_path, "second"), tiny_trial(tmp_path, "alone")
    train(alone, torch.device("cpu"))
    train_pack([mate, second], torch.device("cpu"))
    assert_same_state(alone, second, 4)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    train_pack([mate, second], torch.device("cpu"))
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


# ---------------------------------------------------------------- with Ray


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
    """A trial whose checkpoint will be broken, a learning rate that cannot survive, and a mate for each."""
    path = tmp_path_factory.mktemp("sweeps") / "three.yaml"
    path.write_text(
        "about: one broken, one that blows up, two sizes\n"
        "points:\n"
        "  - {model.generator: S, model.discriminator: S, model.patch: 4}\n"
        "  - {model.generator: S, model.discriminator: B, train.base_lr: 1.0e+30}\n"
        "  - {model.generator: S, model.discriminator: S}\n"
        "  - {model.generator: B, model.discriminator: B}\n"
    )
    return path


def arguments(home: Path, sweep: Path, *more: str) -> list[str]:
    return ["run", str(sweep), "--recipe", "digits", "--home", str(home), *settings([*TINY, HALF]), *more]


def run(home: Path, sweep: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as a user would: Ray and its workers start from nothing."""
    args = command(*arguments(home, sweep))
    return subprocess.run(args, cwd=cwd, env=marked(cwd), capture_output=True, text=True, timeout=280)


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


@pytest.mark.ray
def test_a_sweep_from_the_command_line_to_a_law(
    home: Path, sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = {key: parse_scalar(value) for key, value in (setting.split("=") for setting in TINY)}
    configs = load_sweep(sweep, "digits", overrides=overrides).trials
    broken, diverging, small, large = configs
    trials = [Trial(name, "three-digits", "three", config, home) for name, config in configs.items()]
    assert [broken, large] in names(trials, 2) and [diverging, small] in names(trials, 2)
    checkpoint = home / "three-digits" / "trials" / broken / "checkpoints" / "step_00000002.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"half a file")

    record_failure(trials[3], "an earlier launch")

    # Two trials finish, one diverges, one fails: each says so, none stops its pack mate.
    first = run(home, sweep, tmp_path)
    assert first.returncode == 1, first.stdout + first.stderr
    assert first.stderr == "" and "real data" in first.stdout and "Traceback" not in first.stdout
    assert "(pid=" not in first.stdout and "completed. Last result" not in first.stdout  # no log spam
    assert left_behind(tmp_path) == []
    files = (home / "three-digits" / "table").glob("*.parquet")
    last = {file.stem: pq.read_table(file).to_pylist()[-1] for file in files}
    ended = {name: (row["status"], row["step"]) for name, row in last.items()}
    assert ended == {broken: ("failed", 0), diverging: ("diverged", 0), small: ("done", 4), large: ("done", 4)}
    assert "gradient norm" in last[diverging]["reason"] and last[diverging]["value"] is None
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
    code, _, err = call(capsys, monkeypatch, *arguments(home, sweep, "--set=train.clip=2.0"))
    assert code == 2 and "train.clip: 1.0 -> 2.0" in err and len(err.splitlines()) == 1

    code, out, _ = call(capsys, monkeypatch, "fit-law", "three-digits", "--home", str(home), "--json")
    law = json.loads(out)
    assert code == 0 and law["n"] == 3 and [e["status"] for e in law["excluded"]] == ["diverged"]
    newest = json.loads((home / "three-digits" / "mlflow.json").read_text())["run_id"]  # every launch has its own run
    laws = [f.path for f in client.list_artifacts(newest, "law")]
    assert newest != parent.info.run_id and laws == ["law/law.json", "law/law.png", "law/law.svg"]


@pytest.mark.ray
def test_two_workers_and_ctrl_c(home: Path, sweep: Path, tmp_path: Path) -> None:
    """Interrupted with both workers at work: exit 130, no process left; the same command then finishes."""
    one = tmp_path / "one.yaml"
    one.write_text("about: one trial on two workers\nset: {workers.count: 2}\n")
    values = settings([*TINY[1:], "train.steps=100000", "train.eval_every=5"])
    args = command("run", str(one), "--recipe", "digits", "--home", str(home), *values)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(args, cwd=tmp_path, env=marked(tmp_path), start_new_session=True, **pipes)
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
