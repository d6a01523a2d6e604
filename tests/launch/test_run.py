"""Packs; then a real Ray cluster, a real MLflow store, real digits: a sweep from the command line to a fitted law."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.processes import Gat, command, left_behind, start
from helpers.trials import TINY, assert_same_state, tiny_config, tiny_trial
from mlflow import MlflowClient

from gat_sweep.cluster import local_resources
from gat_sweep.launch.driver import train_pack
from gat_sweep.launch.packs import SHARE_BELOW, STEP_FLOPS, packs
from gat_sweep.monitor.ui import default_uri
from gat_sweep.run.table import read_rows
from gat_sweep.run.trial import Trial
from gat_sweep.sweep import load_sweep
from gat_sweep.train.loop import train
from gat_sweep.train.recorder import record_failure

LADDER = ["S", "B", "L", "XL"]
LENGTH = ("train.steps", "train.eval_every")


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


def test_a_pack_mate_changes_nothing(home: Path) -> None:
    """The second trial of a pack equals the same trial alone bit for bit; what is finished is left as it is."""
    mate = tiny_trial(home, "mate", train__steps=2, model__generator="B", seed=3)
    second, alone = (tiny_trial(home, name, train__steps=2) for name in ("second", "alone"))
    train(alone, torch.device("cpu"))
    train_pack([mate, second], torch.device("cpu"))
    assert_same_state(alone, second, 2)
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    train_pack([mate, second], torch.device("cpu"))
    assert before == {path: path.stat().st_mtime_ns for path in home.rglob("*")}


# ---------------------------------------------------------------- with Ray


def four_trials(home: Path, folder: Path, steps: int = 12) -> tuple[Path, list[Trial]]:
    """A sweep file and its trials: one that diverges, a small one, one in between, and a long one on two workers."""
    short = ", ".join(f"{key}: {TINY[key]}" for key in LENGTH)
    sweep, length = folder / "three.yaml", f"train.steps: {steps}, train.eval_every: {steps // 3}"
    sweep.write_text(
        "about: one that blows up, three sizes\n"
        f"set: {json.dumps({key: value for key, value in TINY.items() if key not in LENGTH})}\n"
        "points:\n"
        f"  - {{model.generator: S, model.discriminator: B, train.base_lr: 1.0e+30, {short}}}\n"
        f"  - {{model.generator: S, model.discriminator: S, {short}}}\n"
        f"  - {{model.generator: B, model.discriminator: B, {short}}}\n"
        f"  - {{model.generator: L, model.discriminator: L, {length}, workers.count: 2}}\n"
    )
    configs = load_sweep(sweep, "digits").trials
    return sweep, [Trial(name, "three-digits", "three", config, home) for name, config in configs.items()]


@pytest.mark.ray
@pytest.mark.slow
def test_ctrl_c_leaves_no_process(home: Path, tmp_path: Path) -> None:
    """With two workers at the longest trial, which starts first: exit 130."""
    sweep, (*_, long) = four_trials(home, tmp_path, steps=60)
    process = start(tmp_path, *command(home, sweep))
    deadline = time.monotonic() + 240
    while not long.table.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert f"results so far are in {home / 'three-digits'}" in out and "Traceback" not in err
    assert left_behind(tmp_path) == []
    assert long.status() == "running"


@pytest.mark.ray
def test_a_sweep_from_the_command_line_to_a_law(home: Path, tmp_path: Path, gat: Gat) -> None:
    sweep, trials = four_trials(home, tmp_path)
    diverging, small, middle, long = trials

    # What an earlier launch left: a result, a failure, and a trial half done by one worker.
    train_pack([small], torch.device("cpu"))
    record_failure(middle, "a node went away")
    asked = iter([""] * 6)
    assert train(long, torch.device("cpu"), lambda: next(asked, "enough")).status == "stopped"
    result = small.table.read_bytes()

    # The long trial goes on where it was, with two workers; the others in a pack, of which one diverges, says so,
    # and does not stop its mate.
    assert names([diverging, middle, long], 1) == [[long.id], [diverging.id, middle.id]]
    cpus = local_resources().cpus // 2  # one pack at a time on any machine
    process = start(tmp_path, *command(home, sweep, f"--set=workers.cpus={cpus:g}", "--retry=failed"))
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, out + err
    assert err == "" and "1 of 4 trials are finished already" in out and "real data" in out and "Traceback" not in out
    assert "(pid=" not in out and "completed. Last result" not in out  # no log spam
    assert left_behind(tmp_path) == []
    last = {trial.id: read_rows(trial.table)[-1] for trial in trials}
    assert [(row["status"], row["step"]) for row in last.values()] == [
        ("diverged", 0),
        ("done", 4),
        ("done", 4),
        ("done", 12),
    ]
    assert "gradient norm" in last[diverging.id]["reason"] and last[diverging.id]["value"] is None
    assert small.table.read_bytes() == result
    journal = [json.loads(line) for line in (long.folder / "journal.jsonl").read_text().splitlines()]
    assert [record["step"] > 0 for record in journal if record.get("status") == "running"] == [False, True]

    # MLflow: experiment = sweep, parent = launch, children = trials
    client = MlflowClient(default_uri(home))
    experiment = client.get_experiment_by_name("three")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    (parent,) = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert parent.info.status == "FAILED"
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    status = {r.data.tags["gat_sweep.trial"]: r.info.status for r in children}
    ended = {t: "FINISHED" if row["status"] == "done" else "FAILED" for t, row in last.items()}
    assert status == ended
    done = next(r for r in children if r.data.params["model.generator"] == "B")
    assert done.info.status == "FINISHED" and done.data.params["train.steps"] == "4"
    assert [m.step for m in client.get_metric_history(done.info.run_id, "loss_d")] == [1, 2, 3, 4]
    assert [m.step for m in client.get_metric_history(done.info.run_id, "fd_efficientnet_lite0")] == [2, 4]
    grids = [f.path for f in client.list_artifacts(done.info.run_id, "samples")]
    assert grids == ["samples/step_00000002.png", "samples/step_00000004.png"]

    # There is nothing left to run.
    tables = {trial.id: trial.table.read_bytes() for trial in trials}
    code, out, _ = gat(*command(home, sweep))
    assert code == 0 and "4 of 4 trials are finished already" in out
    assert tables == {trial.id: trial.table.read_bytes() for trial in trials}

    # With another config: refused, in one line.
    code, _, err = gat(*command(home, sweep, "--set=train.clip=2.0"))
    assert code == 2 and "train.clip: 1.0 -> 2.0" in err and len(err.splitlines()) == 1

    code, out, _ = gat("fit-law", "three-digits", "--home", str(home), "--json")
    law = json.loads(out)
    assert code == 0 and law["laws"][0]["sizes"] == 3 and [e["status"] for e in law["excluded"]] == ["diverged"]
    newest = json.loads((home / "three-digits" / "mlflow.json").read_text())["run_id"]  # every launch has its own run
    laws = [f.path for f in client.list_artifacts(newest, "analysis")]
    assert newest == parent.info.run_id and laws == ["analysis/law.json", "analysis/law.png", "analysis/law.svg"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_failing_trial_leaves_its_pack_mates_unharmed(home: Path, tmp_path: Path) -> None:
    """Its checkpoints are damaged, which no retry fixes; the trial after it has a worker of its own."""
    sweep = tmp_path / "two.yaml"
    sweep.write_text(f"about: one broken\nset: {json.dumps(TINY)}\nproduct: {{model.patch: [4, 2]}}\n")
    trials = [Trial(n, "two-digits", "two", config, home) for n, config in load_sweep(sweep, "digits").trials.items()]
    broken, sound = trials
    cpus = local_resources().cpus  # one pack at a time
    checkpoint = broken.folder / "checkpoints" / "step_00000002"
    checkpoint.mkdir(parents=True)
    process = start(tmp_path, *command(home, sweep, f"--set=workers.cpus={cpus:g}"))
    out, err = process.communicate(timeout=280)
    assert process.returncode == 1, out + err
    assert [trial.status() for trial in (broken, sound)] == ["failed", "done"]
    assert "every checkpoint" in read_rows(broken.table)[-1]["reason"] and "every checkpoint" in out
    assert "Traceback" in (broken.folder / "failure.txt").read_text()

    checkpoint.rmdir()  # the cause is gone: what failed is run, and that alone
    result = sound.table.read_bytes()
    process = start(tmp_path, *command(home, sweep, f"--set=workers.cpus={cpus:g}", "--retry=failed"))
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0 and "1 of 2 trials are finished already" in out, out + err
    assert broken.status() == "done" and sound.table.read_bytes() == result


@pytest.mark.ray
@pytest.mark.slow
def test_trials_run_behind_those_they_start_from(home: Path, tmp_path: Path) -> None:
    """One goes on from a trial that is done, also in a later launch; one whose trial diverged fails, and says why."""
    sweep = tmp_path / "stages.yaml"
    sweep.write_text(
        f"about: two stages\nset: {json.dumps(TINY)}\n"
        "points: [{}, {model.generator: B, train.base_lr: 1.0e+30}]\n"
        "parts:\n  first: {}\n  second: {after: first, set: {train.steps: x2}}\n"
    )
    configs = load_sweep(sweep, "digits").trials
    trials = [Trial(name, "stages-digits", "stages", config, home) for name, config in configs.items()]
    _, bad, second, blocked = trials
    process = start(tmp_path, *command(home, sweep))
    out, err = process.communicate(timeout=400)
    assert process.returncode == 1 and "Traceback" not in out + err, out + err
    assert [trial.status() for trial in trials] == ["done", "diverged", "done", "failed"]
    assert read_rows(blocked.table)[-1]["reason"] == f"{bad.id}, which it starts from, has diverged"
    straight = Trial("straight", "run", "sweep", tiny_config(train__steps=8), home)
    train(straight, torch.device("cpu"))
    assert_same_state(straight, second, 8)

    third = tmp_path / "stages2.yaml"
    third.write_text(sweep.read_text() + "  third: {after: second, set: {train.steps: x1.5}}\n")
    process = start(tmp_path, *command(home, third, "--name=stages-digits"))
    out, err = process.communicate(timeout=400)
    assert "3 of 6 trials are finished already" in out and "1 of 6 trials failed before" in out, out + err
    assert process.returncode == 1 and [t.status() for t in trials] == ["done", "diverged", "done", "failed"]
    (new,) = [
        name
        for name, config in load_sweep(third, "digits").trials.items()
        if config.start and config.start.trial == second.id
    ]
    assert read_rows(home / "stages-digits" / "table" / f"{new}.parquet")[-1]["status"] == "done"
    assert left_behind(tmp_path) == []
