"""bench: the engine's step beside a straightforward one."""

from typing import Any

from rich.console import Console
from rich.table import Table

from gat_sweep.text import human


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
