"""Trained networks in and out, and their pictures: export, import-official, export-official, sample."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from gat_sweep.commands.options import device_option, json_option, parse_settings, print_json
from gat_sweep.errors import UserError

settings_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Where a trial's data and tokenizer lie now."
)


@click.command("export")
@click.argument("checkpoint")
@click.argument("out")
@settings_option
def export(checkpoint: str, out: str, settings: tuple[str, ...]) -> None:
    """Write a trial's networks as a folder that diffusers' users recognise: EMA generator, discriminator, card."""
    from gat_sweep.files.storage import place
    from gat_sweep.pretrained.folder import from_trial, save_pretrained

    found = from_trial(place(checkpoint, "CHECKPOINT"), parse_settings(settings), discriminator=True)
    save_pretrained(place(out, "OUT"), found.generator, found.about, found.discriminator)
    click.echo(f"{out}: {_said(found.generator)}")


@click.command("import-official")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("out")
@click.option("--tokenizer", help="The VAE of the latents, which no tensor tells; `sample` asks for it unless given.")
def import_official(file: Path, out: str, tokenizer: str | None) -> None:
    """Read a checkpoint of the authors' released code (.pt) into a folder like export's."""
    from gat_sweep.files.storage import place
    from gat_sweep.pretrained.folder import from_pretrained
    from gat_sweep.pretrained.official import import_official as run

    run(file, place(out, "OUT"), tokenizer)
    click.echo(f"{out}: {_said(from_pretrained(place(out, 'OUT')).generator)}; their optimizers are left out")


@click.command("export-official")
@click.argument("source")
@click.argument("file", type=click.Path(path_type=Path))
@settings_option
def export_official(source: str, file: Path, settings: tuple[str, ...]) -> None:
    """Write a folder of networks, or a trial's checkpoint, as a .pt that the authors' released code loads."""
    from gat_sweep.files.storage import place
    from gat_sweep.pretrained.official import export_official as run

    run(place(source, "SOURCE"), file, parse_settings(settings), lambda text: click.echo(text, err=True))
    click.echo(str(file))


@click.command()
@click.argument("source")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="A new folder.")
@click.option("--count", type=int, help="Pictures; 64 unless given.")
@click.option("--classes", help="Of the pictures in turn, such as 1,2,3, or all; drawn for each unless given.")
@click.option("--psi", type=float, default=1.0, show_default=True, help="Truncation towards the mean style; 1 is off.")
@click.option(
    "--guidance", type=float, default=1.0, show_default=True, help="Away from the mean over classes; 1 is off."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--batch", type=int, default=32, show_default=True, help="Pictures at once.")
@click.option("--grid", metavar="ROWSxCOLUMNS", help="Of grid.png, which shows the first pictures; 8x8 unless given.")
@click.option("--npz/--no-npz", default=True, show_default=True, help="Write samples.npz for evaluators.")
@click.option("--interpolate", type=click.Choice(["intra", "inter"]), help="Rows between two codes, or two classes.")
@click.option("--steps", type=int, help="Pictures of such a row, ends included; 8 unless given.")
@click.option("--rows", type=int, help="How many such rows; 8 unless given.")
@click.option("--tokenizer", help="Where the tokenizer lies now, if not where it was.")
@settings_option
@device_option
@json_option
def sample(
    source: str,
    out: Path,
    count: int | None,
    classes: str | None,
    psi: float,
    guidance: float,
    seed: int,
    batch: int,
    grid: str | None,
    npz: bool,
    interpolate: str | None,
    steps: int | None,
    rows: int | None,
    tokenizer: str | None,
    settings: tuple[str, ...],
    device: str | None,
    as_json: bool,
) -> None:
    """Pictures of a trial's checkpoint or of a folder of networks: an npz, a grid, what was asked.

    Picture i depends on the seed and i alone. The released code's --truncation-psi t is --psi 1-t here.
    """
    from gat_sweep.files.storage import place
    from gat_sweep.pretrained.sample import Request, sample_command
    from gat_sweep.train.device import chosen_device

    if interpolate is None and (steps is not None or rows is not None):
        raise UserError("--steps and --rows are of --interpolate intra or inter; add it, or use --count and --grid")
    if interpolate is not None and (count is not None or grid is not None):
        raise UserError("--interpolate makes --rows rows of --steps pictures; use these instead of --count and --grid")
    shape = (8 if rows is None else rows, 8 if steps is None else steps) if interpolate else _grid(grid or "8x8")
    request = Request(
        count=64 if count is None else count,
        classes=_classes(classes),
        psi=psi,
        guidance=guidance,
        seed=seed,
        batch=batch,
        grid=shape,
        npz=npz,
        interpolate=interpolate,
    )
    progress = Console(stderr=True)
    result, files = sample_command(
        place(source, "SOURCE"),
        out,
        request,
        parse_settings(settings),
        tokenizer,
        chosen_device(device),
        lambda text: progress.print(text, highlight=False),
    )
    if as_json:
        print_json(result)
        return
    for file in files:
        click.echo(f"  {file}")


def _classes(text: str | None) -> tuple[int, ...] | str | None:
    if text is None or text == "all":
        return text
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise UserError(f"--classes {text}: expected class numbers with commas, such as 1,2,3, or all")
    return tuple(int(part) for part in text.split(","))


def _grid(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal()):
        raise UserError(f"--grid {text}: expected ROWSxCOLUMNS, such as 4x8")
    return int(rows), int(columns)


def _said(generator: Any) -> str:
    """A network's shapes in a line."""
    return ", ".join(f"{name} {value}" for name, value in asdict(generator.spec).items())
