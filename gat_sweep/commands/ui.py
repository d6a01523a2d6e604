"""ui: the MLflow UI of a home."""

from typing import TYPE_CHECKING

import click

from gat_sweep.commands.options import command, home_option

if TYPE_CHECKING:
    from gat_sweep.files.storage import Place


@command()
@home_option
@click.option("--port", default=5000, show_default=True, help="Port on loopback.")
def ui(home: "Place", port: int) -> None:
    """Serve the MLflow UI of a home on loopback.

    \b
    Example:
      gat-sweep ui --port 5001
    """
    from gat_sweep.monitor.ui import default_uri, serve_ui

    serve_ui(default_uri(home), home, port)
