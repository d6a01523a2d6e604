"""report: one HTML file with all results of a run."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gat_sweep.commands.options import command, floor_option, folder_option, home_option, say

if TYPE_CHECKING:
    from gat_sweep.files.storage import Place


@command()
@click.argument("run")
@floor_option
@home_option
@folder_option
def report(run: str, floor: float | None, home: "Place", out: Path | None) -> None:
    """Write one HTML file with all results of a run.

    It holds every analysis that the run allows, its figures and samples, what failed, and every row. It loads nothing
    from elsewhere.

    \b
    Example:
      gat-sweep report widths-digits
    """
    from gat_sweep.results.report import report_command

    path, warning = report_command(run, home, out, floor, say)
    click.echo(str(path))
    if warning:
        click.echo(warning, err=True)
