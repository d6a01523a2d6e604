"""A sweep over several nodes: separate raylets on this machine, of which one is killed in the middle."""

import json
import secrets
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

from gat_sweep import cluster
from gat_sweep.run.alive import signs
from gat_sweep.run.journal import read_records
from gat_sweep.run.saved import saved_step
from gat_sweep.run.trial import Trial
from gat_sweep.sweep import load_sweep

Figures = Callable[..., None]
STEPS = 600
SWEEP = (
    "about: two trials on two nodes\n"
    f"set: {json.dumps({**TINY, 'train.steps': STEPS, 'train.eval_every': 300, 'train.log_every': 20})}\n"
    "seeds: [0, 1]\n"
)


class Nodes:
    """A head that only drives sweeps, and nodes of one CPU."""

    def __init__(self, count: int):
        from ray.cluster_utils import Cluster

        quiet = {"dashboard_port": None, "include_dashboard": False}
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "resources": {"sweep_driver": 8}, **quiet},
        )
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(count)]
        self.address = self.cluster.address

    def of(self, pid: int) -> Any:
        """The node that a worker process belongs to."""
        ancestors = {process.pid for process in psutil.Process(pid).parents()}
        for node in self.nodes:
            raylets = node.all_processes["raylet"]
            if any(raylet.process.pid in ancestors for raylet in raylets):
                return node
        raise AssertionError(f"process {pid} belongs to no node")

    def kill(self, node: Any) -> None:
        self.cluster.remove_node(node, allow_graceful=False)


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """With a token of their own, as a cluster has."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    cluster.reread_access()
    nodes = Nodes(2)
    yield nodes
    nodes.cluster.shutdown()
    monkeypatch.undo()
    cluster.reread_access()


def wait_for(what: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)


def run(home: Path, sweep: Path, nodes: Nodes, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "gat_sweep.cli", "run", str(sweep), "--recipe", "digits", "--home", str(home)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, "--address", nodes.address, *more], env=marked(home), **pipes)  # type: ignore[call-overload]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.reliability
def test_a_sweep_survives_the_death_of_a_node(
    home: Path,
    tmp_path: Path,
    two_nodes: Nodes,
    figures: Figures,
) -> None:
    """A sweep over two nodes, of which one is killed with SIGKILL in the middle, finishes on the other: the trial that
    was cut goes on from its checkpoint, the other is not touched."""
    sweep = tmp_path / "two.yaml"
    sweep.write_text(SWEEP)
    configs = load_sweep(sweep, "digits").trials
    trials = [Trial(name, "two-digits", "two", config, home) for name, config in configs.items()]
    process = run(home, sweep, two_nodes, "--set=workers.save_minutes=0.02")
    wait_for(lambda: all(saved_step(trial.folder / "checkpoints") > 0 for trial in trials), process)
    victim = trials[0]
    pid = signs(victim.folder / "alive")[0]["pid"]
    two_nodes.kill(two_nodes.of(pid))
    at = saved_step(victim.folder / "checkpoints")
    died = time.monotonic()
    began = lambda: [r["step"] for _, r in read_records(victim.folder) if r.get("status") == "running"]  # noqa: E731
    wait_for(lambda: len(began()) == 2, process)
    back = time.monotonic() - died
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, out + err
    assert [rows(trial)[-1]["status"] for trial in trials] == ["done", "done"]
    assert [rows(trial)[-1]["step"] for trial in trials] == [STEPS, STEPS]
    resumed = began()[1]
    assert resumed >= at > 0
    assert len([r for _, r in read_records(trials[1].folder) if r.get("status") == "running"]) == 1
    came_to = next(r["previous"]["step"] for _, r in read_records(victim.folder) if "previous" in r)
    figures(
        nodes_killed=1, trials_finished=2, steps_lost=max(0, came_to - resumed), seconds_until_it_went_on=f"{back:.0f}"
    )
