"""sample: pictures of a trained generator."""

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
from gat_sweep.errors import UserError
from gat_sweep.gat.spec import NullStyle


@command()
@click.argument("source")
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="New folder for the files."
)
@click.option("--count", type=int, help="Pictures; default: 64, or one for each caption of --text-file.")
@click.option("--classes", help="Classes of the pictures in turn, such as 1,2,3, or all; default: drawn at random.")
@click.option("--text", "texts", multiple=True, help="Caption of the pictures; may be given again, then in turn.")
@click.option("--text-file", type=click.Path(dir_okay=False, path_type=Path), help="File with a caption in each line.")
@click.option(
    "--psi", type=Finite(), default=1.0, show_default=True, help="Truncation towards the mean style; 1 is off."
)
@click.option(
    "--guidance",
    type=Finite(),
    default=1.0,
    show_default=True,
    help="Guidance away from the mean over classes or captions; 1 is off.",
)
@click.option(
    "--null",
    type=click.Choice(["paper", "official"]),
    help="How that mean is computed: paper (default), or as in the released code.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the latent codes.")
@click.option("--batch", type=int, default=32, show_default=True, help="Pictures at once.")
@click.option("--grid", metavar="ROWSxCOLUMNS", help="Shape of grid.png, which shows the first pictures; default: 8x8.")
@click.option("--npz/--no-npz", default=True, show_default=True, help="Write samples.npz for evaluators.")
@click.option(
    "--interpolate",
    type=click.Choice(["intra", "inter"]),
    help="Rows between two latent codes (intra), or two classes or captions (inter).",
)
@click.option("--steps", type=int, help="Pictures of each row of --interpolate, ends included; default: 8.")
@click.option("--rows", type=int, help="Rows of --interpolate; default: 8.")
@click.option("--tokenizer", help="Where the tokenizer lies now; default: where it was.")
@click.option("--text-encoder", help="Where the text encoder lies now; default: where it was.")
@settings_option
@device_option
@json_option
def sample(
    source: str,
    out: Path,
    count: int | None,
    classes: str | None,
    texts: tuple[str, ...],
    text_file: Path | None,
    psi: float,
    guidance: float,
    null: NullStyle | None,
    seed: int,
    batch: int,
    grid: str | None,
    npz: bool,
    interpolate: str | None,
    steps: int | None,
    rows: int | None,
    tokenizer: str | None,
    text_encoder: str | None,
    settings: tuple[str, ...],
    device: str | None,
    as_json: bool,
) -> None:
    """Generate pictures from a checkpoint or an exported folder.

    Writes samples.npz, grid.png and sampling.json. Picture i depends on the seed and i alone. The released code's
    --truncation-psi t is --psi 1-t here.

    \b
    Example:
      gat-sweep sample gat-l --out samples --count 100 --classes all --grid 10x10
      gat-sweep sample gat-l --out rows --interpolate inter --classes 1,7
      gat-sweep sample emoji-l --out cars --text "red car" --text "blue car" --count 8 --grid 2x4
    """
    from gat_sweep.files.storage import place
    from gat_sweep.pretrained.sample import Request, sample_command
    from gat_sweep.train.device import chosen_device

    if interpolate is None and (steps is not None or rows is not None):
        raise UserError("--steps and --rows need --interpolate intra or inter; add it, or use --count and --grid")
    if interpolate is not None and (count is not None or grid is not None):
        raise UserError("--interpolate makes --rows rows of --steps pictures; use these instead of --count and --grid")
    if null is not None and guidance == 1:
        raise UserError(f"--null {null} needs --guidance other than 1; add it, or leave --null out")
    shape = (8 if rows is None else rows, 8 if steps is None else steps) if interpolate else _grid(grid or "8x8")
    captions = read_texts(texts, text_file)
    usual = 64 if text_file is None else len(captions)
    request = Request(
        count=usual if count is None else count,
        classes=parse_classes(classes),
        texts=captions,
        psi=psi,
        guidance=guidance,
        null=null or "paper",
        seed=seed,
        batch=batch,
        grid=shape,
        npz=npz,
        interpolate=interpolate,
    )
    result, files = sample_command(
        place(source, "SOURCE"),
        out,
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
    print_files(files)


def parse_classes(text: str | None) -> tuple[int, ...] | str | None:
    if text is None or text == "all":
        return text
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise UserError(f"--classes {text}: expected class numbers with commas, such as 1,2,3, or all")
    return tuple(int(part) for part in text.split(","))


def read_texts(texts: tuple[str, ...], file: Path | None) -> tuple[str, ...]:
    """The captions of --text, or those of --text-file, whose empty lines are skipped."""
    if file is None:
        for text in texts:
            if not text.strip():
                raise UserError("--text is empty; give a caption")
        return texts
    if texts:
        raise UserError("--text and --text-file both give captions; leave one out")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"--text-file {file}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"--text-file {file} is not UTF-8 text; save it as UTF-8") from None
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise UserError(f"--text-file {file} has no captions; write one in each line")
    return found


def _grid(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal()):
        raise UserError(f"--grid {text}: expected ROWSxCOLUMNS, such as 4x8")
    return int(rows), int(columns)
