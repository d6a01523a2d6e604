"""Caps on what a run may spend, counted over all of its launches.

The trials' journals show what was spent: every attempt records where it began and how far the previous one came.
Steps that a crash undid count, except those between the last sign of life and the crash. Time counts while a worker
trains or evaluates.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gat_sweep.compute import step_flops
from gat_sweep.errors import UserError
from gat_sweep.files.jsonfile import read_json
from gat_sweep.files.storage import Place, write
from gat_sweep.run.alive import signs
from gat_sweep.run.journal import read_records
from gat_sweep.run.saved import saved_step
from gat_sweep.run.stop import request_stop, stop_reason
from gat_sweep.run.trial import Trial
from gat_sweep.text import human


@dataclass(frozen=True)
class Amount:
    """Training FLOP (2 per multiply-add), and hours of GPUs held."""

    flops: float = 0.0
    gpu_hours: float = 0.0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.flops + other.flops, self.gpu_hours + other.gpu_hours)


@dataclass(frozen=True)
class Budget:
    """Caps of a run; None: no cap."""

    max_flops: float | None = None
    max_gpu_hours: float | None = None

    def excess(self, amount: Amount) -> str:
        """The amount and the cap that it exceeds; "" when it exceeds none."""
        if self.max_flops is not None and amount.flops > self.max_flops:
            return f"{human(amount.flops)}FLOP, above --max-flops {human(self.max_flops)}"
        if self.max_gpu_hours is not None and amount.gpu_hours > self.max_gpu_hours:
            return f"{amount.gpu_hours:.4g} GPU hours, above --max-gpu-hours {self.max_gpu_hours:g}"
        return ""


class Meter:
    """Sum of what all attempts of a trial have spent, up to date while it trains."""

    def __init__(self, trial: Trial):
        self.trial, self.flops_per_step = trial, step_flops(trial.config)
        self.offset = self.steps = 0
        self.hours = 0.0
        self.begin: dict[str, Any] | None = None  # of the latest attempt
        self.last: dict[str, Any] = {}
        self.changed: dict[str, Any] | None = None  # the last change of status

    def read(self) -> Amount:
        """Reads the new records of the journal; returns what was spent so far."""
        for end, record in read_records(self.trial.folder, self.offset):
            self.offset = end
            self._take(record)
        sign = signs(self.trial.folder / "alive").get(0, self.last)
        steps, hours = self._latest(sign, saved_step(self.trial.folder / "checkpoints"))
        return Amount((self.steps + steps) * self.flops_per_step, self.hours + hours)

    def _take(self, record: dict[str, Any]) -> None:
        if "status" in record:
            self.changed = record
        if record.get("status") == "running":
            steps, hours = self._latest(record.get("previous", self.last), record["step"])
            self.steps, self.hours = self.steps + steps, self.hours + hours
            self.begin = record
        self.last = record

    def _latest(self, end: dict[str, Any], saved: int) -> tuple[int, float]:
        """Steps and GPU hours of the latest attempt, up to its last journal line, sign of life or checkpoint."""
        if self.begin is None:
            return 0, 0.0
        step = max(self.last["step"], end["step"], saved)
        seconds = max(0.0, max(self.last["time"], end["time"]) - self.begin["time"])
        return max(0, step - self.begin["step"]), seconds * self.begin["gpus"] / 3600


def needed(trial: Trial, rate: float | None) -> Amount:
    """Amount that brings a trial to its goal from its newest checkpoint, or from the one that it starts from.

    rate: FLOP/s of a GPU; None: unknown, then GPU hours are 0.
    """
    begin = trial.config.start.step if trial.config.start else 0
    steps = max(0, trial.goal - max(begin, saved_step(trial.folder / "checkpoints")))
    flops = steps * step_flops(trial.config)
    return Amount(flops, flops / rate / 3600 if rate and trial.config.workers.gpus else 0.0)


def check_caps(trials: Sequence[Trial], budget: Budget) -> None:
    """Raises UserError when GPU hours are capped and no GPU is used."""
    if budget.max_gpu_hours is not None and not any(trial.config.workers.gpus for trial in trials):
        raise UserError("--max-gpu-hours: the trials use no GPU (workers.gpus is 0); cap them with --max-flops")


def admitted(trials: Sequence[Trial], meters: Sequence[Meter], budget: Budget) -> tuple[list[Trial], dict[str, str]]:
    """The trials that can finish within the caps, in order, and why each other trial is skipped.

    Hours are estimated from the best rate of this run's trials of the same sizes, else from the best rate of all.
    meters: of all trials of the run; what they have spent counts.
    """
    amounts = [(meter.trial, meter.read()) for meter in meters]
    used = sum((amount for _, amount in amounts), Amount())
    rates = [(sizes(t), a.flops / a.gpu_hours / 3600) for t, a in amounts if a.flops and a.gpu_hours]
    chosen, refused = [], {}
    for trial in trials:
        same = [rate for size, rate in rates if size == sizes(trial)]
        if trial.config.start and trial.config.start.trial in refused:
            refused[trial.id] = f"starts from {trial.config.start.trial}, which is skipped"
            continue
        with_it = used + needed(trial, max(same or [rate for _, rate in rates], default=None))
        if excess := budget.excess(with_it):
            refused[trial.id] = f"would bring the run to {excess}"
        else:
            chosen.append(trial)
            used = with_it
    return chosen, refused


def enforce(run: Place, meters: Sequence[Meter], budget: Budget) -> None:
    """Asks all trials of a run to stop once it has spent more than a cap; must be called regularly."""
    excess = budget.excess(sum((meter.read() for meter in meters), Amount()))
    if excess and not all(stop_reason(run, meter.trial.id) for meter in meters):
        request_stop(run, f"the run has spent {excess}")


def kept(run: Place, given: Budget | None = None) -> Budget:
    """The caps of a run: those given now, else those of an earlier launch. Stores them for later launches."""
    file = run / "budget.json"
    before = read_json(file, _read_budget, "remove it, and give the caps again") if file.exists() else Budget()
    given = given or Budget()
    found = Budget(
        before.max_flops if given.max_flops is None else given.max_flops,
        before.max_gpu_hours if given.max_gpu_hours is None else given.max_gpu_hours,
    )
    if found != before:
        write(file, json.dumps(vars(found)).encode())
    return found


def _read_budget(value: Any) -> Budget:
    return Budget(**{name: None if cap is None else float(cap) for name, cap in value.items()})


def sizes(trial: Trial) -> tuple[str, str, int]:
    model = trial.config.model
    return model.generator, model.discriminator, model.patch
