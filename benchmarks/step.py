"""`gat-sweep bench`: the engine beside the straightforward step, interleaved in one process on the same noise."""

import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.straightforward import Straightforward
from gat_sweep.config import TrialConfig
from gat_sweep.data.sampler import batch_indices
from gat_sweep.gat import flops
from gat_sweep.gat.augment import AugmentDraws
from gat_sweep.gat.discriminator import Discriminator
from gat_sweep.gat.generator import Generator
from gat_sweep.gat.losses import Draws
from gat_sweep.text import human
from gat_sweep.train.engine import Engine, draw
from gat_sweep.train.feed import Batch
from gat_sweep.version import source_commit

# The first step's losses of both, same weights and noise: rounding of the precision, through a network and the
# 1/sigma^2 of the penalties.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}

LOADER_IMAGES = 50_000  # held for the loader's measurement: more than any cache holds


def compare(config: TrialConfig, device: torch.device, iterations: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Times `iterations` pairs of steps after untimed ones of each, for the losses, the memory and to warm up.

    Returns what `show` prints, ready for JSON; `ratio` is over pairs of neighbours in time.
    Raises ValueError when the two steps' losses differ by more than the rounding of the precision.
    """
    engine = Engine(config, device)
    plain = Straightforward(config, engine.generator, engine.discriminator, device)
    random = torch.Generator(device).manual_seed(0)
    steps: dict[str, Callable[[Batch], dict[str, Tensor]]] = {
        "engine": lambda batch: engine.iterate(*batch),
        "straightforward": lambda batch: plain.step(*batch),
    }

    say("comparing losses on the same noise")
    batch = make_batch(config, random)
    first = {name: step(batch) for name, step in steps.items()}
    difference = loss_difference(first["engine"], first["straightforward"])
    precision = config.train.precision
    if not difference <= TOLERANCE[precision]:
        raise ValueError(f"losses differ by {difference:.1e} relative, more than the rounding of {precision}")
    ceiling = matmul_ceiling(device, precision)

    seconds: dict[str, list[float]] = {name: [] for name in steps}
    held = {"engine": held_bytes(engine.parts().values()), "straightforward": held_bytes(plain.parts())}
    peaks = {name: held[name] + peak_above(lambda step=step: step(batch), device) for name, step in steps.items()}  # type: ignore[misc]
    for i in range(-1, iterations):  # the first pair warms up
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
        "compiled": config.workers.compile,
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


def make_batch(config: TrialConfig, random: torch.Generator) -> Batch:
    """Gaussian images, classes, codes and teacher tokens of a config's shapes, and the draws of an iteration."""
    spec, size, device = config.generator_spec, config.train.batch, random.device
    real = torch.randn(size, spec.channels, spec.side, spec.side, generator=random, device=device)
    y = torch.randint(0, spec.classes, (size,), generator=random, device=device) if spec.classes else None
    z = torch.randn(size, spec.z_dim, generator=random, device=device)
    width = config.discriminator_spec.teacher_width
    teacher = torch.randn(size, 1 + spec.tokens, width, generator=random, device=device) if width else None
    return real, y, z, teacher, draw(config, size, random, True), draw(config, size, random, False)


def loss_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest difference of an image's loss, relative to the mean loss."""
    names = ["loss_d", "loss_g"]
    return max(((a[n] - b[n]).abs().max() / b[n].abs().mean()).item() for n in names)


def timed(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of a step, with the device idle before and after."""
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - start


def peak_above(step: Callable[[], object], device: torch.device) -> int:
    """Bytes a step needs at its worst above what is held before it: by a GPU's allocator, or by the process."""
    _wait(device)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status_bytes("VmRSS")
    step()
    return max(0, _status_bytes("VmHWM") - before)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def held_bytes(parts: Iterable[Any]) -> int:
    """Bytes of the tensors in state dicts: weights, moments, averages."""
    tensors = torch.utils._pytree.tree_leaves([part.state_dict() for part in parts])
    return sum(t.nbytes for t in tensors if isinstance(t, Tensor))


def matmul_ceiling(device: torch.device, precision: str) -> float:
    """The best rate, FLOP/s, that large square matrix products reach here; nothing can be faster than that."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    best = 0.0
    for side in [1024, 2048] if device.type == "cpu" else [4096, 8192]:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        for _ in range(8):
            best = max(best, 2 * side**3 / timed(lambda a=a, b=b: a @ b, device))  # type: ignore[misc]
    return best


def straightforward_flops(config: TrialConfig) -> int:
    """FLOPs per image of the straightforward step, counted by torch on the meta device."""
    config = config.model_copy(update={"train": config.train.model_copy(update={"precision": "float32", "batch": 1})})
    meta = torch.device("meta")
    with meta:
        networks = Generator(config.generator_spec), Discriminator(config.discriminator_spec)
    plain = Straightforward(config, *networks, meta)
    real, y, z, teacher, draws_d, draws_g = make_batch(config, torch.Generator())
    inputs = [t if t is None else t.to(meta) for t in (real, y, z, teacher)]
    with FlopCounterMode(display=False) as counter:
        plain.steps(*inputs, *(_on_meta(draws) for draws in (draws_d, draws_g)))  # type: ignore[arg-type]
    return counter.get_total_flops() // config.train.batch


def _on_meta(draws: Draws) -> Draws:
    assert draws.augment is not None
    moved = AugmentDraws(**{f.name: getattr(draws.augment, f.name).to("meta") for f in fields(draws.augment)})
    return Draws(draws.mng.to("meta"), None if draws.penalty is None else draws.penalty.to("meta"), moved)


def loader_rate(config: TrialConfig, images: int, device: torch.device) -> float:
    """Images per second of the sampler and the gather of latents, out of `images` held in the host's memory."""
    spec, batch = config.generator_spec, config.train.batch
    latents = (
        torch.zeros(images, 1)
        .expand(-1, spec.channels * spec.side**2)
        .reshape(images, spec.channels, spec.side, spec.side)
    )
    steps = 20
    batch_indices(images, batch, 0, 0)  # an epoch's order is made once

    def load() -> None:
        for step in range(steps):
            latents[torch.from_numpy(batch_indices(images, batch, 0, step))].to(device)

    return steps * batch / timed(load, device)


def hardware(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        models = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
        name = models[0].split(":")[1].strip() if models else platform.processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": source_commit(),
    }


def show(result: dict[str, Any], console: Console) -> None:
    """A comparison's JSON as a table and three lines."""
    title = f"{result['recipe']} {result['size']}/{result['patch']}, batch {result['batch']}, {result['precision']}"
    title += ", compiled" if result["compiled"] else ""
    table = Table(title=title, title_justify="left")
    for name in ["", "ms/step", "min", "max", "images/s", "FLOP/image", "FLOP/s", "MFU", "peak memory"]:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for name in ["engine", "straightforward"]:
        row = result[name]
        times = [f"{1000 * row[key]:.1f}" for key in ("seconds_median", "seconds_min", "seconds_max")]
        counts = [human(row["flops_per_image"]), human(row["flops_per_second"])]
        memory = f"{row['peak_bytes'] / 2**20:,.0f} MiB"
        table.add_row(name, *times, f"{row['images_per_second']:.4g}", *counts, f"{100 * row['mfu']:.0f} %", memory)
    console.print(table)
    loader = result["loader_images_per_second"] / result["engine"]["images_per_second"]
    lines = [
        f"ratio {result['ratio']:.2f} (quartiles {result['ratio_low']:.2f} to {result['ratio_high']:.2f}); "
        f"losses differ by {result['loss_difference']:.1e} relative",
        f"matrix-multiply ceiling {human(result['ceiling_flops_per_second'])}FLOP/s; "
        f"the loader delivers {loader:.0f} times what the step consumes",
        "  ".join(f"{key} {value}" for key, value in result["hardware"].items()),
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
