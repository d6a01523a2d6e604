"""What a trial costs before it runs: parameters, FLOPs, learning rates. All arithmetic, nothing is built."""

from typing import Any

import torch

from gat_sweep.config import TrialConfig
from gat_sweep.gat import flops
from gat_sweep.gat.discriminator import Discriminator
from gat_sweep.gat.generator import Generator
from gat_sweep.gat.memory import Job, Memory


def parameter_counts(config: TrialConfig) -> tuple[int, int]:
    """Parameters of G and D."""
    with torch.device("meta"):
        networks = Generator(config.generator_spec), Discriminator(config.discriminator_spec)
    g, d = (sum(p.numel() for p in network.parameters()) for network in networks)
    return g, d


def memory_plan(config: TrialConfig, batch: int, plain_attention: bool, available: float) -> Memory:
    """How a worker fits `batch` images into `available` bytes; ValueError when it cannot (gat/memory.py)."""
    specs = config.generator_spec, config.discriminator_spec
    job = Job(*specs, *parameter_counts(config), batch, config.train.precision, plain_attention)
    return job.fit(available)


def iteration_flops(config: TrialConfig) -> dict[str, int]:
    """FLOPs per image of one training iteration, itemised; the teacher's only where it runs."""
    items = flops.iteration(config.generator_spec, config.discriminator_spec)
    if config.teacher and config.discriminator_spec.teacher_width and not config.teacher.cached:
        from gat_sweep.teacher import forward_flops  # timm takes two seconds to import

        items["teacher_forward"] = forward_flops(config.teacher.name)
    return items


def model_info(config: TrialConfig) -> dict[str, Any]:
    """Parameters and FLOPs (2 per multiply-add, one sample) of a trial's two networks.

    `*_params_paper` follows Table 2, which also counts the fixed position tables and, in G, a patch embedder
    of the released code whose output is multiplied by zero and which we do not build.
    """
    g, d = config.generator_spec, config.discriminator_spec
    g_params, d_params = parameter_counts(config)
    unused_embedder = g.patch**2 * g.channels * g.width + g.width
    items = iteration_flops(config)
    return {
        "generator": config.model.generator,
        "discriminator": config.model.discriminator,
        "patch": config.model.patch,
        "g_params": g_params,
        "d_params": d_params,
        "g_params_paper": g_params + g.tokens * g.width + unused_embedder,
        "d_params_paper": d_params + d.tokens * d.width,
        "g_forward_flops": flops.generator_forward(g),
        "d_forward_flops": flops.discriminator_forward(d),
        "iteration_flops_rounded": flops.round_counts(g, d),
        "iteration_flops": items,
        "iteration_flops_total": sum(items.values()),
    }


def trial_plan(config: TrialConfig) -> dict[str, Any]:
    """model_info, the learning rates, and the FLOPs of the whole trial."""
    info = model_info(config)
    total = info["iteration_flops_total"] * config.train.batch * config.train.steps
    return {
        **info,
        "seed": config.seed,
        "lr_g": config.lr_g,
        "lr_d": config.lr_d,
        "steps": config.train.steps,
        "batch": config.train.batch,
        "total_flops": total,
    }


def human(value: float) -> str:
    """1.23 k, M, G, T, P, E, Z."""
    for unit in ["", "k", "M", "G", "T", "P", "E"]:
        if abs(value) < 1000:
            return f"{value:.3g}{unit and ' ' + unit}"
        value /= 1000
    return f"{value:.3g} Z"
