"""The table and journal of a trial as training would leave them, with values on a law of size and length."""

from collections.abc import Callable

import numpy as np

from analysis.table import gflops
from gat_sweep.compute import step_flops
from gat_sweep.config import TrialConfig
from gat_sweep.run.journal import add_record
from gat_sweep.run.table import RunTable
from gat_sweep.run.trial import Trial
from gat_sweep.train.recorder import trial_constants

RATE = 2e12  # FLOP per second of training in the planted run


def law(config: TrialConfig, step: int) -> float:
    """Its best size at 100 to 400 GFLOPs lies between S and XL."""
    cost = gflops(step_flops(config)) / config.train.batch
    return 20 + 100 * (cost / 4e-3) ** -0.5 + 100 * (step * config.train.batch / 5e4) ** -0.5


def train(
    trial: Trial,
    noise: float = 0.0,
    last: int | None = None,
    value_of: Callable[[TrialConfig, int], float] = law,
) -> None:
    """Write the rows that training would, with values on a law."""
    config, random = trial.config, np.random.default_rng(trial.config.seed)
    add_record(trial.folder, {"step": 0, "status": "running", "gpus": 0.0})
    table = RunTable(
        trial.table,
        {**trial_constants(trial.run, trial.sweep, trial.id, config), "data_images": 10**9},
    )
    shared = {"metric": "fd_x", "n": 64, "reference": "r", "protocol": "{}"}
    steps = [step for step in range(1, config.train.steps + 1) if config.train.evaluates(step)]
    for step in [step for step in steps if step <= (last or steps[-1])]:
        flops = float(step_flops(config)) * step
        value = value_of(config, step) * np.exp(random.normal(0, noise))
        more = {"flops": flops, "images": step * config.train.batch, "seconds": flops / RATE, **shared}
        table.put(step, status="done" if step == steps[-1] else "running", reason="", value=value, **more)
