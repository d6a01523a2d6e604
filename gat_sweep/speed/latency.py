"""Time and memory of image generation (Table 6): G alone, with truncation, with guidance, with the decoder."""

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gat_sweep.config import TrialConfig
from gat_sweep.data.tokenizer import Tokenizer, Vae, load_tokenizer
from gat_sweep.errors import UserError
from gat_sweep.gat import flops
from gat_sweep.gat.condition import Condition
from gat_sweep.gat.generator import Generator
from gat_sweep.speed.clock import held_bytes, make_condition, peak_above, timed
from gat_sweep.text import Say
from gat_sweep.train.device import hardware

IMAGES = 64  # as in the paper
PSI, GUIDANCE = 0.7, 1.5  # all values except 1 cost the same


def measure_latency(
    config: TrialConfig,
    device: torch.device,
    images: int,
    batches: list[int],
    repeats: int,
    tokenizer: Tokenizer | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Generates `images` images `repeats` times for every batch size, after one untimed batch each.

    The weights are random, because time and memory do not depend on them. Returns the content of `gat-sweep latency
    --json`. `seconds_per_image` is the median over the repeats; `seconds_low` and `seconds_high` are the quartiles.
    `peak_bytes` is the size of the weights and the peak of one batch, in a GPU's allocator or, on CPU, in the process.
    Raises UserError when the tokenizer has other channels than G.
    """
    spec = config.generator_spec
    if tokenizer is not None and tokenizer.identity.channels != spec.channels:
        raise UserError(
            f"--tokenizer decodes {tokenizer.identity.channels} channels, but the generator makes {spec.channels}; "
            "give the tokenizer of the recipe"
        )
    torch.manual_seed(0)
    generator = Generator(spec).to(device).eval().requires_grad_(False)
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bfloat16")

    def sample(z: Tensor, y: Condition, psi: float = 1.0, guidance: float = 1.0) -> Tensor:
        with bf16:
            return generator.sample(z, y, psi, guidance)

    ways: dict[str, Callable[[Tensor, Condition], Tensor]] = {
        "generator": sample,
        "truncation": lambda z, y: sample(z, y, psi=PSI),
    }
    if spec.conditional:
        ways["guidance"] = lambda z, y: sample(z, y, guidance=GUIDANCE)
    if tokenizer is not None:
        ways["generator and decoder"] = lambda z, y: tokenizer.decode(sample(z, y))

    weights = held_bytes([generator])
    decoder = held_bytes([tokenizer.model]) if isinstance(tokenizer, Vae) else 0
    rows = []
    for batch in batches:
        for name, way in ways.items():
            say(f"{name}, batch {batch}")
            row = _measure(way, config, device, images, batch, repeats)
            held = weights + (decoder if name == "generator and decoder" else 0)
            rows.append({"what": name, "batch": batch, **row, "peak_bytes": held + row["peak_bytes"]})
    return {
        "recipe": config.recipe,
        "size": config.model.generator,
        "patch": config.model.patch,
        "images": images,
        "repeats": repeats,
        "precision": config.train.precision,
        "tokenizer": None if tokenizer is None else tokenizer.identity.source,
        "weights": "random",
        "weight_bytes": weights,
        "decoder_weight_bytes": decoder,
        "flops_per_image": flops.generator_forward(spec),
        "rows": rows,
        "hardware": hardware(device),
    }


def latency_command(
    configs: list[TrialConfig],
    device: torch.device,
    threads: int | None,
    images: int,
    batches: list[int],
    repeats: int,
    tokenizer: str | None,
    say: Say,
) -> list[dict[str, Any]]:
    """Measures every config; say: gets lines of progress.

    tokenizer: hub id or folder of a VAE, whose decoder is also measured.
    Raises UserError when the VAE is not available or does not fit.
    """
    if sys.platform != "linux":
        raise UserError("latency reads peak memory from /proc; run it on Linux")
    if threads is not None:
        torch.set_num_threads(threads)
    decoder = load_tokenizer(tokenizer, device) if tokenizer else None
    results = []
    for config in configs:

        def say_size(text: str, size: str = config.model.generator) -> None:
            say(f"{size}: {text}")

        results.append(measure_latency(config, device, images, batches, repeats, decoder, say_size))
    return results


def _measure(
    way: Callable[[Tensor, Condition], Tensor],
    config: TrialConfig,
    device: torch.device,
    images: int,
    batch: int,
    repeats: int,
) -> dict[str, Any]:
    spec, random = config.generator_spec, torch.Generator(device).manual_seed(0)

    def inputs(size: int) -> tuple[Tensor, Condition]:
        z = torch.randn(size, spec.z_dim, generator=random, device=device)
        return z, make_condition(spec, size, random)

    parts = [inputs(min(batch, images - start)) for start in range(0, images, batch)]
    way(*parts[0])
    peak = peak_above(lambda: way(*parts[0]), device)

    def everything() -> None:
        for part in parts:
            way(*part)

    seconds = [timed(everything, device) / images for _ in range(repeats)]
    low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75]).tolist()
    return {
        "seconds_per_image": median,
        "seconds_low": low,
        "seconds_high": high,
        "calls": math.ceil(images / batch),
        "peak_bytes": peak,
    }
