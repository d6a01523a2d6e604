"""send: recorded runs to an MLflow."""

from typing import TYPE_CHECKING

import click

from gat_sweep.commands.options import command, home_option, say, tracking_option

if TYPE_CHECKING:
    from gat_sweep.files.storage import Place


@command()
@click.argument("names", nargs=-1)
@home_option
@tracking_option
def send(names: tuple[str, ...], home: "Place", tracking_uri: str | None) -> None:
    """Send recorded runs to an MLflow, such as a server.

    Reads the files of the runs, by default of all, and sends what that MLflow lacks of them. Nothing is sent twice.

    \b
    Example:
      gat-sweep send --tracking-uri http://mlflow:5000
      gat-sweep send widths-digits --tracking-uri http://mlflow:5000
    """
    from gat_sweep.monitor.send import send_command
    from gat_sweep.monitor.ui import tracking_uri as checked_uri

    send_command(names, home, checked_uri(tracking_uri, home), say)
