"""A sweep on a cluster that grows and shrinks: Ray's own autoscaler, whose machines are raylets here."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.processes import marked
from helpers.trials import TINY, rows

from gat_sweep.run.alive import signs
from gat_sweep.run.crowd import crowd_line
from gat_sweep.run.journal import read_records
from gat_sweep.run.saved import saved_step
from gat_sweep.run.stop import EXIT_STOPPED
from gat_sweep.run.trial import Trial
from gat_sweep.sweep import load_sweep

Figures = Callable[..., None]
PORT = 6379  # the provider knows no other
LENGTH = {"train.steps": 900, "train.eval_every": 300, "train.log_every": 20}
HEAD = "ray.head.default"  # nor another name of the head's type
# Workers of three kinds share no worker, so there are three packs.
SWEEP = (
    "about: three trials\n"
    f"set: {json.dumps({**TINY, **LENGTH})}\n"
    "points:\n"
    "  - {seed: 0, workers.cpus: 0.9}\n"
    "  - {seed: 1, workers.cpus: 0.91}\n"
    "  - {seed: 2, workers.cpus: 0.92}\n"
)


class Growing:
    """A head that only drives sweeps, and an autoscaler that may start up to three machines of one CPU.

    `ray.cluster_utils.AutoscalingCluster` does the same, but ends every Ray on this machine when it starts and stops.
    """

    def __init__(self, folder: Path, token: str, idle_minutes: float):
        from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider

        provider = f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}"
        config: dict[str, Any] = {
            "cluster_name": "growing",
            "max_workers": 3,
            "idle_timeout_minutes": idle_minutes,
            "upscaling_speed": 10.0,
            "provider": {
                "type": "external",
                "module": provider,
                "head_node_id": FAKE_HEAD_NODE_ID,
                "launch_multiple": True,
            },
            "auth": {"ssh_user": "nobody"},
            # What the command `ray up` would fill in.
            "docker": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
            **{f"{whose}setup_commands": [] for whose in ("", "head_", "worker_")},
            **{f"{whose}_start_ray_commands": [] for whose in ("head", "worker")},
            "initialization_commands": [],
            "head_node_type": HEAD,
            "available_node_types": {
                HEAD: {"resources": {"CPU": 0, "sweep_driver": 8}, "node_config": {}, "max_workers": 0},
                "cpu": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 3},
            },
        }
        (folder / "cluster.json").write_text(json.dumps(config))
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        }
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={PORT}"]
        command += [f"--autoscaling-config={folder / 'cluster.json'}", "--num-cpus=0", "--num-gpus=0"]
        command += ['--resources={"sweep_driver": 8}', "--include-dashboard=false"]
        with open(folder / "head.log", "wb") as log:
            self.head = subprocess.Popen(
                command, env=os.environ | self.environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while b"Ray runtime started" not in (folder / "head.log").read_bytes():
            assert self.head.poll() is None and time.monotonic() < deadline, (folder / "head.log").read_text()
            time.sleep(0.2)
        self.address = f"127.0.0.1:{PORT}"

    def raylets(self) -> list[psutil.Process]:
        """Those of the machines that were started: children of the autoscaler's process."""
        (monitor,) = (p for p in psutil.Process(self.head.pid).children() if "v2/monitor.py" in " ".join(p.cmdline()))
        return [p for p in monitor.children(recursive=True) if p.name() == "raylet" and p.status() != "zombie"]

    def close(self) -> None:
        processes = psutil.Process(self.head.pid).children(recursive=True)
        self.head.send_signal(signal.SIGTERM)
        for process in processes:
            if process.is_running():
                process.kill()
        self.head.kill()
        self.head.wait()


@pytest.fixture
def growing(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Growing]:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            pytest.skip(f"port {PORT} of this machine is taken, which Ray's fake machines need")
    cluster = Growing(tmp_path, secrets.token_hex(32), request.param)
    yield cluster
    cluster.close()


# Without the patience that saves restarts.
HASTY = "from gat_sweep.launch import crowd; crowd.SETTLE = crowd.REST = 5.0; from gat_sweep.entry import main; main()"


def run(
    home: Path, sweep: Path, growing: Growing, *more: str, python: tuple[str, ...] = ("-m", "gat_sweep.cli")
) -> "subprocess.Popen[str]":
    command = [sys.executable, *python, "run", str(sweep), "--recipe", "digits", "--home", str(home)]
    token = {key: growing.environment[key] for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    return subprocess.Popen(
        [*command, "--address", growing.address, *more],
        env=marked(home) | token,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(what: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.2)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.reliability
@pytest.mark.parametrize("growing", [0.2], indirect=True)
def test_a_sweep_grows_its_cluster_from_nothing(home: Path, tmp_path: Path, growing: Growing, figures: Figures) -> None:
    """A sweep on a cluster without workers gets machines from the autoscaler, goes on when one of them is killed while
    the others come, and the cluster shrinks to nothing afterwards. A demand that no machine can meet is refused."""
    sweep = tmp_path / "grow.yaml"
    sweep.write_text(SWEEP)
    began = time.monotonic()
    large = run(home, sweep, growing, "--set=workers.count=4", "--name=large")
    _, err = large.communicate(timeout=100)
    assert large.returncode == 2 and "asks for 3.6 CPUs (4 workers), the cluster grows to 3; lower" in err
    refused = time.monotonic() - began
    assert growing.raylets() == []

    configs = load_sweep(sweep, "digits").trials
    trials = [Trial(name, "grow-digits", "grow", config, home) for name, config in configs.items()]
    process = run(home, sweep, growing, "--set=workers.save_minutes=0.02")
    wait_for(lambda: any(saved_step(trial.folder / "checkpoints") for trial in trials), process)
    assert "of at most 3 CPUs" in crowd_line(trials[0].run_folder)
    victim = next(trial for trial in trials if saved_step(trial.folder / "checkpoints"))
    worker = psutil.Process(signs(victim.folder / "alive")[0]["pid"])
    raylet = next(parent for parent in worker.parents() if parent.name() == "raylet")
    raylet.kill()
    wait_for(lambda: len(growing.raylets()) >= 2, process)
    most = 0

    def seen_all_at_work() -> bool:
        nonlocal most
        most = max(most, len(growing.raylets()))
        return all(saved_step(trial.folder / "checkpoints") for trial in trials)

    wait_for(seen_all_at_work, process)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    assert [rows(trial)[-1]["status"] for trial in trials] == ["done"] * 3
    attempts = [r["step"] for _, r in read_records(victim.folder) if r.get("status") == "running"]
    assert len(attempts) >= 2 and attempts[-1] > 0
    assert "wait for 0.9" in out and "at work" in out
    deadline = time.monotonic() + 90
    while growing.raylets():
        assert time.monotonic() < deadline
        time.sleep(1)
    figures(machines_at_once=most, killed=1, trials_finished=3, machines_left=0, seconds_to_refuse=f"{refused:.0f}")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.reliability
@pytest.mark.parametrize("growing", [10.0], indirect=True)  # machines stay while the workers of a trial change
def test_an_elastic_trial_follows_the_machines(home: Path, tmp_path: Path, growing: Growing, figures: Figures) -> None:
    """It begins on the first machine that comes, asks the autoscaler for as many as it may have, and goes on with all
    of them. When one is killed, it goes on with those that are there, and in the end with all again. No step is lost
    but for those since the newest checkpoint."""
    sweep = tmp_path / "elastic.yaml"
    long = {**TINY, "train.steps": 10**5, "train.eval_every": 10**5, "train.log_every": 20, "workers.cpus": 0.9}
    sweep.write_text(f"about: one trial\nset: {json.dumps(long)}\nseeds: [0]\n")
    (name, config), *_ = load_sweep(sweep, "digits").trials.items()
    trial = Trial(name, "elastic-digits", "elastic", config, home)
    settings = ["--set=workers.count={min: 1, max: 3}", "--set=workers.save_minutes=0.05"]
    process = run(home, sweep, growing, *settings, python=("-c", HASTY))

    def attempts() -> list[dict[str, Any]]:
        return [r for _, r in read_records(trial.folder) if r.get("status") == "running"]

    wait_for(lambda: bool(attempts()), process)
    assert attempts()[0]["workers"] == 1
    wait_for(lambda: attempts()[-1]["workers"] == 3, process)
    stopped = [r for _, r in read_records(trial.folder) if r.get("status") == "stopped"]
    assert "goes on with 3 workers instead of" in stopped[-1]["reason"] and "instead of 1" in stopped[0]["reason"]
    grown = attempts()[-1]
    assert grown["step"] == stopped[-1]["step"] > 0  # saved at the step at which it stopped
    assert len(growing.raylets()) == 3

    wait_for(lambda: saved_step(trial.folder / "checkpoints") > grown["step"], process)
    worker = psutil.Process(signs(trial.folder / "alive")[2]["pid"])
    next(parent for parent in worker.parents() if parent.name() == "raylet").kill()
    saved = saved_step(trial.folder / "checkpoints")
    wait_for(lambda: attempts()[-1]["time"] > grown["time"], process)
    shrunk = attempts()[-1]
    assert shrunk["step"] >= saved  # with two workers, or three if the autoscaler was quick
    wait_for(lambda: saved_step(trial.folder / "checkpoints") > shrunk["step"], process)
    wait_for(lambda: attempts()[-1]["workers"] == 3, process)  # the autoscaler replaced the machine

    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=200)
    assert process.returncode == EXIT_STOPPED, out + err
    logged = [r["step"] for _, r in read_records(trial.folder) if "loss_d" in r.get("metrics", {})]
    assert set(logged) == set(range(20, max(logged) + 1, 20))
    figures(
        workers=", ".join(str(attempt["workers"]) for attempt in attempts()),
        steps_trained_twice=len(logged) * 20 - max(logged),
        of_steps=max(logged),
        seconds_from_kill_to_steps=f"{shrunk['time'] - grown['time']:.0f}",
    )
