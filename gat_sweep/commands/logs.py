"""logs: the journals of a run's trials."""

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from gat_sweep.commands.options import command, home_option, json_option

if TYPE_CHECKING:
    from gat_sweep.files.storage import Place

SYSTEM = "system/"  # load of the machines, which would hide the losses


def log_line(record: dict[str, Any]) -> str:
    """A record of a journal as a line of text."""
    moment = datetime.fromtimestamp(record["time"]).isoformat(" ", "seconds")
    if "metrics" in record:
        metrics = {name: value for name, value in record["metrics"].items() if not name.startswith(SYSTEM)}
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    else:
        shown = record.get("note") or f"{record['status']} {record.get('reason', '')}".strip()
    return f"{moment}  {record['trial']}  step {record['step']}  {shown}"


@command()
@click.argument("name")
@click.argument("trials", nargs=-1)
@click.option(
    "--lines", type=click.IntRange(min=1), default=40, show_default=True, help="How many of the last lines to print."
)
@click.option("--follow", "-f", is_flag=True, help="Wait for more, until Ctrl-C.")
@home_option
@json_option
def logs(name: str, trials: tuple[str, ...], lines: int, follow: bool, home: "Place", as_json: bool) -> None:
    """Print the journals of a run's trials, or of some of them.

    A journal holds losses, distances, notes and changes of status. With --json, each line is one record.

    \b
    Example:
      gat-sweep logs widths-digits --follow
    """
    from gat_sweep.monitor.status import log_records
    from gat_sweep.run.record import chosen_trials

    chosen = chosen_trials(home, name, trials)
    past = list(log_records(chosen, follow=False))
    for record in past[-lines:]:
        click.echo(json.dumps(record) if as_json else log_line(record))
    if follow:
        for number, record in enumerate(log_records(chosen, follow=True)):
            if number >= len(past):
                click.echo(json.dumps(record) if as_json else log_line(record))
    for trial in chosen:
        if not as_json and trial.status() == "failed" and (trial.folder / "failure.txt").exists():
            click.echo(f"{trial.id} failed: its traceback is in {trial.folder / 'failure.txt'}")
