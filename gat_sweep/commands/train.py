"""train: one trial in this process."""

import sys
from typing import TYPE_CHECKING

import click

from gat_sweep.commands.options import command, config_options, console, device_option, home_option, make_config

if TYPE_CHECKING:
    from gat_sweep.files.storage import Place


@command()
@config_options
@home_option
@click.option("--name", default="train", show_default=True, help="Name of the run.")
@device_option
def train(recipe: str, preset: str, settings: tuple[str, ...], home: "Place", name: str, device: str | None) -> None:
    """Train one trial in this process, without Ray and MLflow.

    SIGTERM saves the trial and ends with exit code 75; the same command again continues it.

    \b
    Example:
      gat-sweep train --recipe digits --set train.steps=200
    """
    from gat_sweep.run.record import check_name

    check_name(name)
    config = make_config(recipe, preset, settings)
    from gat_sweep.launch.train import train_command  # torch, which a refusal does not wait for

    sys.exit(train_command(config, home, name, device, console()))
