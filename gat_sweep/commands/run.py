"""run: a sweep on Ray."""

import sys
from typing import TYPE_CHECKING

import click

from gat_sweep.commands.options import (
    Finite,
    address_option,
    command,
    console,
    home_option,
    make_sweep,
    sweep_options,
    tracking_option,
)

if TYPE_CHECKING:
    from gat_sweep.files.storage import Place


@command()
@sweep_options
@home_option
@click.option("--name", help="Name of the run; default: <sweep>-<recipe>.")
@address_option
@tracking_option
@click.option(
    "--race", is_flag=True, help="Drop arms that are significantly worse than the best one, at looks on the way."
)
@click.option(
    "--retry",
    multiple=True,
    type=click.Choice(["failed", "raced"]),
    help="Also go on with the trials that failed before, or that a race dropped.",
)
@click.option("--hold", multiple=True, metavar="SIZE", help="Skip trials of this size for now, so as to predict them.")
@click.option("--extend", is_flag=True, help="Train trials further that were recorded with fewer steps.")
@click.option("--max-gpu-hours", type=Finite(min=0), help="Cap on GPU hours of the run, over all launches.")
@click.option("--max-flops", type=Finite(min=0), help="Cap on training FLOP of the run (2 per multiply-add).")
def run(
    sweep: str,
    recipe: str,
    preset: str,
    settings: tuple[str, ...],
    seeds: str | None,
    home: "Place",
    name: str | None,
    address: str | None,
    tracking_uri: str | None,
    race: bool,
    retry: tuple[str, ...],
    hold: tuple[str, ...],
    extend: bool,
    max_gpu_hours: float | None,
    max_flops: float | None,
) -> None:
    """Run a sweep; run it again to continue it.

    The same command again runs the unfinished trials. SWEEP is a sweep file, or the name of one that ships with
    gat-sweep.

    \b
    Exit codes:
      0   every trial is done, diverged or raced (dropped by --race)
      1   some trials are not
      75  stopped on request, with everything saved

    \b
    Example:
      gat-sweep run widths --recipe digits
      gat-sweep run widths --recipe digits --seeds 0,1,2 --name widths-3 --set train.steps=500
      gat-sweep run lr_transfer --recipe digits --seeds 0,1,2 --race
    """
    spec = make_sweep(sweep, recipe, preset, settings, seeds)
    name = name or f"{spec.name}-{spec.recipe}"
    from gat_sweep.run.record import check_name

    check_name(name)
    from gat_sweep.launch.run import Launch, run_command  # torch, which a refusal does not wait for
    from gat_sweep.monitor.budget import Budget

    how = Launch(address, tracking_uri, retry, extend, Budget(max_flops, max_gpu_hours), hold, race)
    sys.exit(run_command(spec, home, name, how, console()))
