"""Growth of a step's time and memory with width, depth and tokens: `python -m benchmarks.growth --out PATH`.

Writes PATH.json, PATH.svg and PATH.png: seconds and peak bytes per image against the FLOPs per image.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import click
import matplotlib
import torch
from matplotlib.figure import Figure
from rich.progress import track

from analysis.figures.style import STYLE
from gat_sweep.config import TrialConfig
from gat_sweep.gat import flops
from gat_sweep.recipe import load_recipe, resolve
from gat_sweep.speed.clock import held_bytes, make_batch, matmul_ceiling, peak_above, timed
from gat_sweep.train.device import hardware, keep_freed_memory
from gat_sweep.train.engine import Engine

# One property grows at a time from width 64, depth 4 and 16 tokens (8x8 latents in patches of 2); heads are 32 wide.
WIDTHS, DEPTHS, SIDES = [32, 64, 128, 256, 512], [4, 8, 16, 32], [8, 16, 32]
MARKERS = {"width": "o", "depth": "s", "tokens": "^"}


def network(width: int = 64, depth: int = 4, side: int = 8, batch: int = 16) -> TrialConfig:
    ladder = {"S": {"width": width, "depth": depth, "heads": width // 32}}
    recipe = load_recipe("digits") | {"ladder": ladder}
    return resolve(recipe, {"data.side": side, "data.channels": 4, "train.batch": batch})


def grown() -> list[tuple[str, int, TrialConfig]]:
    """Return (the property that grows, its value, the config)."""
    return [
        *(("width", width, network(width=width)) for width in WIDTHS),
        *(("depth", depth, network(depth=depth)) for depth in DEPTHS),
        *(("tokens", (side // 2) ** 2, network(side=side)) for side in SIDES),
    ]


def measure(config: TrialConfig, device: torch.device, iterations: int) -> dict[str, Any]:
    """Measure the median, fastest and slowest step, and its peak memory, per image."""
    engine, random, batch = Engine(config, device), torch.Generator(device).manual_seed(0), config.train.batch
    engine.iterate(make_batch(config, random))
    peak = peak_above(lambda: engine.iterate(make_batch(config, random)), device)
    seconds = []
    for _ in range(iterations):
        inputs = make_batch(config, random)
        seconds.append(timed(lambda inputs=inputs: engine.iterate(inputs), device))  # type: ignore[misc]
    activations = engine.memory.activations_g + engine.memory.activations_d
    return {
        "flops_per_image": sum(flops.iteration(config.generator_spec, config.discriminator_spec).values()),
        "seconds_per_image": statistics.median(seconds) / batch,
        "seconds_low": min(seconds) / batch,
        "seconds_high": max(seconds) / batch,
        "peak_bytes_per_image": peak / batch,
        "planned_bytes_per_image": activations / batch,
        "held_bytes": held_bytes(engine.parts().values()),
    }


def draw(rows: list[dict[str, Any]], ceiling: float, path: Path) -> None:
    """Draw time and memory in two panels that are readable in grey."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    time_axis, memory_axis = figure.subplots(1, 2)
    for what, marker in MARKERS.items():
        mine = [row for row in rows if row["grows"] == what]
        x = [row["flops_per_image"] for row in mine]
        y = [1000 * row["seconds_per_image"] for row in mine]
        spread = [
            [1000 * (row["seconds_per_image"] - row["seconds_low"]) for row in mine],
            [1000 * (row["seconds_high"] - row["seconds_per_image"]) for row in mine],
        ]
        low, high = mine[0]["value"], mine[-1]["value"]
        time_axis.errorbar(x, y, spread, marker=marker, label=f"{what} {low} to {high}", capsize=2, lw=1)
        memory_axis.plot(x, [row["peak_bytes_per_image"] / 2**20 for row in mine], marker=marker, lw=1, label=what)
        planned = [row["planned_bytes_per_image"] / 2**20 for row in mine]
        memory_axis.plot(x, planned, marker=marker, mfc="none", ls=":", lw=1, color="0.4")
    ends = [min(row["flops_per_image"] for row in rows), max(row["flops_per_image"] for row in rows)]
    time_axis.plot(ends, [1000 * end / ceiling for end in ends], "k--", lw=1, label="matrix-multiply ceiling")
    memory_axis.plot([], [], ":", color="0.4", marker="o", mfc="none", label="the plan's memory model")
    time_axis.set(xscale="log", yscale="log", xlabel="FLOP per image and iteration", ylabel="ms per image")
    memory_axis.set(xscale="log", yscale="log", xlabel="FLOP per image and iteration", ylabel="peak MiB per image")
    for axis in (time_axis, memory_axis):
        axis.legend(frameon=False, fontsize=8)
        axis.grid(alpha=0.2)
    for suffix in ("svg", "png"):
        figure.savefig(path.with_suffix(f".{suffix}"), dpi=150)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Path without suffix.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--iterations", default=7, show_default=True)
def main(out: Path, device: str, threads: int, iterations: int) -> None:
    torch.set_num_threads(threads)
    chosen = torch.device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
    rows = []
    for grows, value, config in track(grown(), description="growth"):
        rows.append({"grows": grows, "value": value, **measure(config, chosen, iterations)})
    ceiling = matmul_ceiling(chosen, "float32")
    report = {"hardware": hardware(chosen), "ceiling_flops_per_second": ceiling, "rows": rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    with matplotlib.rc_context(STYLE):
        draw(rows, ceiling, out)


if __name__ == "__main__":
    main()
