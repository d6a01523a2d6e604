"""predict: the value of a size, or of the best run at a budget, stored before it begins."""

from typing import TYPE_CHECKING

import click

from gat_sweep.commands.options import Finite, command, floor_option, home_option, json_option, print_json
from gat_sweep.errors import UserError

if TYPE_CHECKING:
    from gat_sweep.files.storage import Place


@command()
@click.argument("run")
@click.option("--for", "size", help="A size that has not begun, such as XL.")
@click.option("--budget", type=Finite(0, min_open=True), help="A compute in GFLOPs, for the best run at it.")
@click.option("--far", is_flag=True, help="With --budget: allow answers far beyond the run's computes and sizes.")
@floor_option
@home_option
@json_option
def predict(
    run: str, size: str | None, budget: float | None, far: bool, floor: float | None, home: "Place", as_json: bool
) -> None:
    """Predict a size, or the best run at a budget, before it begins.

    Hold a size back with --hold, predict it, and run again without --hold; fit-law then scores the prediction. With
    --budget, run the command that is printed; allocate then scores it.

    \b
    Example:
      gat-sweep run widths --recipe digits --hold XL
      gat-sweep predict widths-digits --for XL
      gat-sweep run widths --recipe digits
      gat-sweep predict frontier-digits --budget 4000
    """
    from gat_sweep.results.predict import predict_command, prediction_text
    from gat_sweep.results.predict_budget import budget_text, predict_budget
    from gat_sweep.results.study import is_table, log_to_mlflow, open_study

    if is_table(run):
        raise UserError(f"{run}: only a run can be predicted, since a file does not name its trials; give a run's name")
    if (size is None) == (budget is None):
        raise UserError("give --for SIZE, or --budget GFLOPS")
    if budget is not None and floor is not None:
        raise UserError("--floor is for the law of sizes, and --budget uses the joint law; leave one out")
    if far and budget is None:
        raise UserError("--far is for --budget; leave it out")
    study = open_study(run, home, None)
    written = [predict_budget(study, budget, home, far)] if budget else predict_command(study, size or "", home, floor)
    warning = log_to_mlflow(study, [file for _, file in written])
    if as_json:
        print_json([prediction for prediction, _ in written])
    else:
        for prediction, file in written:
            click.echo(budget_text(prediction) if budget else prediction_text(prediction))
            click.echo(f"  {file}")
    if warning:
        click.echo(warning, err=True)
