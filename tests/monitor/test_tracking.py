"""Shipping trials to a real sqlite store: every point once, whatever crashes in between."""

import json
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from gat_sweep.monitor import tracking
from gat_sweep.monitor.tracking import Tracker, create_store, log_artifacts
from gat_sweep.monitor.ui import default_uri

TAGS = {"commit": "abc123", "config_hash": "00ff"}
CONFIG = {"model": {"width": 192, "depth": 12}, "train": {"lr": 2e-4, "betas": [0.0, 0.99]}, "data": "digits"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests, since making one takes 2 s; each test has its own experiment."""
    home = tmp_path_factory.mktemp("home")
    create_store(default_uri(home), home)
    return home


class Trial:
    """Writes a trial's files as train() does."""

    def __init__(self, home: Path, run: str, name: str = "t0") -> None:
        self.home, self.run, self.dir = home, run, home / run / "trials" / name
        self.clock = 1763900000.0
        (self.dir / "samples").mkdir(parents=True)
        (self.dir / "config.json").write_text(json.dumps(CONFIG))

    def write(self, text: str) -> None:
        with (self.dir / "journal.jsonl").open("a") as file:
            file.write(text)

    def record(self, step: int, **fields: object) -> None:
        self.clock += 1.0  # a replayed step has another time, so the store would keep both
        self.write(json.dumps({"step": step, "time": self.clock, **fields}) + "\n")

    def points(self, *steps: int, **metrics: float) -> None:
        for step in steps:
            self.record(step, metrics=metrics or {"loss_g": step / 10, "loss_d": step / 20})

    def tracker(self, launch: str = "launch", uri: str = "") -> Tracker:
        return Tracker(uri or default_uri(self.home), self.home, self.run, launch, TAGS)

    def runs(self, uri: str = "") -> tuple[list[Run], list[Run]]:
        """(parents, children), the newest first."""
        client = MlflowClient(uri or default_uri(self.home))
        experiment = client.get_experiment_by_name(self.run)
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        return (
            [run for run in runs if "gat_sweep.trial" not in run.data.tags],
            [run for run in runs if "gat_sweep.trial" in run.data.tags],
        )

    def steps(self, key: str = "loss_g", uri: str = "") -> list[int]:
        (child,) = self.runs(uri)[1]
        history = MlflowClient(uri or default_uri(self.home)).get_metric_history(child.info.run_id, key)
        return sorted(point.step for point in history)


@pytest.fixture
def trial(home: Path, request: pytest.FixtureRequest) -> Trial:
    return Trial(home, request.node.name)


def test_points_arrive_once_with_their_steps_and_times(trial: Trial) -> None:
    tracker = trial.tracker()
    trial.points(0, 50, 100)
    assert tracker.ship([trial.dir]) == (6, "")
    assert tracker.ship([trial.dir]) == (0, "")
    trial.record(100, note="samples: 64 of 50000")  # for whoever watches, not a result
    assert tracker.ship([trial.dir]) == (0, "")
    trial.points(150)
    assert tracker.ship([trial.dir]) == (2, "")
    assert trial.steps() == [0, 50, 100, 150]
    (child,) = trial.runs()[1]
    history = MlflowClient(tracker.uri).get_metric_history(child.info.run_id, "loss_g")
    assert [(p.step, p.value, p.timestamp) for p in history][1] == (50, 5.0, 1763900002000)


def test_steps_replayed_after_a_resume_are_not_sent_again(trial: Trial) -> None:
    tracker = trial.tracker()
    trial.points(50, 100, 150)
    tracker.ship([trial.dir])
    trial.record(100, status="running")
    trial.points(150, 200)  # 100 was the last checkpoint
    tracker.ship([trial.dir])
    trial.points(150, 200, 250)
    trial.tracker("second").ship([trial.dir])
    assert trial.steps() == [50, 100, 150, 200, 250]


def test_half_written_last_line_waits_for_its_end(trial: Trial) -> None:
    tracker = trial.tracker()
    trial.points(50)
    trial.write('{"step": 100, "time": 1763900100.0, "met')
    assert tracker.ship([trial.dir]) == (2, "")
    assert tracker.ship([trial.dir]) == (0, "")
    trial.write('rics": {"loss_g": 1.0}}')
    assert tracker.ship([trial.dir]) == (0, "")
    trial.write("\n")
    assert tracker.ship([trial.dir]) == (1, "")
    assert trial.steps() == [50, 100]


def test_line_cut_by_a_kill_does_not_swallow_the_next_one(trial: Trial) -> None:
    trial.points(50)
    trial.write('{"step": 100, "time": 17639\n')  # add_record ends such a line before it writes the next
    trial.points(100, 150)
    trial.write("\x00garbage\n")
    trial.points(200)
    trial.tracker().ship([trial.dir])
    assert trial.steps() == [50, 100, 150, 200]


class Crash(Exception):
    pass


@pytest.mark.parametrize("batches, left", [(1, "missing"), (2, "behind"), (2, "missing"), (2, "broken"), (3, "behind")])
def test_crash_between_batch_and_shipped_json(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, batches: int, left: str
) -> None:
    """The store has a batch of which shipped.json says nothing; replayed lines come on top."""
    steps = range(50, 60_000, 50)  # 2398 points: three batches
    trial.points(*steps)
    write, count = tracking._write_shipped, 0

    def crash(trial_dir: Path, child: tracking.Child) -> None:
        nonlocal count
        count += 1
        if count == batches:
            raise Crash
        write(trial_dir, child)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(tracking, "_write_shipped", crash)
        trial.tracker().ship([trial.dir])
    shipped = trial.dir / "shipped.json"
    if left == "missing":
        shipped.unlink(missing_ok=True)
    if left == "broken":
        shipped.write_text('{"run_id": "')
    stored = len(trial.steps("loss_g")) + len(trial.steps("loss_d"))
    trial.points(59_900, 59_950, 60_000, 60_050)
    tracker = trial.tracker("second")
    assert tracker.ship([trial.dir]) == (2 * (len(steps) + 2) - stored, "")  # nothing is even sent twice
    assert trial.steps("loss_g") == trial.steps("loss_d") == [*steps, 60_000, 60_050]
    assert tracker.ship([trial.dir]) == (0, "")


def test_second_launch_continues_the_same_child(trial: Trial) -> None:
    other = Trial(trial.home, trial.run, "t1")
    trial.points(50)
    other.points(50)
    trial.tracker("first").ship([trial.dir, other.dir])
    (first,), children = trial.runs()
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {first.info.run_id}
    trial.points(100)
    trial.tracker("second").ship([trial.dir, other.dir])
    parents, again = trial.runs()
    assert [parent.info.run_name for parent in parents] == ["second", "first"]
    assert {child.info.run_id for child in again} == {child.info.run_id for child in children}
    assert {child.data.tags["mlflow.parentRunId"] for child in again} == {parents[0].info.run_id}
    assert sorted(child.info.run_name for child in again) == ["t0", "t1"]


def test_trial_begun_anew_adds_only_what_the_store_lacks(trial: Trial) -> None:
    trial.points(50, 100, 150)
    tracker = trial.tracker()
    tracker.ship([trial.dir])
    (trial.dir / "journal.jsonl").unlink()
    trial.points(50, 200)
    assert tracker.ship([trial.dir]) == (2, "")
    (trial.dir / "shipped.json").unlink()
    trial.points(200, 250)
    assert trial.tracker("second").ship([trial.dir]) == (2, "")
    assert trial.steps() == [50, 100, 150, 200, 250]


def test_deleted_run_is_shipped_again_as_a_whole(trial: Trial) -> None:
    trial.points(50, 100)
    trial.tracker().ship([trial.dir])
    MlflowClient(default_uri(trial.home)).delete_run(trial.runs()[1][0].info.run_id)
    assert trial.tracker("second").ship([trial.dir]) == (4, "")


def test_params_and_tags(trial: Trial) -> None:
    config = {**CONFIG, "note": "x" * 7000, "empty": {}, "many": {f"k{i:03}": i for i in range(150)}}
    (trial.dir / "config.json").write_text(json.dumps(config))
    trial.tracker().ship([trial.dir])
    (parent,), (child,) = trial.runs()
    params = child.data.params
    assert params["model.width"] == "192" and params["train.betas"] == "[0.0, 0.99]"
    assert params["train.lr"] == "0.0002" and params["data"] == "digits"
    assert len(params["note"]) == 6000 and params["empty"] == "{}" and params["many.k149"] == "149"
    config |= {"data": "another", "added": None}  # a written param stays, a new one is added
    (trial.dir / "config.json").write_text(json.dumps(config))
    assert trial.tracker("second").ship([trial.dir]) == (0, "")
    params = trial.runs()[1][0].data.params
    assert params["data"] == "digits" and params["added"] == "null"
    assert TAGS.items() <= parent.data.tags.items() and TAGS.items() <= child.data.tags.items()
    assert child.data.tags["gat_sweep.trial"] == "t0" and child.data.tags["gat_sweep.run"] == trial.run


def test_trial_without_config_is_not_started(trial: Trial) -> None:
    (trial.dir / "config.json").write_text('{"model": {"wid')
    assert trial.tracker().ship([trial.dir, trial.dir.parent / "unborn"]) == (0, "")
    assert trial.runs()[1] == []


@pytest.mark.parametrize(
    "status, expected",
    [("done", "FINISHED"), ("diverged", "FAILED"), ("failed", "FAILED"), ("running", "RUNNING")],
)
def test_status(trial: Trial, status: str, expected: str) -> None:
    trial.points(50)
    trial.record(50, status=status, reason="because")
    tracker = trial.tracker()
    tracker.ship([trial.dir])
    (child,) = trial.runs()[1]
    assert child.info.status == expected
    assert child.data.tags["gat_sweep.status"] == status and child.data.tags["gat_sweep.reason"] == "because"
    if expected != "RUNNING":
        assert child.info.end_time == trial.clock * 1000
    trial.record(50, status="running")  # resumed
    trial.points(100)
    tracker.ship([trial.dir])
    (child,) = trial.runs()[1]
    assert child.info.status == "RUNNING" and child.data.tags["gat_sweep.reason"] == ""


def test_nan_and_inf_are_kept(trial: Trial) -> None:
    trial.points(50, loss_g=math.nan, loss_d=math.inf)
    trial.tracker().ship([trial.dir])
    metrics = trial.runs()[1][0].data.metrics
    assert math.isnan(metrics["loss_g"]) and metrics["loss_d"] > 1e308


def test_evaluations_are_also_logged_over_gigaflops(trial: Trial) -> None:
    trial.points(50, fd_efficientnet_lite0=900.0, loss_g=0.7, flops=2.6e12)
    trial.points(100, fd_efficientnet_lite0=800.0, flops=5.2e12)
    trial.points(150, fd_efficientnet_lite0=700.0, flops=math.nan)
    trial.tracker().ship([trial.dir])
    assert trial.steps("fd_efficientnet_lite0") == [50, 100, 150]
    assert trial.steps("fd_efficientnet_lite0_by_gigaflops") == [2600, 5200]
    assert "loss_g_by_gigaflops" not in trial.runs()[1][0].data.metrics


def test_samples_and_figures_become_artifacts_below_home(trial: Trial) -> None:
    tracker = trial.tracker()
    (trial.dir / "samples" / "step_00000050.png").write_bytes(b"fifty")
    (trial.dir / "samples" / "step_00000100.png.tmp").write_bytes(b"half")
    tracker.ship([trial.dir])
    (trial.dir / "samples" / "step_00000100.png.tmp").rename(trial.dir / "samples" / "step_00000100.png")
    trial.tracker("second").ship([trial.dir])
    (child,) = trial.runs()[1]
    client = MlflowClient(tracker.uri)
    names = [item.path for item in client.list_artifacts(child.info.run_id, "samples")]
    assert names == ["samples/step_00000050.png", "samples/step_00000100.png"]
    (trial.home / "law.json").write_text("{}")
    assert log_artifacts(tracker.uri, tracker.parent_id, [trial.home / "law.json"], "law") == ""
    assert tracker.finish("done") == ""
    parent = trial.runs()[0][1]
    assert [item.path for item in client.list_artifacts(parent.info.run_id, "law")] == ["law/law.json"]
    assert parent.info.status == "FINISHED"
    assert child.info.artifact_uri.startswith((trial.home / "mlartifacts").as_uri())


def test_server_down_keeps_everything_for_later(trial: Trial) -> None:
    trial.points(50, 100)
    (trial.dir / "samples" / "step_00000050.png").write_bytes(b"fifty")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # never listens
        tracker = trial.tracker(uri=f"http://127.0.0.1:{closed.getsockname()[1]}")
        start = time.monotonic()
        points, warning = tracker.ship([trial.dir])
        assert points == 0 and warning.startswith("MLflow at http") and "\n" not in warning
        assert tracker.finish("done") != ""
        assert time.monotonic() - start < 5
    assert not (trial.dir / "shipped.json").exists()
    assert trial.tracker().ship([trial.dir]) == (4, "")
    assert trial.steps() == [50, 100]


def test_batch_whose_answer_was_lost_is_not_sent_again(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, log_batch = trial.tracker(), MlflowClient.log_batch
    trial.points(50, 100)

    def lose_answer(client: MlflowClient, *args: Any, **kwargs: Any) -> None:
        log_batch(client, *args, **kwargs)
        if kwargs.get("metrics"):
            raise MlflowException("timed out")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", lose_answer)
        assert tracker.ship([trial.dir]) == (0, f"t0: MLflow at {tracker.uri}: timed out")
    trial.points(100, 150)
    assert tracker.ship([trial.dir]) == (2, "")
    assert trial.steps() == [50, 100, 150]


def test_one_bad_trial_does_not_hold_up_the_others(trial: Trial) -> None:
    good = Trial(trial.home, trial.run, "good")
    trial.record(50, metrics={"not/a//valid*key": 1.0})
    good.points(50)
    points, warning = trial.tracker().ship([trial.dir, good.dir])
    assert points == 2 and warning.startswith("t0: ")


def test_two_processes_create_one_store_quietly(tmp_path: Path) -> None:
    code = "import sys; from gat_sweep.monitor.tracking import *; home = Path(sys.argv[1]); "
    code += "create_store(default_uri(home), home)"
    environment = os.environ | {"MLFLOW_RUN_ID": "outer", "PYTHONPATH": str(Path(__file__).parents[2])}
    both = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, str(tmp_path / "home")],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, env=environment,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert [(process.communicate()[0], process.returncode) for process in both] == [("", 0), ("", 0)]
    assert [path.name for path in tmp_path.iterdir()] == ["home"]  # nothing in the working directory
