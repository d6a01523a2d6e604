"""Sweeps and trials: plan, run, train, ui."""

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from gat_sweep.commands.options import (
    check_name,
    config_options,
    console,
    device_option,
    home_option,
    json_option,
    make_config,
    make_sweep,
    print_json,
    sweep_options,
    user_errors,
)
from gat_sweep.errors import UserError


@click.command()
@sweep_options
@click.option("--calibrate", is_flag=True, help="Time a few steps and samples here, to foretell hours.")
@device_option
@click.option("--mfu", type=click.FloatRange(0, 1, min_open=True), help="Or: the share of the peak that is reached...")
@click.option("--peak-tflops", type=click.FloatRange(0, min_open=True), help="... of a worker, in the precision used.")
@click.option("--price", type=click.FloatRange(0), help="Of a worker for an hour, in any currency.")
@json_option
def plan(
    sweep: Path,
    recipe: str,
    preset: str,
    settings: tuple[str, ...],
    seeds: str | None,
    calibrate: bool,
    device: str | None,
    mfu: float | None,
    peak_tflops: float | None,
    price: float | None,
    as_json: bool,
) -> None:
    """Show a sweep's trials: parameters, FLOPs, learning rates, memory, and what hours they take. Trains nothing."""
    from gat_sweep.commands.plan import plan_command, plan_table

    if (mfu is None) != (peak_tflops is None) or (calibrate and mfu is not None):
        raise UserError("hours are foretold by --calibrate, or by --mfu together with --peak-tflops")
    if price is not None and not (calibrate or mfu):
        raise UserError("--price needs hours: add --calibrate, or --mfu and --peak-tflops")
    spec = make_sweep(sweep, recipe, preset, settings, seeds)
    peak = (mfu, peak_tflops * 1e12) if mfu and peak_tflops else None
    found = plan_command(spec, calibrate, peak, price, device, Console(stderr=True))
    if as_json:
        print_json(found)
    else:
        console().print(plan_table(found))


@click.command()
@sweep_options
@home_option
@click.option("--name", help="Name of the run; <sweep>-<recipe> unless given.")
@click.option("--address", help="A running Ray cluster, such as auto; starts Ray here unless given.")
@click.option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow; sqlite below the home unless given.")
@click.option("--retry", type=click.Choice(["failed"]), help="Also run trials again that failed before.")
@click.option("--hold", multiple=True, metavar="SIZE", help="Do not begin trials of this size yet, as for `predict`.")
@click.option("--extend", is_flag=True, help="Train trials on that were recorded with fewer steps.")
@click.option("--max-gpu-hours", type=click.FloatRange(min=0), help="Cap on the whole run, over all its launches.")
@click.option("--max-flops", type=click.FloatRange(min=0), help="The same in training FLOP, 2 per multiply-add.")
def run(
    sweep: Path,
    recipe: str,
    preset: str,
    settings: tuple[str, ...],
    seeds: str | None,
    home: Any,
    name: str | None,
    address: str | None,
    tracking_uri: str | None,
    retry: str | None,
    hold: tuple[str, ...],
    extend: bool,
    max_gpu_hours: float | None,
    max_flops: float | None,
) -> None:
    """Run a sweep. The same command again runs what is not finished.

    Exit codes: 0 all trials are done or diverged, 1 some are not, 75 stopped on request with everything saved.
    """
    from gat_sweep.launch.run import Launch, run_command
    from gat_sweep.monitor.budget import Budget

    spec = make_sweep(sweep, recipe, preset, settings, seeds)
    name = name or f"{spec.name}-{spec.recipe}"
    check_name(name)
    how = Launch(address, tracking_uri, retry is not None, extend, Budget(max_flops, max_gpu_hours), hold)
    sys.exit(run_command(spec, home, name, how, console()))


@click.command()
@config_options
@home_option
@click.option("--name", default="train", show_default=True, help="Name of the run.")
@device_option
def train(recipe: str, preset: str, settings: tuple[str, ...], home: Any, name: str, device: str | None) -> None:
    """Train one trial here, without Ray and MLflow. SIGTERM saves and ends with exit code 75."""
    from gat_sweep.launch.train import train_command

    check_name(name)
    config = make_config(recipe, preset, settings)
    sys.exit(train_command(config, home, name, device, console()))


@click.command()
@home_option
@click.option("--port", default=5000, show_default=True)
def ui(home: Any, port: int) -> None:
    """Open the MLflow UI of the home's store on loopback."""
    from gat_sweep.monitor.tracking import default_uri
    from gat_sweep.monitor.ui import serve_ui

    with user_errors():
        serve_ui(default_uri(home), home, port)
