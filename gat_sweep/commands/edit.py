"""edit: pictures of a trained generator along directions of its style w."""

import re
from pathlib import Path

import click

from gat_sweep.commands.options import (
    Finite,
    command,
    device_option,
    json_option,
    parse_settings,
    print_files,
    print_json,
    say,
    settings_option,
)
from gat_sweep.commands.sample import parse_classes, read_texts
from gat_sweep.errors import UserError


@command()
@click.argument("source")
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="New folder for the files."
)
@click.option("--ganspace", metavar="N", type=int, help="Along the first N principal components of w.")
@click.option("--between", metavar="A,B", help="From class A to class B.")
@click.option(
    "--direction",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Along the directions of a directions.safetensors.",
)
@click.option("--name", "names", multiple=True, help="Only this direction of the file; may be given again.")
@click.option(
    "--strengths", help="Steps along a direction; default: -3,-2,-1,0,1,2,3, for --between 0,0.25,0.5,0.75,1."
)
@click.option("--layers", metavar="FIRST-LAST", help="Blocks that the edit reaches, such as 0-5; default: all.")
@click.option("--samples", type=int, help="Styles from which --ganspace computes; default: 10000.")
@click.option("--pictures", type=int, default=6, show_default=True, help="Pictures to edit, a row each.")
@click.option("--classes", help="Classes of the pictures, as for sample, and of the styles of --ganspace.")
@click.option("--text", "texts", multiple=True, help="Captions, as for sample.")
@click.option("--text-file", type=click.Path(dir_okay=False, path_type=Path), help="Captions, as for sample.")
@click.option("--psi", type=Finite(), default=1.0, show_default=True, help="Truncation, as for sample.")
@click.option("--guidance", type=Finite(), default=1.0, show_default=True, help="Guidance, as for sample.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the latent codes.")
@click.option("--batch", type=int, default=32, show_default=True, help="Pictures at once.")
@click.option("--tokenizer", help="Where the tokenizer lies now; default: where it was.")
@click.option("--text-encoder", help="Where the text encoder lies now; default: where it was.")
@settings_option
@device_option
@json_option
def edit(
    source: str,
    out: Path,
    ganspace: int | None,
    between: str | None,
    direction: Path | None,
    names: tuple[str, ...],
    strengths: str | None,
    layers: str | None,
    samples: int | None,
    pictures: int,
    classes: str | None,
    texts: tuple[str, ...],
    text_file: Path | None,
    psi: float,
    guidance: float,
    seed: int,
    batch: int,
    tokenizer: str | None,
    text_encoder: str | None,
    settings: tuple[str, ...],
    device: str | None,
    as_json: bool,
) -> None:
    """Edit a generator's pictures along directions of its style.

    Writes a figure for each direction, a row for each picture, and directions.safetensors, which --direction reads.
    A strength of 1 is one standard deviation of w along a component, or the whole way between two classes.

    \b
    Example:
      gat-sweep edit gat-l --out components --ganspace 4
      gat-sweep edit gat-l --out early --direction components/directions.safetensors --name component-1 --layers 0-1
      gat-sweep edit gat-l --out three-to-eight --between 3,8
    """
    from gat_sweep.files.storage import place
    from gat_sweep.pretrained.edit import Edit, edit_command
    from gat_sweep.pretrained.sample import Request
    from gat_sweep.train.device import chosen_device

    if sum(given is not None for given in (ganspace, between, direction)) != 1:
        raise UserError("give one of --ganspace, --between and --direction: where the directions come from")
    if samples is not None and ganspace is None:
        raise UserError("--samples needs --ganspace; add it, or leave --samples out")
    if names and direction is None:
        raise UserError("--name needs --direction; add it, or leave --name out")
    usual = "-3,-2,-1,0,1,2,3" if between is None else "0,0.25,0.5,0.75,1"
    ends = _pair(between, ",", "--between", "two classes, such as 3,8") if between else None
    asked = Edit(
        ganspace=ganspace,
        between=ends,
        file=direction,
        names=names,
        samples=10_000 if samples is None else samples,
        strengths=_numbers(usual if strengths is None else strengths),
        layers=_pair(layers, "-", "--layers", "the first and the last block, such as 0-5") if layers else None,
        pictures=pictures,
    )
    # The way from a class begins at pictures of it.
    own = parse_classes(classes) if classes else (ends[:1] if ends else None)
    captions = read_texts(texts, text_file)
    request = Request(classes=own, texts=captions, psi=psi, guidance=guidance, seed=seed, batch=batch)
    result, files = edit_command(
        place(source, "SOURCE"),
        out,
        asked,
        request,
        parse_settings(settings),
        tokenizer,
        chosen_device(device),
        say,
        text_encoder,
    )
    if as_json:
        print_json(result)
        return
    for name, figures in result["directions"].items():
        click.echo(f"{name}  " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    print_files(files)


def _pair(text: str, between: str, option: str, expected: str) -> tuple[int, int]:
    match = re.fullmatch(rf"(\d+){between}(\d+)", text.replace(" ", ""))
    if not match:
        raise UserError(f"{option} {text}: expected {expected}")
    return int(match[1]), int(match[2])


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--strengths {text}: expected numbers with commas, such as -2,0,2") from None
