"""correlate, split, rates, compare: one command per entry of ANALYSES, but `allocate`, which has its own file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from analysis.catalogue import ANALYSES
from gat_sweep.commands.options import (
    better_option,
    command,
    folder_option,
    home_option,
    json_option,
    metric_option,
    print_report,
)

if TYPE_CHECKING:
    from gat_sweep.files.storage import Place

HELP = """{about}

SOURCE is the name of a run, a .parquet, a .csv or a .tsv. Leaves {name}.json, .svg and .png in the run and in MLflow.

\b
Example:
  gat-sweep {name} {example}"""
EXAMPLES = {
    "correlate": "widths-digits",
    "split": "decoupled-digits",
    "rates": "lr_transfer-digits",
    "compare": "mng-digits",
}


def _command(name: str) -> click.Command:
    text = HELP.format(about=ANALYSES[name].about, name=name, example=EXAMPLES[name])

    @command(name, help=text)
    @click.argument("source")
    @metric_option
    @home_option
    @folder_option
    @json_option
    def analysis(source: str, metric: str, home: "Place", out: Path | None, as_json: bool, **options: Any) -> None:
        from gat_sweep.results.study import log_to_mlflow, open_study, run_analysis

        study = open_study(source, home, out, metric)
        report, text, files = run_analysis(study, name, **options)
        warning = log_to_mlflow(study, files)
        print_report(report, text + (f"\n{warning}" if warning else ""), files, as_json)

    return analysis


_commands = {name: _command(name) for name in ANALYSES if name != "allocate"}
_against = click.option("--against", "reference", help="Label of the arm to compare with; default: the cheapest.")
_against(_commands["compare"])
for _name in ("split", "rates", "compare"):
    better_option(_commands[_name])
COMMANDS = list(_commands.values())
