"""import-official: the authors' .pt as a folder of networks."""

from pathlib import Path

import click

from gat_sweep.commands.options import command, say


@command("import-official")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("out")
@click.option("--tokenizer", help="The VAE of the latents, which the file does not name; `sample` needs it.")
def import_official(file: Path, out: str, tokenizer: str | None) -> None:
    """Read a .pt of the authors' code into a folder like export's.

    FILE has their state dicts ema, generator and discriminator, or only one of the first two, or is one state dict of
    the generator.

    \b
    Example:
      gat-sweep import-official gat.pt gat-theirs --tokenizer stabilityai/sd-vae-ft-mse
    """
    from gat_sweep.files.storage import place
    from gat_sweep.pretrained.folder import from_pretrained, shapes_text
    from gat_sweep.pretrained.official import import_official as run

    run(file, place(out, "OUT"), say, tokenizer)
    click.echo(f"{out}: {shapes_text(from_pretrained(place(out, 'OUT')).generator)}; their optimizers are left out")
