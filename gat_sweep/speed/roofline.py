"""A roofline of one training iteration on a GPU: what it must compute and move, at the rates of a device.

It is a bound to hold a measurement against, not a forecast: every fused pass of a compiled block reads its inputs and
writes its outputs once, and nothing else is moved.
"""

import math
from dataclasses import dataclass
from typing import Any

from gat_sweep.compute import iteration_flops
from gat_sweep.config import TrialConfig
from gat_sweep.errors import UserError
from gat_sweep.gat import flops
from gat_sweep.gat.spec import NetworkSpec, ffn_width
from gat_sweep.plan import memory_job, parameter_counts
from gat_sweep.text import human


@dataclass(frozen=True)
class Device:
    """Rates of a GPU in bfloat16."""

    source: str
    memory: float  # bytes
    products: float  # FLOP/s of large matrix products
    attention: float  # FLOP/s of fused attention, forward and backward, heads of 64
    copy: float  # bytes/s of memory, reads and writes together
    launch: float  # seconds from one kernel to the next when Python starts them
    replay: float  # the same in a CUDA graph


_HOPPER: dict[str, float] = {"products": 816e12, "attention": 150e12, "launch": 40e-6, "replay": 1e-6}
DEVICES = {
    "h200": Device(
        source="measured on one H200 (docs/performance.md), but for the gap in a graph, which is assumed",
        memory=139.8 * 2**30,
        copy=4.28e12,
        **_HOPPER,
    ),
    "h100": Device(
        source="assumed: an H200's processor, and 0.8 of the 3.35 TB/s of an H100 SXM's datasheet",
        memory=80e9,
        copy=2.7e12,
        **_HOPPER,
    ),
}
# Kernels of one pass (forward or backward) of a compiled block: 38 for S and 39 for L on an H200, counted over
# everything that an iteration launches.
LAUNCHES = 39
# Bytes per parameter: AdamW reads weight, gradient and two moments and writes three of them; the norm reads the
# gradient; a copy in bfloat16 is made once for the forward passes.
OPTIMIZER = 7 * 4 + 4 + (4 + 2)
AVERAGE = 3 * 4  # the EMA of a parameter of G


def pass_bytes(spec: NetworkSpec) -> tuple[float, float, float]:
    """Bytes per token and channel of one block: forward, backward, backward without gradients of weights.

    The residual stream has 4 bytes, everything else 2. Products and attention are not counted here.
    """
    ratio = ffn_width(spec.width) / spec.width
    forward: float = 2 * (4 + 2 + 4 + 2)  # stream and branch in, stream and normed input out; twice in a block
    forward += 4 + 4  # qk-norm and RoPE of q and k: in, out
    forward += 6 * ratio  # silu(gate) * value: two in, one out
    # Gradients of stream and normed input, and the stream, in; two gradients out; twice in a block.
    images: float = 2 * (4 + 2 + 4 + 4 + 2)
    images += 4 + 4 + 4  # gradients of q and k in, q and k in, gradients out
    images += 10 * ratio  # gradient, gate and value in, two gradients out
    weights: float = 2 * 2  # what LayerScale or the modulation multiplied
    weights += 6 + 2 + 4 * ratio + 2  # gradients of biases are sums over the gradients of four products
    weights += 2 * ratio  # silu(gate) * value again, for the product's weight
    return forward, images + weights, images


def roofline(config: TrialConfig, name: str, batch: int | None = None) -> dict[str, Any]:
    """Rows of the roofline of one iteration of `batch` images on one device (default: a worker's share).

    Raises UserError for an unknown device, a precision other than bfloat16, and images that do not fit.
    """
    if name not in DEVICES:
        raise UserError(f"unknown device '{name}'; use {' or '.join(DEVICES)}")
    if config.train.precision != "bfloat16":
        raise UserError("the rates of --roofline are those of bfloat16; add --set train.precision=bfloat16")
    device, images = DEVICES[name], batch or math.ceil(config.train.batch / config.workers.least)
    g, d = config.generator_spec, config.discriminator_spec
    try:
        memory = memory_job(config, images, on_cpu=False).fit(device.memory)
    except ValueError as error:
        raise UserError(str(error)) from None
    items = iteration_flops(config)
    teacher = items.pop("teacher_forward", 0)
    total = images * sum(items.values())
    attention = images * flops.iteration_attention(g, d)

    # Images that pass through the blocks of D: four inputs in the D step; real and fake in the G step.
    forward_d, backward_d, images_d = pass_bytes(d)
    forward_g, backward_g, _ = pass_bytes(g)
    one_d, one_g = ((d.tokens + 1) * d.width * d.depth, (g.tokens + g.text_tokens) * g.width * g.depth)
    moved = 4 * one_d * (forward_d + backward_d) + one_d * (2 * forward_d + images_d) + one_g * (forward_g + backward_g)
    params_g, params_d = parameter_counts(config)
    updated = OPTIMIZER * (params_g + params_d) + AVERAGE * params_g

    calls, calls_g = -(-images // memory.chunk), -(-images // memory.chunk_g)
    passes = d.depth * (2 * calls + 3 * calls_g) + 2 * g.depth + memory.checkpointed
    launches = LAUNCHES * passes

    amounts = [
        ("matrix products", total - attention, "FLOP", device.products),
        ("attention", attention, "FLOP", device.attention),
        ("elementwise", images * moved, "B", device.copy),
        ("optimizers, EMA", updated, "B", device.copy),
        ("teacher", images * teacher, "FLOP", device.products),
    ]
    rows: list[dict[str, Any]] = [
        {"part": part, "amount": amount, "unit": unit, "rate": rate, "ms": 1e3 * amount / rate}
        for part, amount, unit, rate in amounts
        if amount
    ]
    work = sum(row["ms"] for row in rows) / 1e3
    graph, started = launches * device.replay, launches * device.launch
    best = work + graph
    return {
        "device": name,
        "rates": device.source,
        "batch": images,
        "chunk": memory.chunk,
        "rows": rows,
        "launches": launches,
        "ms_launches_graph": 1e3 * graph,
        "ms_launches": 1e3 * started,
        "ms": 1e3 * best,
        "ms_without_graph": 1e3 * max(work, started),
        "mfu": total / best / device.products,
        "images_per_second": images / best,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The roofline as text."""
    text = [
        f"roofline of an iteration of {found['batch']} images on {found['device']}, {found['chunk']} pairs a call of D",
        f"rates: {found['rates']}",
    ]
    for row in found["rows"]:
        amount, rate = (f"{human(row[key])}{row['unit']}" for key in ("amount", "rate"))
        text.append(f"  {row['part']:20} {amount:>12}  at {rate + '/s':>12} {row['ms']:8.1f} ms")
    kernels = f"{found['launches']:,}"
    text.append(f"  {'gaps in a CUDA graph':20} {kernels:>12}  {'kernels':15} {found['ms_launches_graph']:8.1f} ms")
    speed = f"{human(found['images_per_second'])} images/s, MFU {100 * found['mfu']:.0f} %"
    text.append(f"  {'together':49} {found['ms']:10.1f} ms, {speed}")
    started, least = (f"{found[key]:.0f} ms" for key in ("ms_launches", "ms_without_graph"))
    text.append(f"Without a graph at least {least}: the processor takes {started} to start the kernels.")
    return text
