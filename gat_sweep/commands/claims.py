"""claims: the claims of the paper against the runs that are there."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from gat_sweep.commands.options import (
    DEFAULT_RECIPE,
    command,
    console,
    folder_option,
    home_option,
    json_option,
    print_files,
    print_json,
    say,
)

if TYPE_CHECKING:
    from gat_sweep.files.storage import Place


@command()
@click.argument("sources", nargs=-1)
@home_option
@folder_option
@json_option
def claims(sources: tuple[str, ...], home: "Place", out: Path | None, as_json: bool) -> None:
    """Judge the paper's claims by runs or tables.

    Without SOURCES, by all runs of the home. Each claim is confirmed, contradicted, not decided (all at 95 %) or not
    run; the last column is the command that may decide it. Writes claims.json and claims.md into `claims`.

    \b
    Example:
      gat-sweep claims
      gat-sweep claims widths-digits docs/study/split.csv
    """
    from gat_sweep.results.claims import COLUMNS, claims_command

    rows, files = claims_command(sources, home, out, DEFAULT_RECIPE, say)
    if as_json:
        print_json(rows)
        return
    table = Table()
    for name in COLUMNS:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(row[name] or "" for name in COLUMNS))
    console().print(table)
    print_files(files)
