"""edit: pictures of a trained generator along directions of its style w."""

import re
from pathlib import Path
from typing import Any

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
@click.option("--styleclip", metavar="TEXT", help="Towards a text, each picture on its own way (StyleCLIP).")
@click.option("--from-text", metavar="TEXT", help="Along the direction from this text to --to-text, for all pictures.")
@click.option("--to-text", metavar="TEXT", help="Where the direction of --from-text goes.")
@click.option("--clip", metavar="CLIP", help="Folder or hub id of the CLIP that reads the texts.")
@click.option("--iterations", type=int, help="Iterations of --styleclip; default: 100.")
@click.option("--rate", type=Finite(), help="Rate of Adam of --styleclip; default: 0.05.")
@click.option("--keep", type=Finite(), help="Weight of the squared change of w in --styleclip; default: 0.005.")
@click.option("--name", "names", multiple=True, help="Only this direction of the file; may be given again.")
@click.option(
    "--strengths", help="Steps along a direction; default: -3,-2,-1,0,1,2,3, for --between 0,0.25,0.5,0.75,1."
)
@click.option("--layers", metavar="FIRST-LAST", help="Blocks that the edit reaches, such as 0-5; default: all.")
@click.option("--samples", type=int, help="Styles for --ganspace (default: 10000) or --from-text (default: 256).")
@click.option("--pictures", type=int, default=6, show_default=True, help="Pictures to edit, a row each.")
@click.option("--classes", help="Classes of the pictures, as for sample, and of the styles of --samples.")
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
    styleclip: str | None,
    from_text: str | None,
    to_text: str | None,
    clip: str | None,
    iterations: int | None,
    rate: float | None,
    keep: float | None,
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
    A strength of 1 is one standard deviation of w along a component or between texts, or the whole way between two
    classes. --styleclip writes one figure, with a column every few iterations, and path.json and path.safetensors.

    \b
    Example:
      gat-sweep edit gat-l --out components --ganspace 4
      gat-sweep edit gat-l --out early --direction components/directions.safetensors --name component-1 --layers 0-1
      gat-sweep edit gat-l --out three-to-eight --between 3,8
      gat-sweep edit gat-l --out snow --styleclip "a photo of a snowy mountain" --clip openai/clip-vit-base-patch32
      gat-sweep edit gat-l --out smile --from-text "a face" --to-text "a smiling face" --clip clip-vit-base-patch32
    """
    from gat_sweep.files.storage import place
    from gat_sweep.pretrained.edit import TEXT_SAMPLES, Edit, edit_command
    from gat_sweep.pretrained.sample import Request
    from gat_sweep.pretrained.styleclip import Optimisation
    from gat_sweep.train.device import chosen_device

    from_to = None if from_text is None or to_text is None else (from_text, to_text)
    if from_to is None and (from_text is not None or to_text is not None):
        raise UserError("--from-text and --to-text belong together; give both")
    if sum(given is not None for given in (ganspace, between, direction, styleclip, from_to)) != 1:
        raise UserError(
            "give one of --ganspace, --between, --direction, --styleclip, and --from-text with --to-text: where the "
            "directions come from"
        )
    for option, value, needs, there in [
        ("--samples", samples, "--ganspace or --from-text", (ganspace, from_to)),
        ("--name", names or None, "--direction", (direction,)),
        ("--iterations", iterations, "--styleclip", (styleclip,)),
        ("--rate", rate, "--styleclip", (styleclip,)),
        ("--keep", keep, "--styleclip", (styleclip,)),
        ("--clip", clip, "--styleclip or --from-text", (styleclip, from_to)),
    ]:
        if value is not None and not any(one is not None for one in there):
            raise UserError(f"{option} needs {needs}; add it, or leave {option} out")
    if clip is None and (styleclip is not None or from_to is not None):
        raise UserError("an edit by text needs a CLIP; add --clip with a hub id or a folder")
    if strengths is not None and styleclip is not None:
        raise UserError("--strengths does not go with --styleclip, whose columns are iterations; leave it out")
    usual = "-3,-2,-1,0,1,2,3" if between is None else "0,0.25,0.5,0.75,1"
    ends = _pair(between, ",", "--between", "two classes, such as 3,8") if between else None
    given = {"iterations": iterations, "rate": rate, "keep": keep}
    chosen: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    asked = Edit(
        ganspace=ganspace,
        between=ends,
        file=direction,
        from_to=from_to,
        optimise=None if styleclip is None else Optimisation(styleclip, **chosen),
        clip=clip,
        names=names,
        samples=(10_000 if from_to is None else TEXT_SAMPLES) if samples is None else samples,
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
