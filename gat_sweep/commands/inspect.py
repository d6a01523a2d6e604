"""inspect: what the blocks of a checkpoint do."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from gat_sweep.commands.options import (
    command,
    console,
    device_option,
    json_option,
    parse_settings,
    print_files,
    print_json,
)


def inspection_table(result: dict[str, Any]) -> Table:
    """Table with a line per block, for the terminal."""
    columns = [
        ("influence", "G", "fake", f"influence_{result['protocol']['distance']}"),
        ("cos in, out", "G", "fake", "similarity_input_output"),
        ("cos z, z'", "G", "fake", "similarity_other_z"),
        ("CKNNA G", "G", "fake", "cknna_patches"),
        ("D, real", "D", "real", "cknna_patches"),
        ("D, fake", "D", "fake", "cknna_patches"),
        (r"D \[cls], real", "D", "real", "cknna_cls"),
        (r"D \[cls], fake", "D", "fake", "cknna_cls"),
    ]
    values = {(r["network"], r["block"], r["data"], r["measure"]): r["value"] for r in result["rows"]}
    table = Table(title=f"{result['trial']}, step {result['step']}", title_justify="left")
    for name in ["block", *(name for name, *_ in columns)]:
        table.add_column(name, justify="right", no_wrap=True)
    for block in range(1, max(result["depth"].values()) + 1):
        found = [values.get((network, block, data, measure)) for _, network, data, measure in columns]
        table.add_row(str(block), *("" if value is None else f"{value:.4f}" for value in found))
    protocol = result["protocol"]
    table.caption = (
        f"influence: {protocol['distance_label']}; CKNNA (k = {protocol['neighbours']}) with {protocol['teacher']}; "
        f"{protocol['images']} images"
    )
    return table


@command()
@click.argument("checkpoint")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the results; default: <run>/inspect/..."
)
@click.option("--images", type=click.IntRange(min=2), help="Real and generated images to look at; default: 2000.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the images.")
@click.option(
    "--lpips-backbone",
    type=click.Path(path_type=Path),
    help="torchvision's AlexNet weights, to measure block influence in LPIPS.",
)
@click.option("--teacher", help="Network to align features with; default: the trial's own, or efficientnet_lite0.")
@click.option("--teacher-checkpoint", help="Local file of the teacher's weights.")
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
    """Measure what each block of a trial does (Fig. 4, 6b, 9).

    Measures its influence, the similarity of its tokens and its alignment with a teacher, and shows its features.

    \b
    Example:
      gat-sweep inspect runs/mng-digits/trials/S-p2-s0-90f82dd4/checkpoints/step_00002000
    """
    from gat_sweep.files.storage import place
    from gat_sweep.inspection.inspect import InspectOptions, inspect_command
    from gat_sweep.train.device import chosen_device

    result, files = inspect_command(
        place(checkpoint, "CHECKPOINT"),
        out,
        InspectOptions(images, seed, lpips_backbone, teacher, teacher_checkpoint),
        parse_settings(settings),
        chosen_device(device),
        Console(stderr=True),
    )
    if as_json:
        print_json(result)
        return
    console().print(inspection_table(result))
    print_files(files)
