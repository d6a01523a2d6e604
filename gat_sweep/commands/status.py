"""status: the runs of a home, or the trials of one."""

from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from gat_sweep.commands.options import command, console, home_option, json_option, print_json
from gat_sweep.text import duration, human

AHEAD = 5.0  # seconds that two clocks may differ by

if TYPE_CHECKING:
    from gat_sweep.files.storage import Place


def _ago(age: float) -> str:
    """The age of a sign of life, in seconds; another machine's clock may be ahead."""
    if age < -AHEAD:
        return f"(its clock is {duration(-age)} ahead of this one's, so whether it lives is not known)"
    return f"{duration(max(age, 0))} ago"


def status_table(status: dict[str, Any]) -> Table:
    """Table of a run's trials and their status, with what was spent in the caption."""
    table = Table(title=f"{status['run']} in {status['home']}", title_justify="left")
    for column in ["trial", "status", "step", "saved", "value", "FLOP", "GPU hours", "workers", "remarks"]:
        table.add_column(column, justify="left" if column in ("trial", "status", "workers", "remarks") else "right")
    for row in status["trials"]:
        workers = ", ".join(f"{w['host']}:{w['pid']} {w['phase']} {_ago(w['age'])}" for w in row["workers"])
        table.add_row(
            row["trial"],
            row["status"],
            f"{row['step']}/{row['steps']}",
            str(row["saved"]),
            "" if row["value"] is None else f"{row['value']:.1f}",
            human(row["flops"]),
            f"{row['gpu_hours']:.3g}",
            workers,
            "; ".join(text for text in (row["reason"], row["flags"]) if text),
        )
    caps = {name: value for name, value in status["budget"].items() if value is not None}
    spent = f"spent {human(status['spent']['flops'])}FLOP, {status['spent']['gpu_hours']:.4g} GPU hours"
    limits = "".join(f"; --{name.replace('_', '-')} {value:g}" for name, value in caps.items())
    asked = f"; asked to stop: {status['stop']}" if status["stop"] else ""
    crowd = f"{status['crowd']}\n" if status["crowd"] else ""
    table.caption = crowd + spent + limits + asked
    return table


@command()
@click.argument("name", required=False)
@home_option
@json_option
def status(name: str | None, home: "Place", as_json: bool) -> None:
    """Show the runs of a home, or the trials of one run.

    Each trial is shown with its progress, what it spent, and its workers.

    \b
    Example:
      gat-sweep status
      gat-sweep status widths-digits
    """
    from gat_sweep.monitor.status import run_status, runs_of

    if name is None:
        runs = runs_of(home)
        if as_json:
            print_json(runs)
        for run in [] if as_json else runs:
            counts = ", ".join(f"{count} {status}" for status, count in run["trials"].items())
            click.echo(f"{run['run']}: {run.get('trouble', counts)}")
        if not runs and not as_json:
            click.echo(f"no runs in {home}")
        return
    found = run_status(home, name)
    if as_json:
        print_json(found)
    else:
        console().print(status_table(found))
