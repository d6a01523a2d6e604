"""latency: seconds per image of a generator."""

from typing import Any

from rich.console import Console
from rich.table import Table

from gat_sweep.text import human


def show_inference(result: dict[str, Any], console: Console) -> None:
    """A measurement's JSON as a table and a line."""
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
