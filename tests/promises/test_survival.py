"""One trial on Ray through everything that can end a process, until it is done: its bits equal the straight run's."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers.processes import command, left_behind, start
from helpers.trials import CPU, TINY, assert_same_state, rows

from gat_sweep.compute import step_flops
from gat_sweep.monitor.budget import Meter
from gat_sweep.run.alive import signs
from gat_sweep.run.journal import read_records
from gat_sweep.run.saved import saved_step
from gat_sweep.run.stop import EXIT_STOPPED
from gat_sweep.run.trial import Trial
from gat_sweep.sweep import load_sweep
from gat_sweep.train.loop import train

Figures = Callable[..., None]
STEPS = 3000
VALUES = {**TINY, "train.steps": STEPS, "train.eval_every": 1000, "train.log_every": 50}
SAVING = ("--set=workers.save_minutes=0.02", "--set=workers.hang_minutes=0.5")


class Ordeal:
    """A sweep of one trial, started again and again."""

    def __init__(self, home: Path, folder: Path):
        self.home, self.folder, self.sweep = home, folder, folder / "one.yaml"
        self.sweep.write_text(f"about: one\nset: {json.dumps(VALUES)}\n")
        ((name, config),) = load_sweep(self.sweep, "digits").trials.items()
        self.trial = Trial(name, "one-digits", "one", config, home)
        self.straight = Trial(name, "straight", "one", config, home)
        self.known: int | None = None  # the worker that was found last, and ended
        self.process = self.start()

    def start(self) -> "subprocess.Popen[str]":
        self.process = start(self.folder, *command(self.home, self.sweep, *SAVING))
        return self.process

    @property
    def saved(self) -> int:
        return saved_step(self.trial.folder / "checkpoints")

    def worker(self) -> int:
        """The process that trains now, once it has gone a few steps further than what is saved."""
        before, deadline = self.saved, time.monotonic() + 240
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.communicate()
            sign = signs(self.trial.folder / "alive").get(0)
            # One that was told to end may save once more before it does.
            new = sign and not sign["ended"] and sign["pid"] != self.known and psutil.pid_exists(sign["pid"])
            if sign and new and self.saved > before:
                self.known = int(sign["pid"])
                return self.known
            time.sleep(0.05)

    def end(self, seconds: float = 120) -> int:
        out, err = self.process.communicate(timeout=seconds)
        assert "Traceback" not in err, out + err
        return self.process.returncode


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.reliability
def test_through_every_way_to_end(home: Path, tmp_path: Path, figures: Figures) -> None:
    """On Ray: the worker killed with SIGKILL twice and told to end with SIGTERM once; the run asked to stop, told to
    end with SIGTERM, interrupted with Ctrl-C, left by a raylet that was killed, and killed itself. The result is bit
    for bit that of one process."""
    ordeal = Ordeal(home, tmp_path)
    random = np.random.default_rng(0)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        worker = ordeal.worker()
        time.sleep(random.uniform(0, 1))
        os.kill(worker, number)

    ordeal.worker()
    asked = subprocess.run(
        [sys.executable, "-m", "gat_sweep.cli", "stop", "one-digits", "--home", str(home), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(asked.stdout)["running"] == [ordeal.trial.id]
    assert ordeal.end() == EXIT_STOPPED
    stopped_at = ordeal.saved

    ordeal.start()
    ordeal.worker()
    ordeal.process.terminate()
    assert ordeal.end() == EXIT_STOPPED and ordeal.saved > stopped_at

    ordeal.start()
    ordeal.worker()
    os.killpg(ordeal.process.pid, signal.SIGINT)
    assert ordeal.end() == 130

    ordeal.start()
    ordeal.worker()
    (raylet,) = [child for child in psutil.Process(ordeal.process.pid).children() if child.name() == "raylet"]
    raylet.kill()
    assert ordeal.end(60) == 2

    ordeal.start()
    ordeal.worker()
    ordeal.process.kill()
    ordeal.process.communicate()
    ordeal.start()
    assert ordeal.end(400) == 0
    assert left_behind(tmp_path) == []

    train(ordeal.straight, CPU)
    assert_same_state(ordeal.straight, ordeal.trial, STEPS)
    assert [r["value"] for r in rows(ordeal.straight)] == [r["value"] for r in rows(ordeal.trial)]
    attempts = [r for _, r in read_records(ordeal.trial.folder) if r.get("status") == "running"]
    trained = round(Meter(ordeal.trial).read().flops / step_flops(ordeal.trial.config))
    assert trained >= STEPS and len(attempts) == 9
    figures(ends=8, recovered=8, steps_trained_twice=trained - STEPS, of_steps=STEPS, differences=0)
