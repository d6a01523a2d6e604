"""stop: ask trials to save and end."""

from typing import TYPE_CHECKING

import click

from gat_sweep.commands.options import command, home_option, json_option, print_json

if TYPE_CHECKING:
    from gat_sweep.files.storage import Place


@command()
@click.argument("name")
@click.argument("trials", nargs=-1)
@home_option
@json_option
def stop(name: str, trials: tuple[str, ...], home: "Place", as_json: bool) -> None:
    """Ask the trials of a run, or some of them, to save and end.

    `gat-sweep run` continues them.

    \b
    Example:
      gat-sweep stop widths-digits
    """
    from gat_sweep.monitor.status import trial_status
    from gat_sweep.run.record import chosen_trials
    from gat_sweep.run.stop import request_stop

    chosen = chosen_trials(home, name, trials)
    running = [trial.id for trial in chosen if trial_status(trial)["status"] == "running"]
    request_stop(home / name, "gat-sweep stop", trials)
    if as_json:
        print_json({"run": name, "asked": [trial.id for trial in chosen], "running": running})
    elif running:
        click.echo(f"{len(running)} running trials save and end within seconds; gat-sweep status {name} shows them")
    else:
        click.echo("none of these trials is running now; none will start before the next gat-sweep run")
