"""evaluate: distances of a checkpoint, of networks, of pictures, or of a tokenizer's reconstructions."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.table import Table

from gat_sweep.commands.options import (
    DEFAULT_RECIPE,
    command,
    console,
    device_option,
    home_option,
    json_option,
    parse_settings,
    print_json,
    say,
)
from gat_sweep.errors import UserError

if TYPE_CHECKING:
    from gat_sweep.files.storage import Place
    from gat_sweep.metrics.evaluator import Evaluation


def evaluation_table(evaluation: "Evaluation") -> Table:
    """Table of the measured values and of their protocol."""
    table = Table(show_header=False)
    for name, value in evaluation.journal().items():
        table.add_row(name, f"{value:.5g}")
    if evaluation.split_half is not None:
        table.add_row("halves of the real pictures", f"{evaluation.split_half:.5g}")
    table.add_section()
    for name, value in json.loads(evaluation.protocol).items():
        if value is not None:
            table.add_row(name, str(value))
    return table


@command()
@click.argument("target", required=False)
@click.option("--reconstruction", is_flag=True, help="Measure real pictures, encoded and decoded, instead of a TARGET.")
@click.option(
    "--recipe", default=DEFAULT_RECIPE, show_default=True, help="Protocol and data; a checkpoint has its own."
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override eval.* or data.path.")
@home_option
@device_option
@json_option
def evaluate(
    target: str | None,
    reconstruction: bool,
    recipe: str,
    settings: tuple[str, ...],
    home: "Place",
    device: str | None,
    as_json: bool,
) -> None:
    """Measure FID or another distance of a checkpoint or pictures.

    TARGET is a trial's checkpoint, a folder of networks (of export or import-official), or generated pictures: an npz
    with arr_0, or a folder. With --reconstruction, measures a tokenizer's reconstructions instead.

    \b
    Example:
      gat-sweep evaluate runs/widths-digits/trials/L-p2-s0-51c502ae/checkpoints/step_00002000 --set eval.psi=0.9
      gat-sweep evaluate samples/samples.npz --recipe digits
      gat-sweep evaluate --reconstruction --set data.path=data/imagenet
    """
    from gat_sweep.files.storage import place
    from gat_sweep.pretrained.evaluate import evaluate_command
    from gat_sweep.train.device import chosen_device

    if reconstruction == bool(target):
        raise UserError("give a checkpoint, a folder of networks or of pictures, or an npz; or --reconstruction alone")
    found = evaluate_command(
        place(target, "TARGET") if target else None,
        recipe,
        parse_settings(settings),
        home,
        chosen_device(device),
        say,
    )
    if as_json:
        print_json(asdict(found))
    else:
        console().print(evaluation_table(found))
