"""Cost of a trial before it runs: parameters, FLOPs, learning rates, memory and hours, all by arithmetic."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

from gat_sweep.compute import iteration_flops, online_teacher, step_flops, text_encoder_cost
from gat_sweep.config import TrialConfig
from gat_sweep.gat import flops
from gat_sweep.gat.memory import Job, Memory
from gat_sweep.gat.spec import DiscriminatorSpec, GeneratorSpec


def parameter_counts(config: TrialConfig) -> tuple[int, int]:
    """Parameters of G and D."""
    return _counted(config.generator_spec, config.discriminator_spec)


@cache  # takes a second for large networks, and the trials of a sweep share a few
def _counted(g: GeneratorSpec, d: DiscriminatorSpec) -> tuple[int, int]:
    import torch  # takes seconds, which commands that only read files should not pay

    from gat_sweep.gat.discriminator import Discriminator
    from gat_sweep.gat.generator import Generator

    with torch.device("meta"):
        networks = Generator(g), Discriminator(d)
    g_params, d_params = (sum(p.numel() for p in network.parameters()) for network in networks)
    return g_params, d_params


def discriminator_precision(config: TrialConfig) -> str:
    """Precision of D in its own step, "float32" or "bfloat16" (objective.penalty_precision)."""
    objective = config.objective
    exact = objective.penalty_precision == "tf32" and objective.gp_weight
    return "float32" if exact else config.train.precision


def compiles(config: TrialConfig, on_cpu: bool) -> bool:
    """Whether a trial compiles its blocks: as workers.compile says, by default on CUDA."""
    asked = config.workers.compile
    return not on_cpu if asked is None else asked


def memory_job(config: TrialConfig, batch: int, on_cpu: bool) -> Job:
    """Memory job of a worker with `batch` images per step (see gat/memory.py)."""
    specs = config.generator_spec, config.discriminator_spec
    precisions = config.train.precision, discriminator_precision(config)
    teacher = online_teacher(config)
    params = teacher.params if teacher else 0
    if text := config.text:
        params += text_encoder_cost(text.name, text.folder, text.tokens).params
    return Job(*specs, *parameter_counts(config), batch, *precisions, on_cpu, compiles(config, on_cpu), params)


def memory_plan(config: TrialConfig, batch: int, on_cpu: bool, available: float) -> Memory:
    """Choices that fit `batch` images of a worker into `available` bytes. Raises ValueError when nothing fits."""
    return memory_job(config, batch, on_cpu).fit(available)


def model_info(config: TrialConfig) -> dict[str, Any]:
    """Parameters and FLOPs (2 per multiply-add, one sample) of a trial's two networks.

    `*_params_paper` follows Table 2, which counts the tables of positions also where they are fixed, and in G a patch
    embedder.
    The released code multiplies the output of that embedder by zero, so we do not build it.
    """
    g, d = config.generator_spec, config.discriminator_spec
    g_params, d_params = parameter_counts(config)
    fixed = g.positions == "fixed"
    unused_embedder = g.patch**2 * g.channels * g.width + g.width
    items = iteration_flops(config)
    return {
        "generator": config.model.generator,
        "discriminator": config.model.discriminator,
        "patch": config.model.patch,
        "g_params": g_params,
        "d_params": d_params,
        "g_params_paper": g_params + fixed * g.tokens * g.width + unused_embedder,
        "d_params_paper": d_params + fixed * d.tokens * d.width,
        "g_forward_flops": flops.generator_forward(g),
        "d_forward_flops": flops.discriminator_forward(d),
        "iteration_flops_rounded": flops.round_counts(g, d),
        "iteration_flops": items,
        "iteration_flops_total": sum(items.values()),
    }


@dataclass(frozen=True)
class Rate:
    """Speed of one worker: seconds per step with its share of the batch, and per sample of an evaluation."""

    step: float
    sample: float


def rate_at(config: TrialConfig, mfu: float, peak: float) -> Rate:
    """Estimated rate at `mfu`, a share of a worker's `peak` (FLOP/s). An evaluation counts only G's forward."""
    forward = flops.generator_forward(config.generator_spec)
    return Rate(step_flops(config) / config.workers.least / (mfu * peak), forward / (mfu * peak))


def trial_plan(config: TrialConfig, rate: Rate | None = None, price: float | None = None) -> dict[str, Any]:
    """Plan of a whole trial: model_info, learning rates, FLOPs and memory, and with a rate also hours.

    A trial that continues another counts only its own steps. price: cost of a worker for one hour.
    `memory_bytes` is the need of a worker that recomputes nothing, or that fits workers.memory_gib if that is set.
    `memory_bytes_least` is the need with every block of G recomputed and one pair of images per call of D.
    An elastic trial is planned with its least workers.
    """
    info = model_info(config)
    train, workers = config.train, config.workers
    begin = config.start.step if config.start else 0
    images = math.ceil(train.batch / workers.least)
    job = memory_job(config, images, on_cpu=not workers.gpus)
    most, least = job.memory(images, 0).total, job.memory(1, config.generator_spec.depth).total
    found = {
        **info,
        "seed": config.seed,
        "lr_g": config.lr_g,
        "lr_d": config.lr_d,
        "start": config.start.trial if config.start else None,
        "steps": train.steps - begin,
        "batch": train.batch,
        "workers": workers.least,
        "total_flops": step_flops(config) * (train.steps - begin),
        "memory_bytes": most if workers.memory_gib is None else job.fit(workers.memory_gib * 2**30).total,
        "memory_bytes_least": least,
    }
    if rate:
        evaluations = sum(map(train.evaluates, range(begin + 1, train.steps + 1)))
        samples = evaluations * config.eval.samples / workers.least
        hours = ((train.steps - begin) * rate.step + samples * rate.sample) / 3600
        found |= {"hours": hours, "worker_hours": hours * workers.least}
        found |= {"cost": hours * workers.least * price} if price is not None else {}
    return found
