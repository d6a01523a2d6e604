"""latency: seconds per image of a generator."""

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


def latency_table(result: dict[str, Any], console: Console) -> None:
    """Print a measurement as a table and a line."""
    title = f"{result['recipe']} {result['size']}/{result['patch']}: {result['images']} images, {result['precision']}"
    table = Table(title=title, title_justify="left")
    for name in ["", "batch", "s/image", "quartiles", "FLOP/s of G", "peak memory"]:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for row in result["rows"]:
        seconds = row["seconds_per_image"]
        rate = "" if "decoder" in row["what"] else human(result["flops_per_image"] / seconds)
        quartiles = f"{row['seconds_low']:.4f} to {row['seconds_high']:.4f}"
        memory = f"{row['peak_bytes'] / 2**20:,.0f} MiB"
        table.add_row(row["what"], str(row["batch"]), f"{seconds:.4f}", quartiles, rate, memory)
    console.print(table)
    line = (
        f"one call of G makes an image (NFE 1, {human(result['flops_per_image'])}FLOP); weights {result['weights']}, "
    )
    line += f"median of {result['repeats']}; " + "  ".join(f"{k} {v}" for k, v in result["hardware"].items())
    console.print(line, highlight=False, soft_wrap=True)


@command()
@click.option("--size", "sizes", multiple=True, help="Size of the generator; repeat for several.")
@click.option(
    "--images", type=click.IntRange(min=1), default=64, show_default=True, help="Images to generate; Table 6 uses 64."
)
@click.option(
    "--batch", "batches", type=click.IntRange(min=1), multiple=True, help="Images at once; repeat for several."
)
@click.option(
    "--repeats", type=click.IntRange(min=3), default=10, show_default=True, help="How often the generation is timed."
)
@click.option("--tokenizer", help="A VAE (hub id or folder); its decoder is timed as well.")
@threads_option
@device_option
@out_option
@config_options
@json_option
def latency(
    sizes: tuple[str, ...],
    images: int,
    batches: tuple[int, ...],
    repeats: int,
    tokenizer: str | None,
    threads: int | None,
    device: str | None,
    out: Path | None,
    recipe: str,
    preset: str,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure time and memory of generating images (Table 6).

    Times the generator alone, with truncation, with guidance, and with the tokenizer's decoder.

    \b
    Example:
      gat-sweep latency --size XL --tokenizer stabilityai/sd-vae-ft-mse
    """
    from gat_sweep.speed.latency import latency_command
    from gat_sweep.train.device import chosen_device

    configs = [make_config(recipe, preset, settings, {"workers.count": 1}, both) for both in both_networks(sizes)]
    at_once = sorted(set(batches or (1, images)))
    results = latency_command(configs, chosen_device(device), threads, images, at_once, repeats, tokenizer, say)
    print_results(results, latency_table, out, as_json)
