"""What training left behind, looked at: evaluate, inspect."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from gat_sweep.commands.options import (
    DEFAULT_RECIPE,
    console,
    device_option,
    home_option,
    json_option,
    parse_settings,
    print_json,
)
from gat_sweep.errors import UserError


@click.command()
@click.argument("target", required=False)
@click.option("--reconstruction", is_flag=True, help="Instead of a TARGET: real pictures, encoded and decoded.")
@click.option("--recipe", default=DEFAULT_RECIPE, show_default=True, help="Protocol and data, but of a checkpoint.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override eval.* or data.path.")
@home_option
@device_option
@json_option
def evaluate(
    target: str | None,
    reconstruction: bool,
    recipe: str,
    settings: tuple[str, ...],
    home: Any,
    device: str | None,
    as_json: bool,
) -> None:
    """Measure a checkpoint, generated pictures (an npz with arr_0, or a folder), or what the tokenizer costs."""
    from gat_sweep.commands.evaluate import evaluation_table
    from gat_sweep.files.storage import place
    from gat_sweep.pretrained.evaluate import evaluate_command
    from gat_sweep.train.device import chosen_device

    if reconstruction == bool(target):
        raise UserError("give a checkpoint, an npz or a folder of pictures; or --reconstruction alone")
    progress = Console(stderr=True)
    found = evaluate_command(
        place(target, "TARGET") if target else None,
        recipe,
        parse_settings(settings),
        home,
        chosen_device(device),
        lambda text: progress.print(text, highlight=False),
    )
    if as_json:
        print_json(asdict(found))
    else:
        console().print(evaluation_table(found))


@click.command()
@click.argument("checkpoint")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder; <run>/inspect/... unless given.")
@click.option("--images", type=click.IntRange(min=2), help="Real and generated images to look at; 2000 unless given.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--lpips-backbone",
    type=click.Path(path_type=Path),
    help="torchvision's AlexNet weights: block influence in LPIPS instead of the extractor's feature distance.",
)
@click.option("--teacher", help="What features are aligned with; the trial's own, or efficientnet_lite0, unless given.")
@click.option("--teacher-checkpoint", help="Its weights, as a local file.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Where the data and the tokenizer lie.")
@device_option
@json_option
def inspect(
    checkpoint: str,
    out: Path | None,
    images: int | None,
    seed: int,
    lpips_backbone: Path | None,
    teacher: str | None,
    teacher_checkpoint: str | None,
    settings: tuple[str, ...],
    device: str | None,
    as_json: bool,
) -> None:
    """What every block of a trial's networks does: influence, similarity, alignment, features (Fig. 4, 6b, 9)."""
    from gat_sweep.commands.inspect import inspection_table
    from gat_sweep.files.storage import place
    from gat_sweep.inspection.inspect import Options, inspect_command
    from gat_sweep.train.device import chosen_device

    result, files = inspect_command(
        place(checkpoint, "CHECKPOINT"),
        out,
        Options(images, seed, lpips_backbone, teacher, teacher_checkpoint),
        parse_settings(settings),
        chosen_device(device),
        Console(stderr=True),
    )
    if as_json:
        print_json(result)
        return
    console().print(inspection_table(result))
    for file in files:
        click.echo(f"  {file}")
