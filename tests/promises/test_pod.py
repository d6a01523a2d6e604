"""A pod that Kubernetes ends: SIGTERM to `ray start --block` of a node, with the environment of deploy/kubernetes."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.manifests import compose, pods
from helpers.processes import marked
from helpers.trials import TINY

from benchmarks.mlflow_server import free_port
from gat_sweep.run.alive import signs
from gat_sweep.run.journal import read_records
from gat_sweep.run.saved import saved_step
from gat_sweep.run.trial import Trial
from gat_sweep.sweep import load_sweep

Figures = Callable[..., None]
MANIFESTS = Path(__file__).parents[2] / "deploy" / "kubernetes"
STEPS = 20000  # more than it gets to
SWEEP = (
    "about: one trial\n"
    f"set: {json.dumps({**TINY, 'train.steps': STEPS, 'train.eval_every': STEPS, 'train.log_every': 20})}\n"
    "seeds: [0]\n"
)


class Pods:
    """Ray as KubeRay starts it: bash, which becomes `ray start --block`. On loopback, with a token."""

    def __init__(self, folder: Path):
        (gpu,) = [pod for thing in compose(MANIFESTS) for name, pod in pods(thing) if name == "gpu"]
        self.env = {
            **marked(folder),
            **{entry["name"]: entry["value"] for entry in gpu["spec"]["containers"][0]["env"]},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_worker_niceness": "0",  # not 15, with which a busy machine starves them
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        del self.env["MLFLOW_TRACKING_URI"]
        self.address = f"127.0.0.1:{free_port()}"
        # Not Ray's usual folder, whose record of the newest cluster others on this machine read. Sockets need it short.
        self.folder = tempfile.mkdtemp(prefix="pod", dir="/tmp")
        self.processes: list[subprocess.Popen[bytes]] = []

    def head(self) -> None:
        port = self.address.partition(":")[2]
        only = "--num-cpus=0 --num-gpus=0 --include-dashboard=false --resources='{\"sweep_driver\": 8}'"
        process = self.start(f"--head --port={port} --temp-dir={self.folder} {only}")
        deadline = time.monotonic() + 120
        asked = ["ray", "health-check", "--address", self.address]  # as KubeRay asks before it starts a worker
        while subprocess.run(asked, env=self.env, capture_output=True).returncode:
            assert process.poll() is None and time.monotonic() < deadline

    def worker(self) -> "subprocess.Popen[bytes]":
        return self.start(f"--address={self.address} --num-cpus=1 --num-gpus=0")

    def start(self, options: str) -> "subprocess.Popen[bytes]":
        ports = f"--node-ip-address=127.0.0.1 --dashboard-agent-listen-port={free_port()}"
        command = f"ulimit -n 65536; ray start --block {ports} --object-store-memory=100000000 {options}"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        process = subprocess.Popen(["/bin/bash", "-c", "--", command], env=self.env, **quiet)  # type: ignore[call-overload]
        self.processes.append(process)
        return process

    def end(self) -> None:
        """What is left of all of them, by the mark in their environment."""
        for process in psutil.process_iter(["pid"]):
            try:
                if process.environ().get("RAY_AUTH_TOKEN") == self.env["RAY_AUTH_TOKEN"]:
                    process.kill()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        for process in self.processes:
            process.wait(20)
        shutil.rmtree(self.folder)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Pods]:
    started = Pods(tmp_path)
    try:
        yield started
    finally:
        started.end()


def wait_for(what: Callable[[], Any], run: "subprocess.Popen[str]", seconds: float = 800) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.reliability
def test_a_pod_that_is_told_to_end_loses_no_step(home: Path, tmp_path: Path, cluster: Pods, figures: Figures) -> None:
    """SIGTERM to the Ray of a pod, in the middle of a trial: the trial saves where it is, and then the pod ends."""
    file = tmp_path / "one.yaml"
    file.write_text(SWEEP)
    ((name, config),) = load_sweep(file, "digits").trials.items()
    trial = Trial(name, "one-digits", "one", config, home)
    cluster.head()
    pod = cluster.worker()
    command = [sys.executable, "-m", "gat_sweep.cli", "run", str(file), "--recipe", "digits", "--home", str(home)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command += ["--address", cluster.address, "--set=workers.save_minutes=60"]
    run: subprocess.Popen[str] = subprocess.Popen(command, env=cluster.env, **pipes)  # type: ignore[call-overload]
    try:
        wait_for(lambda: any(r.get("step", 0) > 40 for _, r in read_records(trial.folder)), run)
        worker = psutil.Process(signs(trial.folder / "alive")[0]["pid"])
        assert pod.pid in [process.pid for process in worker.parents()]
        pod.send_signal(signal.SIGTERM)
        told = time.monotonic()
        wait_for(lambda: pod.poll() is not None, run)
        seconds = time.monotonic() - told
    finally:
        run.kill()
        run.communicate()
    (ended,) = [r for _, r in read_records(trial.folder) if r.get("status") == "stopped"]
    assert ended["reason"] == "a node of the trial is being preempted"
    saved = saved_step(trial.folder / "checkpoints")
    assert ended["step"] == saved > 40
    figures(pods_ended=1, steps_lost=ended["step"] - saved, seconds_to_end=f"{seconds:.0f}")
