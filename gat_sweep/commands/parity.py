"""parity: outputs, losses and gradients against the released code."""

import sys
from dataclasses import asdict
from pathlib import Path

import click

from gat_sweep.commands.options import command, device_option, json_option, print_json


@command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@device_option
@json_option
def parity(file: Path, device: str | None, as_json: bool) -> None:
    """Compare losses and gradients with the released code's.

    FILE is a reference file with its outputs, losses and gradients. Exit code 1 when they differ by more than the
    limits.

    \b
    Example:
      gat-sweep parity tests/data/official_step.safetensors
    """
    from gat_sweep.pretrained.parity import LIMITS, check_parity
    from gat_sweep.train.device import chosen_device

    result = check_parity(file, chosen_device(device))
    if as_json:
        print_json(asdict(result))
    else:
        for key, value in asdict(result).items():
            click.echo(f"{key:15} {value:.2e}   limit {LIMITS[key]:.0e}")
    if not result.passed:
        sys.exit(1)
