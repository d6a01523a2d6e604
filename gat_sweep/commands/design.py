"""design: which runs to train for a goal."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gat_sweep.commands.options import (
    DEFAULT_RECIPE,
    Finite,
    command,
    device_option,
    folder_option,
    home_option,
    json_option,
    make_config,
    print_report,
    rates_of,
    say,
)
from gat_sweep.errors import UserError

if TYPE_CHECKING:
    from gat_sweep.files.storage import Place


@command()
@click.argument("source", required=False)
@click.option(
    "--goal", required=True, metavar="GOAL", help="exponent, predict:SIZE, allocate or rates: what is to be found out."
)
@click.option("--budget", type=Finite(0, min_open=True), help="Compute of the runs, in GFLOPs (multiply-adds / 1e9).")
@click.option("--hours", type=Finite(0, min_open=True), help="The budget as hours of one worker.")
@click.option("--at", metavar="SIZE", help="The size that the goal is about; default: XL, else the largest one.")
@click.option(
    "--half-width",
    type=Finite(0, min_open=True),
    help="Half-width whose chance is given: of an exponent, or a factor above 1 for the other goals.",
)
@click.option("--recipe", help=f"Data set and scale; default: that of the run SOURCE, else {DEFAULT_RECIPE}.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a config value.")
@click.option("--calibrate", is_flag=True, help="With --hours: from a few steps and samples timed here.")
@device_option
@click.option("--mfu", type=Finite(0, 1, min_open=True), help="With --hours: at this share of --peak-tflops.")
@click.option("--peak-tflops", type=Finite(0, min_open=True), help="Peak of one worker, in the trial's precision.")
@home_option
@folder_option
@json_option
def design(
    source: str | None,
    goal: str,
    budget: float | None,
    hours: float | None,
    at: str | None,
    half_width: float | None,
    recipe: str | None,
    settings: tuple[str, ...],
    calibrate: bool,
    device: str | None,
    mfu: float | None,
    peak_tflops: float | None,
    home: "Place",
    out: Path | None,
    as_json: bool,
) -> None:
    """Choose the runs that tell most about a goal.

    Compares sizes, lengths and seeds by the expected error of the goal over several laws, and writes a sweep file.
    Trains nothing. SOURCE, the name of a run, a .parquet, a .csv or a .tsv, says what is known; without it, nothing is.

    \b
    Example:
      gat-sweep design --goal exponent --budget 8e10
      gat-sweep design frontier-digits --goal allocate --budget 20000
      gat-sweep design --goal predict:XL --hours 500 --mfu 0.4 --peak-tflops 989
    """
    from gat_sweep.results.design import Asked, design_command
    from gat_sweep.results.study import is_table

    if (budget is None) == (hours is None):
        raise UserError("give --budget in GFLOPs, or --hours")
    if (mfu is None) != (peak_tflops is None) or (calibrate and mfu is not None):
        raise UserError("--hours needs --calibrate, or --mfu and --peak-tflops")
    if (hours is None) == bool(calibrate or mfu):
        raise UserError("--hours goes with --calibrate, or with --mfu and --peak-tflops; --budget goes without them")
    of_run = source is not None and not is_table(source)
    if of_run and (recipe or settings):
        raise UserError(f"the run {source} says the setting; leave --recipe and --set out")

    peak = (mfu, peak_tflops * 1e12) if mfu and peak_tflops else None
    config = None if of_run else make_config(recipe or DEFAULT_RECIPE, "paper", settings)
    rates = partial(rates_of, peak=peak, device=device) if hours else None
    asked = Asked(goal, budget or hours or 0.0, at, half_width, rates)
    report, text, files = design_command(source, config, home, out, asked, say)
    print_report(report, text, files, as_json)
