"""Steps compared across widths: coord-check."""

from pathlib import Path

import click
from rich.console import Console

from gat_sweep.commands.options import (
    config_options,
    console,
    device_option,
    json_option,
    make_config,
    print_json,
)
from gat_sweep.errors import UserError


@click.command("coord-check")
@click.option("--widths", default="", help="With commas; 1, 2, 4, 8 and 16 of the recipe's heads unless given.")
@click.option("--seeds", default="0,1,2", show_default=True, help="With commas; the interval is over them.")
@click.option("--steps", type=click.IntRange(min=1), default=10, show_default=True, help="Training steps measured.")
@click.option("--warmup", type=click.IntRange(min=0), default=0, show_default=True, help="Training steps before them.")
@click.option("--batch", type=click.IntRange(min=2), help="Images per step; the recipe's unless given.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all of them unless given.")
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
    """Measure how much a training step changes the outputs at each width, with Eq. 4's rate and without (Eq. 11)."""
    from gat_sweep.commands.coord_check import coord_table
    from gat_sweep.inspection.coord_check import Options, coord_check_command
    from gat_sweep.train.device import chosen_device

    options = Options(_numbers(widths, "--widths"), _numbers(seeds, "--seeds"), steps, warmup)
    if not options.seeds:
        raise UserError("--seeds is empty; give whole numbers with commas, such as 0,1,2")
    config = make_config(recipe, preset, settings, {} if batch is None else {"train.batch": batch})
    chosen = chosen_device(device)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    result, files = coord_check_command(config, options, chosen, out, Console(stderr=True))
    if as_json:
        print_json(result)
        return
    console().print(coord_table(result))
    for file in files:
        click.echo(f"  {file}")


def _numbers(text: str, option: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"{option} {text}: expected whole numbers with commas, such as 0,1,2")
    return tuple(dict.fromkeys(int(part) for part in parts))
