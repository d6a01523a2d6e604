"""allocate: which size for how long, at a budget."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gat_sweep.commands.options import (
    Finite,
    better_option,
    command,
    folder_option,
    home_option,
    json_option,
    metric_option,
    print_report,
)
from gat_sweep.errors import UserError

if TYPE_CHECKING:
    from gat_sweep.files.storage import Place


@command()
@click.argument("source")
@click.option(
    "--budget",
    type=Finite(0, min_open=True),
    help="Training compute of the run, in GFLOPs (multiply-adds / 1e9); default: the largest of the table.",
)
@click.option(
    "--gpu-hours",
    type=Finite(0, min_open=True),
    help="The budget as hours of one GPU, at the speed of this run's trials.",
)
@click.option("--far", is_flag=True, help="Allow answers far beyond the table: its computes and its sizes.")
@better_option
@metric_option
@home_option
@folder_option
@json_option
def allocate(
    source: str,
    budget: float | None,
    gpu_hours: float | None,
    far: bool,
    better: str | None,
    metric: str,
    home: "Place",
    out: Path | None,
    as_json: bool,
) -> None:
    """Find the size and the length for a compute.

    Fits a joint law of size and images to all checkpoints of SOURCE, the name of a run, a .parquet, a .csv or a .tsv.
    Leaves allocate.json, allocate.svg and allocate.png in the run and in MLflow.

    \b
    Example:
      gat-sweep run frontier --recipe digits
      gat-sweep allocate frontier-digits
      gat-sweep allocate frontier-imagenet256 --gpu-hours 2000
    """
    from gat_sweep.results.allocate import allocate_command

    if budget is not None and gpu_hours is not None:
        raise UserError("--budget and --gpu-hours both give the compute; give one of them")
    report, text, files = allocate_command(source, metric, home, out, budget, gpu_hours, far, better)
    print_report(report, text, files, as_json)
