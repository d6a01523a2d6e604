"""Runs of which a test writes the files itself."""

import json
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from analysis.table import gflops
from gat_sweep.compute import step_flops
from gat_sweep.monitor.tracking import Tracker
from gat_sweep.monitor.ui import default_uri
from gat_sweep.run.journal import add_record
from gat_sweep.run.table import RunTable
from gat_sweep.run.trial import Trial
from gat_sweep.train.recorder import trial_constants
from helpers.trials import TINY

SIZES = "[S, B, L, XL]"
SIZES_SWEEP = (
    f"about: sizes\nset: {json.dumps(TINY)}\nzip: {{model.generator: {SIZES}, model.discriminator: {SIZES}}}\n"
)


def compute(trial: Trial) -> float:
    config = trial.config
    return float(step_flops(config) * config.train.steps)


def value_of(trial: Trial) -> float:
    return 3e3 * gflops(compute(trial)) ** -0.4 * [0.97, 1.04][trial.config.seed]


def finish(trial: Trial, value: float) -> None:
    add_record(trial.folder, {"step": 0, "status": "running", "gpus": 0.0})
    table = RunTable(trial.table, trial_constants("sizes", "sizes", trial.id, trial.config))
    shared = {"metric": "fd_x", "n": 64, "reference": "r", "protocol": "{}", "flops": compute(trial), "seconds": 1.0}
    table.put(step=trial.config.train.steps, status="done", reason="", value=value, **shared)


TAGS = {"commit": "abc123", "config_hash": "00ff"}
CONFIG = {"model": {"width": 192, "depth": 12}, "train": {"lr": 2e-4, "betas": [0.0, 0.99]}, "data": "digits"}


class PlantedTrial:
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
