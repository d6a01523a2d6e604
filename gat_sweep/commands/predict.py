"""predict: the value that the law of the other sizes predicts for a size, stored before that size begins."""

from typing import TYPE_CHECKING

import click

from gat_sweep.commands.options import floor_option, home_option, json_option, print_json
from gat_sweep.errors import UserError

if TYPE_CHECKING:
    from gat_sweep.files.storage import Place


@click.command()
@click.argument("run")
@click.option("--for", "size", required=True, help="A size that has not begun, such as XL.")
@floor_option
@home_option
@json_option
def predict(run: str, size: str, floor: float | None, home: "Place", as_json: bool) -> None:
    """Predict a size from the law of the others before it begins.

    Hold the size back with --hold, predict, and run again without --hold; fit-law then scores the prediction.

    \b
    Example:
      gat-sweep run widths --recipe digits --hold XL
      gat-sweep predict widths-digits --for XL
      gat-sweep run widths --recipe digits
    """
    from gat_sweep.results.predict import predict_command, prediction_text
    from gat_sweep.results.study import log_to_mlflow, open_study

    if run.endswith((".csv", ".parquet")):
        raise UserError(f"{run}: only a run can be predicted, since a file does not name its trials; give a run's name")
    study = open_study(run, home, None)
    written = predict_command(study, size, home, floor)
    warning = log_to_mlflow(study, [file for _, file in written])
    if as_json:
        print_json([prediction for prediction, _ in written])
    else:
        for prediction, file in written:
            click.echo(prediction_text(prediction))
            click.echo(f"  {file}")
    if warning:
        click.echo(warning, err=True)
