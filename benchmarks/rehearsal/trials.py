"""The trials of a rehearsal, and the numbers that they have to come to."""

import math
from pathlib import Path

from gat_sweep.config import TrialConfig
from gat_sweep.sweep import Sweep, load_sweep

GPUS = 8  # of a node, and of a worker
STEP_S = 300.0  # virtual seconds of a step
BUSY = 0.6  # share of the machines' time that the steps take; the rest is for faults and restarts
SAVE_MINUTES = 15  # virtual
HANG_S = 10.0  # real seconds: a machine that is busy with other work must not look like a hang
WORKERS = {"S": "1", "B": "2", "L": "{min: 1, max: 4}", "XL": "4"}  # small ones share workers, L is elastic
LENGTHS = {"S": 0.5, "B": 1.0, "L": 1.0, "XL": 1.5}  # in units of the sweep's
PLACES = {"S": 1, "B": 2, "L": 1, "XL": 4}  # workers of a step of STEP_S
NAMES = ("adversarial_d", "logit_real", "logit_fake")
EVALUATED_S = 300.0  # virtual seconds of an evaluation


def rehearsed_sweep(folder: Path, trials: int, nodes: int, days: float, speed: float) -> Sweep:
    """A sweep of four sizes, whose steps keep the nodes busy for BUSY of the days.

    trials: their number, a multiple of 4; speed: virtual seconds in a real one.
    """
    hours = BUSY * 24 * days * nodes / (trials / 4 * sum(PLACES[size] * LENGTHS[size] for size in PLACES))
    unit = hours * 3600 / STEP_S
    points = []
    for size, workers in WORKERS.items():
        steps = max(12, round(unit * LENGTHS[size]))
        every = f"train.eval_every: {math.ceil(steps / 5)}, train.log_every: {math.ceil(steps / 30)}"
        points.append(
            f"  - {{model.generator: {size}, model.discriminator: {size}, workers.count: {workers}, "
            f"train.steps: {steps}, {every}}}"
        )
    save, hang = SAVE_MINUTES / speed, HANG_S / 60
    shared = f"workers.gpus: {GPUS}, workers.cpus: 8, workers.save_minutes: {save}, workers.hang_minutes: {hang}"
    file = folder / "rehearsal.yaml"
    file.write_text(f"about: a rehearsal\nset: {{{shared}}}\npoints:\n" + "\n".join(points) + "\n", encoding="utf-8")
    return load_sweep(file, "digits", seeds=list(range(trials // 4)))


def planted_fault(config: TrialConfig) -> str:
    """What is wrong with a trial: "fails" in each attempt, "diverges" half-way, or ""."""
    return {("S", 0): "fails", ("B", 0): "diverges"}.get((config.model.generator, config.seed), "")


def diverges_at(config: TrialConfig) -> int:
    return config.train.steps // 2


def term(config: TrialConfig, name: str, step: int) -> float:
    """A loss of one step, the step from `step` - 1 to `step`."""
    return 0.4 + 0.1 * math.sin(0.37 * step + config.seed + NAMES.index(name))


def distance(config: TrialConfig, step: int) -> float:
    return 20 + config.seed + 1000 / (step + 1) + len(config.model.generator)


def last_step(config: TrialConfig) -> int:
    """The step at which a trial ends that does not fail."""
    return diverges_at(config) if planted_fault(config) == "diverges" else config.train.steps


def evaluated_steps(config: TrialConfig) -> list[int]:
    """Steps with a distance; the divergence is found before its step is evaluated."""
    end = last_step(config) - (planted_fault(config) == "diverges")
    return [step for step in range(1, end + 1) if config.train.evaluates(step)]


def logged_means(config: TrialConfig, name: str) -> dict[int, float]:
    """The mean of a loss at each log point, over the steps since the one before."""
    train, found, since = config.train, {}, 0
    end = last_step(config) - (planted_fault(config) == "diverges")
    for step in range(1, end + 1):
        if step % train.log_every == 0 or step == train.steps:
            found[step] = sum(term(config, name, s) for s in range(since + 1, step + 1)) / (step - since)
            since = step
    return found
