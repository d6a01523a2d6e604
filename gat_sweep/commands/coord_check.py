"""coord-check: the change of the outputs in one step, against width (Eq. 11)."""

from pathlib import Path
from typing import Any

import click
from rich.table import Table

from gat_sweep.commands.options import (
    command,
    config_options,
    console,
    device_option,
    json_option,
    make_config,
    print_files,
    print_json,
    say,
    seed_numbers,
    threads_option,
)
from gat_sweep.errors import UserError


def coord_table(result: dict[str, Any]) -> Table:
    """Table of the slopes in a result's JSON."""
    from analysis.coord_check import RULES

    seeds, steps = len(result["seeds"]), (result["warmup"] + 1, result["warmup"] + result["steps"])
    title = f"{result['recipe']}: slope of log change on log width, {seeds} seeds, steps {steps[0]} to {steps[1]}"
    table = Table(title=title, title_justify="left")
    for name in ["network", "layer", "rule", "slope", "95 % interval", "A.11", "relative", "output's size"]:
        table.add_column(name, justify="left" if name in ("network", "layer", "rule") else "right", no_wrap=True)
    for row in result["slopes"]:
        low, high = row["change"]["low"], row["change"]["high"]
        table.add_row(
            row["network"],
            row["layer"],
            RULES[row["rule"]],
            f"{row['change']['slope']:.2f}",
            "one seed: none" if low is None else f"{low:.2f} to {high:.2f}",
            f"{row['theory']:.0f}",
            f"{row['relative']['slope']:.2f}",
            f"{row['size']['slope']:.2f}",
        )
    return table


@command("coord-check")
@click.option("--widths", default="", help="Widths with commas; default: 1, 2, 4, 8 and 16 of the recipe's heads.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Seeds, such as 0,1,2 or 0-9, for the interval.")
@click.option("--steps", type=click.IntRange(min=1), default=10, show_default=True, help="Training steps measured.")
@click.option(
    "--warmup",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Training steps before the measured ones.",
)
@click.option("--batch", type=click.IntRange(min=2), help="Images per step; default: the recipe's.")
@threads_option
@device_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("."),
    show_default=True,
    help="Folder for coord-check.json, .svg and .png.",
)
@config_options
@json_option
def coord_check(
    widths: str,
    seeds: str,
    steps: int,
    warmup: int,
    batch: int | None,
    threads: int | None,
    device: str | None,
    out: Path,
    recipe: str,
    preset: str,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure a step's change of the outputs by width (Eq. 11).

    Measures with the learning rate of Eq. 4, and with one rate for all widths.

    \b
    Example:
      gat-sweep coord-check --recipe digits --widths 8,16,32,64 --out coord
    """
    from gat_sweep.inspection.coord_check import CoordCheckOptions, coord_check_command
    from gat_sweep.train.device import chosen_device

    options = CoordCheckOptions(_widths(widths), tuple(dict.fromkeys(seed_numbers(seeds))), steps, warmup)
    config = make_config(recipe, preset, settings, {} if batch is None else {"train.batch": batch})
    chosen = chosen_device(device)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    result, files = coord_check_command(config, options, chosen, out, say)
    if as_json:
        print_json(result)
        return
    console().print(coord_table(result))
    print_files(files)


def _widths(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"--widths {text}: expected whole numbers with commas, such as 8,16,32")
    return tuple(dict.fromkeys(int(part) for part in parts))
