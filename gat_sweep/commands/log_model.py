"""log-model: a trained generator as an MLflow model."""

from typing import TYPE_CHECKING

import click

from gat_sweep.commands.options import command, home_option, parse_settings, say, settings_option, tracking_option
from gat_sweep.errors import UserError

if TYPE_CHECKING:
    from gat_sweep.files.storage import Place


@command("log-model")
@click.argument("run")
@click.argument("trial", required=False)
@click.option("--best", is_flag=True, help="The trial with the smallest value; it is registered under the run's name.")
@click.option("--alias", help="Alias that --best moves to it; default: best.")
@home_option
@tracking_option
@settings_option
def log_model(
    run: str,
    trial: str | None,
    best: bool,
    alias: str | None,
    home: "Place",
    tracking_uri: str | None,
    settings: tuple[str, ...],
) -> None:
    """Log a trial's generator to MLflow as a model.

    It becomes a model of the trial's MLflow run, with a signature and no pickle: mlflow.pyfunc.load_model(URI)
    .predict({"classes": [1, 7]}) gives pictures. The newest checkpoint is taken.

    \b
    Example:
      gat-sweep log-model widths-digits L-p2-s0-51c502ae
      gat-sweep log-model widths-digits --best
    """
    from gat_sweep.pretrained.log_model import log_model_command

    if alias is not None and not best:
        raise UserError("--alias needs --best; add it, or leave --alias out")
    chosen = (alias or "best") if best else None
    click.echo(log_model_command(home, run, trial, chosen, tracking_uri, parse_settings(settings), say))
