"""export-official: a folder of networks as the authors' .pt."""

from pathlib import Path

import click

from gat_sweep.commands.options import command, parse_settings, say, settings_option


@command("export-official")
@click.argument("source")
@click.argument("file", type=click.Path(path_type=Path))
@settings_option
def export_official(source: str, file: Path, settings: tuple[str, ...]) -> None:
    """Write networks as a .pt that the authors' code reads.

    SOURCE is a folder of export, or a trial's checkpoint.

    \b
    Example:
      gat-sweep export-official gat-l gat-l.pt
    """
    from gat_sweep.files.storage import place
    from gat_sweep.pretrained.official import export_official as run

    run(place(source, "SOURCE"), file, parse_settings(settings), say)
    click.echo(str(file))
