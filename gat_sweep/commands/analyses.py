"""What runs say: fit-law, predict, report, and a command for each of ANALYSES."""

import sys
from pathlib import Path
from typing import Any

import click

from analysis.catalogue import ANALYSES
from gat_sweep.commands.options import console, home_option, json_option, print_json
from gat_sweep.errors import UserError

folder_option = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the results; the run's own unless given.",
)
metric_option = click.option(
    "--metric",
    type=click.Choice(["value", "fd_infinity", "kernel_distance"]),
    default="value",
    show_default=True,
    help="Column to read: the Frechet distance at N samples, or what eval.extras measured at the end.",
)


@click.command("fit-law")
@click.argument("source", required=False)
@metric_option
@click.option("--paper", is_flag=True, help="Fit the paper's own Table 3 with our FLOPs.")
@click.option(
    "--floor", type=click.FloatRange(min=0), help="A floor known from elsewhere: the tokenizer's own distance."
)
@click.option(
    "--selftest",
    is_flag=True,
    help="Fit laws with known answers, and print how often intervals hold them; takes minutes.",
)
@home_option
@folder_option
@json_option
def fit_law(
    source: str | None,
    metric: str,
    paper: bool,
    floor: float | None,
    selftest: bool,
    home: Any,
    out: Path | None,
    as_json: bool,
) -> None:
    """Fit metric = a C^-b to a run, a table.parquet or a table.csv, check it, score what was predicted, and draw it."""
    from gat_sweep.results.fit_law import fit_law_command

    if paper + bool(source) + selftest != 1:
        raise UserError("give the name of a run, a .parquet or a .csv; or --paper or --selftest alone")
    if selftest:
        from analysis.selftest import run_selftest, selftest_table

        found = run_selftest(lambda text: click.echo(text, err=True))
        if as_json:
            print_json(found)
        else:
            console().print(selftest_table(found))
        sys.exit(int(not all(row["passes"] for row in found)))
    report, text, files = fit_law_command(source, metric, home, out, floor)
    _show(report, text, files, as_json)


@click.command()
@click.argument("run")
@click.option("--for", "size", required=True, help="A size that has not begun, such as XL.")
@home_option
@json_option
def predict(run: str, size: str, home: Any, as_json: bool) -> None:
    """Write down, before a size of a run begins, what the law of the others says of it. fit-law scores it later.

    Hold the size back with `gat-sweep run ... --hold SIZE`, predict, and run again without --hold.
    """
    from gat_sweep.results.predict import predict_command, prediction_text
    from gat_sweep.results.study import log_to_mlflow, open_source

    if run.endswith((".csv", ".parquet")):
        raise UserError(f"{run}: a prediction is of a run, whose trials it knows; give the name of one")
    source = open_source(run, home, None)
    written = predict_command(source, size, home)
    warning = log_to_mlflow(source, [file for _, file in written])
    if as_json:
        print_json([prediction for prediction, _ in written])
    else:
        for prediction, file in written:
            click.echo(prediction_text(prediction))
            click.echo(f"  {file}")
    if warning:
        click.echo(warning, err=True)


def analysis_command(name: str) -> click.Command:
    """The command of one of ANALYSES."""

    @click.command(name, help=f"{ANALYSES[name].about}\n\nSOURCE: the name of a run, a .parquet or a .csv.")
    @click.argument("source")
    @metric_option
    @home_option
    @folder_option
    @json_option
    def command(source: str, metric: str, home: Any, out: Path | None, as_json: bool, **options: Any) -> None:
        from gat_sweep.results.study import log_to_mlflow, open_source, run_analysis

        opened = open_source(source, home, out, metric)
        found, text, files = run_analysis(opened, name, **options)
        warning = log_to_mlflow(opened, files)
        _show(found, text + (f"\n{warning}" if warning else ""), files, as_json)

    return command


each_analysis = {name: analysis_command(name) for name in ANALYSES}
against = click.option("--against", "reference", help="Label of the arm to compare with; the cheapest unless given.")
against(each_analysis["compare"])


@click.command()
@click.argument("run")
@home_option
@folder_option
def report(run: str, home: Any, out: Path | None) -> None:
    """Write one HTML file with all that a run says: analyses, figures, samples, what failed, every row."""
    from gat_sweep.results.report import report_command

    path, warning = report_command(run, home, out, lambda text: click.echo(text, err=True))
    click.echo(str(path))
    if warning:
        click.echo(warning, err=True)


def _show(report: dict[str, Any], text: str, files: list[Path], as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    click.echo(text)
    for file in files:
        click.echo(f"  {file}")
