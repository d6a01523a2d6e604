"""The benchmark of a training step against a straightforward one, for `gat-sweep bench`."""

import gc
import statistics
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gat_sweep.config import TrialConfig
from gat_sweep.data.sampler import batch_indices
from gat_sweep.errors import UserError
from gat_sweep.gat import flops
from gat_sweep.gat.discriminator import Discriminator
from gat_sweep.gat.generator import Generator
from gat_sweep.speed.clock import held_bytes, make_batch, matmul_ceiling, peak_above, timed
from gat_sweep.speed.straightforward import Straightforward
from gat_sweep.text import Say
from gat_sweep.train.batch import Batch
from gat_sweep.train.device import chosen_device, hardware
from gat_sweep.train.engine import Engine

# Largest relative difference of the losses in the first step, with the same weights and noise. It comes from rounding
# in the networks, which the 1/sigma^2 of the penalties makes larger.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
LOADER_IMAGES = 50_000  # images in memory to measure the loader, more than fit into any CPU cache


def bench_command(
    configs: list[TrialConfig], device: str | None, threads: int | None, iterations: int, say: Say
) -> list[dict[str, Any]]:
    """Times the engine and the straightforward step for each config; say: gets lines of progress.

    Raises UserError when there is no such device, a config does not fit it, or the losses of the two steps differ.
    """
    if sys.platform != "linux":
        raise UserError("bench reads peak memory from /proc; run it on Linux")
    chosen = chosen_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    results = []
    for config in configs:

        def say_size(text: str, size: str = config.model.generator) -> None:
            say(f"{size}: {text}")

        try:
            results.append(compare(config, chosen, iterations, say_size))
        except ValueError as error:
            raise UserError(str(error)) from None
    return results


def compare(config: TrialConfig, device: torch.device, iterations: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Times `iterations` pairs of steps, after untimed steps of each for the losses, the memory and the warm-up.

    Returns values for JSON and for the command's table; `ratio` is the median over pairs of consecutive steps.
    Raises UserError for a noise that the straightforward step does not have, and ValueError when the losses of the two
    steps differ by more than the rounding of the precision.
    """
    if config.text:
        raise UserError("the straightforward step has no captions; take a recipe without text")
    if config.mng.mixing != "paper":
        raise UserError("the straightforward step has the noise of the paper only; add --set mng.mixing=paper")
    engine = Engine(config, device)
    plain = Straightforward(config, engine.generator, engine.discriminator, device)
    random = torch.Generator(device).manual_seed(0)
    steps: dict[str, Callable[[Batch], dict[str, Tensor]]] = {
        "engine": engine.iterate,
        "straightforward": plain.step,
    }

    say("comparing losses on the same noise")
    batch = make_batch(config, random)
    first = {name: step(batch) for name, step in steps.items()}
    difference = loss_difference(first["engine"], first["straightforward"])
    precision = config.train.precision
    if not difference <= TOLERANCE[precision]:
        raise ValueError(f"relative difference of losses is {difference:.1e}, more than the rounding of {precision}")
    ceiling = matmul_ceiling(device, precision)

    seconds: dict[str, list[float]] = {name: [] for name in steps}
    held = {"engine": held_bytes(engine.parts().values()), "straightforward": held_bytes(plain.parts())}
    peaks = {name: held[name] + peak_above(lambda step=step: step(batch), device) for name, step in steps.items()}  # type: ignore[misc]
    for i in range(-2, iterations):  # two pairs warm up; the engine captures its graph in the second
        batch = make_batch(config, random)
        gc.collect()
        for name, step in steps.items():
            elapsed = timed(lambda step=step, batch=batch: step(batch), device)  # type: ignore[misc]
            if i >= 0:
                seconds[name].append(elapsed)
        if i >= 0:
            say(f"{i + 1}/{iterations}: " + ", ".join(f"{name} {times[-1]:.3f} s" for name, times in seconds.items()))

    counts = {
        "engine": sum(flops.iteration(config.generator_spec, config.discriminator_spec).values()),
        "straightforward": straightforward_flops(config),
    }
    pairs = [b / a for a, b in zip(seconds["engine"], seconds["straightforward"], strict=True)]
    low, ratio, high = np.quantile(pairs, [0.25, 0.5, 0.75]).tolist()
    size = config.train.batch
    return {
        "recipe": config.recipe,
        "size": config.model.generator,
        "patch": config.model.patch,
        "batch": size,
        "chunk": engine.memory.chunk,
        "precision": precision,
        "compiled": engine.compiled,
        "ceiling_flops_per_second": ceiling,
        "loss_difference": difference,
        **{name: _report(seconds[name], counts[name], size, ceiling, peaks[name]) for name in steps},
        "ratio": ratio,
        "ratio_low": low,  # quartiles
        "ratio_high": high,
        "loader_images_per_second": loader_rate(config, LOADER_IMAGES, device),
        "hardware": hardware(device),
    }


def _report(seconds: list[float], flops_per_image: int, batch: int, ceiling: float, peak: int) -> dict[str, Any]:
    median = statistics.median(seconds)
    rate = flops_per_image * batch / median
    return {
        "seconds_median": median,
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "images_per_second": batch / median,
        "flops_per_image": flops_per_image,
        "flops_per_second": rate,
        "mfu": rate / ceiling,
        "peak_bytes": peak,
    }


def loss_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest difference between losses of one image, relative to the mean loss."""
    names = ["loss_d", "loss_g"]
    return max(((a[n] - b[n]).abs().max() / b[n].abs().mean()).item() for n in names)


def straightforward_flops(config: TrialConfig) -> int:
    """FLOPs per image of the straightforward step, counted by torch on the meta device."""
    # Torch's counter fails on a view of a parameter that enters a recomputed block. Learned positions cost no product.
    sections = {
        "train": config.train.model_copy(update={"precision": "float32", "batch": 1}),
        "model": config.model.model_copy(update={"positions": "fixed"}),
    }
    config = config.model_copy(update=sections)
    meta = torch.device("meta")
    with meta:
        networks = Generator(config.generator_spec), Discriminator(config.discriminator_spec)
    plain = Straightforward(config, *networks, meta)
    batch = make_batch(config, torch.Generator())
    with FlopCounterMode(display=False) as counter:
        plain.steps(_on_meta(batch))
    return counter.get_total_flops() // config.train.batch


def _on_meta(given: Any) -> Any:
    """A batch, or draws, with every tensor on the meta device."""
    if isinstance(given, Tensor):
        return given.to("meta")
    if not is_dataclass(given) or isinstance(given, type):
        return given
    return replace(given, **{field.name: _on_meta(getattr(given, field.name)) for field in fields(given)})


def loader_rate(config: TrialConfig, images: int, device: torch.device) -> float:
    """Images per second of sampling and gathering latents, from `images` latents in the host's memory."""
    spec, batch = config.generator_spec, config.train.batch
    latents = (
        torch.zeros(images, 1)
        .expand(-1, spec.channels * spec.side**2)
        .reshape(images, spec.channels, spec.side, spec.side)
    )
    steps = 20
    batch_indices(images, batch, 0, 0)  # the order of an epoch is computed once, so it is not timed

    def load() -> None:
        for step in range(steps):
            latents[torch.from_numpy(batch_indices(images, batch, 0, step))].to(device)

    return steps * batch / timed(load, device)
