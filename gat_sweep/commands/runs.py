"""Runs that go on, or did: status, stop, logs, doctor."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from gat_sweep.commands.options import (
    console,
    home_option,
    json_option,
    make_sweep,
    print_json,
    sweep_options,
)


@click.command()
@click.argument("name", required=False)
@home_option
@json_option
def status(name: str | None, home: Any, as_json: bool) -> None:
    """Show the runs of a home, or the trials of one: where they are, what they spent, who works on them."""
    from gat_sweep.commands.status import status_table
    from gat_sweep.monitor.status import run_status, runs_of

    if name is None:
        runs = runs_of(home)
        if as_json:
            print_json(runs)
        for run in [] if as_json else runs:
            counts = ", ".join(f"{count} {status}" for status, count in run["trials"].items())
            click.echo(f"{run['run']}: {counts}")
        if not runs and not as_json:
            click.echo(f"no runs in {home}")
        return
    found = run_status(home, name)
    if as_json:
        print_json(found)
    else:
        console().print(status_table(found))


@click.command()
@click.argument("name")
@click.argument("trials", nargs=-1)
@home_option
@json_option
def stop(name: str, trials: tuple[str, ...], home: Any, as_json: bool) -> None:
    """Ask the trials of a run, or some of them, to save and end; `gat-sweep run` goes on from there."""
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
        click.echo("none of these trials is running now; none will begin before the next gat-sweep run")


@click.command()
@click.argument("name")
@click.argument("trials", nargs=-1)
@click.option("--lines", type=click.IntRange(min=1), default=40, show_default=True, help="The last so many.")
@click.option("--follow", "-f", is_flag=True, help="Wait for more, until Ctrl-C.")
@home_option
@json_option
def logs(name: str, trials: tuple[str, ...], lines: int, follow: bool, home: Any, as_json: bool) -> None:
    """Print the journals of a run's trials, or of some: losses, distances, notes, ends. JSON: one record a line."""
    from gat_sweep.commands.logs import log_line
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


@click.command()
@sweep_options
@home_option
@click.option("--address", help="A running Ray cluster, such as auto; this machine unless given.")
@click.option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow; sqlite below the home unless given.")
@json_option
def doctor(
    sweep: Path,
    recipe: str,
    preset: str,
    settings: tuple[str, ...],
    seeds: str | None,
    home: Any,
    address: str | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Check what a sweep needs before it is run: storage, weights, data, tracking, tokens, disk, cluster.

    Names the fix of whatever is wrong; exit code 1 when anything is.
    """
    from gat_sweep.commands.doctor import findings_table
    from gat_sweep.launch.doctor import examine

    spec = make_sweep(sweep, recipe, preset, settings, seeds)
    findings = examine(spec, home, address, tracking_uri)
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        console().print(findings_table(findings))
    sys.exit(int(any(not finding.ok for finding in findings)))
