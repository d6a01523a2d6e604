"""fit-law: the law of a run, of a table, or of the paper."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from gat_sweep.commands.options import (
    command,
    console,
    floor_option,
    folder_option,
    home_option,
    json_option,
    metric_option,
    print_json,
    print_report,
    say,
)
from gat_sweep.errors import UserError

if TYPE_CHECKING:
    from gat_sweep.files.storage import Place


@command("fit-law")
@click.argument("source", required=False)
@metric_option
@click.option("--paper", is_flag=True, help="Fit the paper's own Table 3 with our FLOPs.")
@floor_option
@click.option(
    "--selftest",
    is_flag=True,
    help="Fit laws with known answers, and print how often the intervals hold them (minutes).",
)
@click.option("--raced", is_flag=True, help="Fit the survivors of a race, although their values are biased downward.")
@click.option("--verbose", is_flag=True, help="Print everything that law.json holds, such as the law without each run.")
@home_option
@folder_option
@json_option
def fit_law(
    source: str | None,
    metric: str,
    paper: bool,
    floor: float | None,
    selftest: bool,
    raced: bool,
    verbose: bool,
    home: "Place",
    out: Path | None,
    as_json: bool,
) -> None:
    """Fit a law, metric = a C^-b or E + a C^-b, and check it.

    Scores the run's predictions. SOURCE is the name of a run, a .parquet, a .csv or a .tsv. Leaves law.json, law.svg
    and law.png in the run and in MLflow.

    \b
    Example:
      gat-sweep fit-law widths-digits
      gat-sweep fit-law widths-imagenet256 --floor 0.6
      gat-sweep fit-law table.csv --out law
      gat-sweep fit-law --paper
    """
    from gat_sweep.results.fit_law import fit_law_command

    if paper + bool(source) + selftest != 1:
        raise UserError("give the name of a run, a .parquet, a .csv or a .tsv; or --paper or --selftest alone")
    if selftest:
        from analysis.selftest.run import run_selftest

        found = run_selftest(say)
        if as_json:
            print_json(found)
        else:
            console().print(selftest_table(found))
        sys.exit(int(not all(row["passes"] for row in found)))
    report, text, files = fit_law_command(source, metric, home, out, floor, verbose, raced)
    print_report(report, text, files, as_json)


def selftest_table(rows: list[dict[str, Any]]) -> Table:
    """Table of how often the intervals held the truth."""
    from analysis.selftest.run import BAR

    table = Table(title="how often 95 % intervals hold a known truth", title_justify="left")
    for name in ["interval", "planted", "draws", "held", "95 %", "without an end", "at the bar"]:
        table.add_column(name, justify="left" if name in ("interval", "planted") else "right")
    for row in rows:
        table.add_row(
            row["interval"],
            row["planted"],
            str(row["draws"]),
            f"{row['coverage']:.1%}",
            f"{row['low']:.1%} to {row['high']:.1%}",
            str(row["unbounded"]),
            "yes" if row["passes"] else "NO",
        )
    table.caption = f"the bar: {BAR[0]:.0%} to {BAR[1]:.0%}"
    return table
