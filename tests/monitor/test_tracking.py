"""Shipping trials to a real sqlite store: every point once, whatever crashes in between."""

import errno
import fcntl
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
from helpers.planted import CONFIG, TAGS, PlantedTrial
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from gat_sweep.errors import UserError
from gat_sweep.monitor import tracking
from gat_sweep.monitor.tracking import log_artifacts
from gat_sweep.monitor.ui import default_uri, tracking_uri


def test_points_arrive_once_with_their_steps_and_times(planted: PlantedTrial) -> None:
    tracker = planted.tracker()
    planted.points(0, 50, 100)
    assert tracker.ship([planted.dir]) == (6, "")
    assert tracker.ship([planted.dir]) == (0, "")
    planted.record(100, note="samples: 64 of 50000")  # for whoever watches, not a result
    assert tracker.ship([planted.dir]) == (0, "")
    planted.points(150)
    assert tracker.ship([planted.dir]) == (2, "")
    assert planted.steps() == [0, 50, 100, 150]
    (child,) = planted.runs()[1]
    history = MlflowClient(tracker.uri).get_metric_history(child.info.run_id, "loss_g")
    assert [(p.step, p.value, p.timestamp) for p in history][1] == (50, 5.0, 1763900002000)


def test_steps_replayed_after_a_resume_are_not_sent_again(planted: PlantedTrial) -> None:
    tracker = planted.tracker()
    planted.points(50, 100, 150)
    tracker.ship([planted.dir])
    planted.record(100, status="running")
    planted.points(150, 200)  # 100 was the last checkpoint
    tracker.ship([planted.dir])
    planted.points(150, 200, 250)
    planted.tracker("second").ship([planted.dir])
    assert planted.steps() == [50, 100, 150, 200, 250]


def test_half_written_last_line_waits_for_its_end(planted: PlantedTrial) -> None:
    tracker = planted.tracker()
    planted.points(50)
    planted.write('{"step": 100, "time": 1763900100.0, "met')
    assert tracker.ship([planted.dir]) == (2, "")
    assert tracker.ship([planted.dir]) == (0, "")
    planted.write('rics": {"loss_g": 1.0}}')
    assert tracker.ship([planted.dir]) == (0, "")
    planted.write("\n")
    assert tracker.ship([planted.dir]) == (1, "")
    assert planted.steps() == [50, 100]


def test_line_cut_by_a_kill_does_not_swallow_the_next_one(planted: PlantedTrial) -> None:
    planted.points(50)
    planted.write('{"step": 100, "time": 17639\n')  # add_record ends such a line before it writes the next
    planted.points(100, 150)
    planted.write("\x00garbage\n")
    planted.points(200)
    planted.tracker().ship([planted.dir])
    assert planted.steps() == [50, 100, 150, 200]


class Crash(Exception):
    pass


@pytest.mark.parametrize("batches, left", [(1, "missing"), (2, "behind"), (2, "missing"), (2, "broken"), (3, "behind")])
def test_crash_between_batch_and_shipped_json(
    planted: PlantedTrial, monkeypatch: pytest.MonkeyPatch, batches: int, left: str
) -> None:
    """The store has a batch of which shipped.json says nothing; replayed lines come on top."""
    steps = range(50, 60_000, 50)  # 2398 points: three batches
    planted.points(*steps)
    write, count = tracking._write_shipped, 0

    def crash(trial_dir: Path, child: tracking.Child) -> None:
        nonlocal count
        count += 1
        if count == batches:
            raise Crash
        write(trial_dir, child)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(tracking, "_write_shipped", crash)
        planted.tracker().ship([planted.dir])
    shipped = planted.dir / "shipped.json"
    if left == "missing":
        shipped.unlink(missing_ok=True)
    if left == "broken":
        shipped.write_text('{"run_id": "')
    stored = len(planted.steps("loss_g")) + len(planted.steps("loss_d"))
    planted.points(59_900, 59_950, 60_000, 60_050)
    tracker = planted.tracker("second")
    assert tracker.ship([planted.dir]) == (2 * (len(steps) + 2) - stored, "")  # nothing is even sent twice
    assert planted.steps("loss_g") == planted.steps("loss_d") == [*steps, 60_000, 60_050]
    assert tracker.ship([planted.dir]) == (0, "")


def test_second_launch_continues_the_same_child(planted: PlantedTrial) -> None:
    other = PlantedTrial(planted.home, planted.run, "t1")
    planted.points(50)
    other.points(50)
    planted.tracker("first").ship([planted.dir, other.dir])
    (first,), children = planted.runs()
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {first.info.run_id}
    planted.points(100)
    planted.tracker("second").ship([planted.dir, other.dir])
    parents, again = planted.runs()
    assert [parent.info.run_name for parent in parents] == ["second", "first"]
    assert {child.info.run_id for child in again} == {child.info.run_id for child in children}
    assert {child.data.tags["mlflow.parentRunId"] for child in again} == {parents[0].info.run_id}
    assert sorted(child.info.run_name for child in again) == ["t0", "t1"]


def test_trial_begun_anew_adds_only_what_the_store_lacks(planted: PlantedTrial) -> None:
    planted.points(50, 100, 150)
    tracker = planted.tracker()
    tracker.ship([planted.dir])
    (planted.dir / "journal.jsonl").unlink()
    planted.points(50, 200)
    assert tracker.ship([planted.dir]) == (2, "")
    (planted.dir / "shipped.json").unlink()
    planted.points(200, 250)
    assert planted.tracker("second").ship([planted.dir]) == (2, "")
    assert planted.steps() == [50, 100, 150, 200, 250]


def test_deleted_run_is_shipped_again_as_a_whole(planted: PlantedTrial) -> None:
    planted.points(50, 100)
    planted.tracker().ship([planted.dir])
    MlflowClient(default_uri(planted.home)).delete_run(planted.runs()[1][0].info.run_id)
    assert planted.tracker("second").ship([planted.dir]) == (4, "")


def test_params_and_tags(planted: PlantedTrial) -> None:
    config = {**CONFIG, "note": "x" * 7000, "empty": {}, "many": {f"k{i:03}": i for i in range(150)}}
    (planted.dir / "config.json").write_text(json.dumps(config))
    planted.tracker().ship([planted.dir])
    (parent,), (child,) = planted.runs()
    params = child.data.params
    assert params["model.width"] == "192" and params["train.betas"] == "[0.0, 0.99]"
    assert params["train.lr"] == "0.0002" and params["data"] == "digits"
    assert len(params["note"]) == 6000 and params["empty"] == "{}" and params["many.k149"] == "149"
    config |= {"data": "another", "added": None}  # a written param stays, a new one is added
    (planted.dir / "config.json").write_text(json.dumps(config))
    assert planted.tracker("second").ship([planted.dir]) == (0, "")
    params = planted.runs()[1][0].data.params
    assert params["data"] == "digits" and params["added"] == "null"
    assert TAGS.items() <= parent.data.tags.items() and TAGS.items() <= child.data.tags.items()
    assert child.data.tags["gat_sweep.trial"] == "t0" and child.data.tags["gat_sweep.run"] == planted.run


def test_trial_without_config_is_not_started(planted: PlantedTrial) -> None:
    (planted.dir / "config.json").write_text('{"model": {"wid')
    assert planted.tracker().ship([planted.dir, planted.dir.parent / "unborn"]) == (0, "")
    assert planted.runs()[1] == []


@pytest.mark.parametrize(
    "status, expected",
    [("done", "FINISHED"), ("diverged", "FAILED"), ("failed", "FAILED"), ("running", "RUNNING")],
)
def test_status(planted: PlantedTrial, status: str, expected: str) -> None:
    planted.points(50)
    planted.record(50, status=status, reason="because")
    tracker = planted.tracker()
    tracker.ship([planted.dir])
    (child,) = planted.runs()[1]
    assert child.info.status == expected
    assert child.data.tags["gat_sweep.status"] == status and child.data.tags["gat_sweep.reason"] == "because"
    if expected != "RUNNING":
        assert child.info.end_time == planted.clock * 1000
    planted.record(50, status="running")  # resumed
    planted.points(100)
    tracker.ship([planted.dir])
    (child,) = planted.runs()[1]
    assert child.info.status == "RUNNING" and child.data.tags["gat_sweep.reason"] == ""


def test_nan_and_inf_are_kept(planted: PlantedTrial) -> None:
    planted.points(50, loss_g=math.nan, loss_d=math.inf)
    planted.tracker().ship([planted.dir])
    metrics = planted.runs()[1][0].data.metrics
    assert math.isnan(metrics["loss_g"]) and metrics["loss_d"] > 1e308


def test_evaluations_are_also_logged_over_gigaflops(planted: PlantedTrial) -> None:
    planted.points(50, fd_efficientnet_lite0=900.0, loss_g=0.7, flops=2.6e12)
    planted.points(100, fd_efficientnet_lite0=800.0, flops=5.2e12)
    planted.points(150, fd_efficientnet_lite0=700.0, flops=math.nan)
    planted.tracker().ship([planted.dir])
    assert planted.steps("fd_efficientnet_lite0") == [50, 100, 150]
    assert planted.steps("fd_efficientnet_lite0_by_gigaflops") == [2600, 5200]
    assert "loss_g_by_gigaflops" not in planted.runs()[1][0].data.metrics


def test_samples_and_figures_become_artifacts_below_home(planted: PlantedTrial) -> None:
    tracker = planted.tracker()
    (planted.dir / "samples" / "step_00000050.png").write_bytes(b"fifty")
    (planted.dir / "samples" / "step_00000100.png.tmp").write_bytes(b"half")
    tracker.ship([planted.dir])
    (planted.dir / "samples" / "step_00000100.png.tmp").rename(planted.dir / "samples" / "step_00000100.png")
    planted.tracker("second").ship([planted.dir])
    (child,) = planted.runs()[1]
    client = MlflowClient(tracker.uri)
    names = [item.path for item in client.list_artifacts(child.info.run_id, "samples")]
    assert names == ["samples/step_00000050.png", "samples/step_00000100.png"]
    (planted.home / "law.json").write_text("{}")
    assert log_artifacts(tracker.uri, tracker.parent_id, [planted.home / "law.json"], "law") == ""
    assert tracker.finish("done") == ""
    parent = planted.runs()[0][1]
    assert [item.path for item in client.list_artifacts(parent.info.run_id, "law")] == ["law/law.json"]
    assert parent.info.status == "FINISHED"
    assert child.info.artifact_uri.startswith((planted.home / "mlartifacts").as_uri())


@pytest.mark.parametrize("name", ["c#d", "é ü+&=", "a:b;c"])
def test_a_home_may_have_characters_that_a_uri_escapes(name: str, tmp_path: Path) -> None:
    """The store and the artifacts are in the home, and nothing is anywhere else."""
    planted = PlantedTrial(tmp_path / name, "run")
    (planted.dir / "samples" / "step_00000050.png").write_bytes(b"fifty")
    planted.points(0, 50)
    assert planted.tracker().ship([planted.dir]) == (4, "")
    assert planted.steps() == [0, 50]
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name / "mlflow.db").is_file()
    assert len(list((tmp_path / name / "mlartifacts").rglob("step_00000050.png"))) == 1


@pytest.mark.parametrize("name", ["a%20b", "50%", "what?"])
def test_a_home_that_an_address_would_read_as_another_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"MLflow keeps no store below .*choose another --home"):
        default_uri(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_points_that_are_not_sent_are_counted(planted: PlantedTrial) -> None:
    """As many as a later pass sends."""
    tracker = planted.tracker()
    planted.points(0, 50)
    assert tracker.ship([planted.dir]) == (4, "") and tracking.unsent([planted.dir]) == 0
    planted.points(50, 100, 150)  # 50 is in the store
    assert tracking.unsent([planted.dir]) == 4
    assert tracker.ship([planted.dir]) == (4, "") and tracking.unsent([planted.dir]) == 0


@pytest.mark.parametrize("uri", ["./mlruns", "mlruns", "file:///tmp/mlruns"])
def test_a_folder_is_no_store(uri: str, tmp_path: Path) -> None:
    """MLflow 3 keeps nothing there, so waiting for it would be waiting for ever."""
    with pytest.raises(UserError, match="is a folder, in which MLflow 3 keeps nothing; leave it out"):
        tracking_uri(uri, tmp_path)
    assert tracking_uri("databricks", tmp_path) == "databricks"
    assert tracking_uri(None, tmp_path) == default_uri(tmp_path) != tracking_uri("http://x:5000", tmp_path)


@pytest.mark.parametrize("uri", ["postgresql://db/mlflow", "postgresql+psycopg2://db/mlflow", "mysql+pymysql://db/m"])
def test_a_database_needs_a_server_before_it(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a database; start an `mlflow server` before it and give the server's"):
        tracking_uri(uri, tmp_path)
    secret = uri.replace("db/", "user:hunter2@db/")
    with pytest.raises(UserError, match="start an `mlflow server` for that database") as refused:
        tracking_uri(secret, tmp_path)
    assert "hunter2" not in str(refused.value)


def test_server_down_keeps_everything_for_later(planted: PlantedTrial) -> None:
    planted.points(50, 100)
    (planted.dir / "samples" / "step_00000050.png").write_bytes(b"fifty")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # never listens
        tracker = planted.tracker(uri=f"http://127.0.0.1:{closed.getsockname()[1]}")
        start = time.monotonic()
        points, warning = tracker.ship([planted.dir])
        assert points == 0 and warning.startswith("MLflow at http") and "\n" not in warning
        assert tracker.finish("done") != ""
        assert time.monotonic() - start < 5
    assert not (planted.dir / "shipped.json").exists()
    assert planted.tracker().ship([planted.dir]) == (4, "")
    assert planted.steps() == [50, 100]


def test_batch_whose_answer_was_lost_is_not_sent_again(planted: PlantedTrial, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, log_batch = planted.tracker(), MlflowClient.log_batch
    planted.points(50, 100)

    def lose_answer(client: MlflowClient, *args: Any, **kwargs: Any) -> None:
        log_batch(client, *args, **kwargs)
        if kwargs.get("metrics"):
            raise MlflowException("timed out")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", lose_answer)
        assert tracker.ship([planted.dir]) == (0, f"t0: MLflow at {tracker.uri}: timed out")
    planted.points(100, 150)
    assert tracker.ship([planted.dir]) == (2, "")
    assert planted.steps() == [50, 100, 150]


def test_one_bad_trial_does_not_hold_up_the_others(planted: PlantedTrial) -> None:
    good = PlantedTrial(planted.home, planted.run, "good")
    planted.record(50, metrics={"not/a//valid*key": 1.0})
    good.points(50)
    points, warning = planted.tracker().ship([planted.dir, good.dir])
    assert points == 2 and warning.startswith("t0: ")


@pytest.mark.slow
def test_two_processes_create_one_store_quietly(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from gat_sweep.monitor.tracking import create_store; "
        "from gat_sweep.monitor.ui import default_uri; "
        "home = Path(sys.argv[1]); create_store(default_uri(home), home)"
    )
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


def test_a_file_system_without_locks_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match="has no locks, which MLflow's database needs; give a --home elsewhere"):
        tracking.create_store(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)
