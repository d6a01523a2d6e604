"""bench: the engine's step beside a straightforward one."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from gat_sweep.commands.options import (
    both_networks,
    command,
    config_options,
    device_option,
    json_option,
    make_config,
    out_option,
    print_results,
    say,
    threads_option,
)
from gat_sweep.text import human


def bench_table(result: dict[str, Any], console: Console) -> None:
    """Print a comparison as a table and three lines."""
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


@command()
@click.option("--size", "sizes", multiple=True, help="Size of both networks; repeat for several.")
@click.option("--batch", type=int, default=None, help="Images per step; default: the recipe's.")
@click.option("--iterations", type=click.IntRange(min=3), default=10, show_default=True, help="Timed pairs of steps.")
@threads_option
@device_option
@out_option
@config_options
@json_option
def bench(
    sizes: tuple[str, ...],
    batch: int | None,
    iterations: int,
    threads: int | None,
    device: str | None,
    out: Path | None,
    recipe: str,
    preset: str,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Time the training step beside a straightforward one.

    Both take the same noise, and their losses must agree. Precision, compilation and everything else are config values.

    \b
    Example:
      gat-sweep bench --recipe digits --size S --size XL
      gat-sweep bench --size S --batch 4 --set train.precision=float32 --set workers.compile=true
    """
    from gat_sweep.speed.bench import bench_command

    chosen: dict[str, Any] = {"workers.count": 1}
    if batch is not None:
        chosen["train.batch"] = batch
    configs = [make_config(recipe, preset, settings, chosen, both) for both in both_networks(sizes)]
    results = bench_command(configs, device, threads, iterations, say)
    print_results(results, bench_table, out, as_json)
