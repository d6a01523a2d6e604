"""The command line: its commands (commands/), and how errors end."""

import sys

import click

from gat_sweep.commands import analyses, checkpoints, coordinates, data, measure, networks, runs, sweeps
from gat_sweep.errors import UserError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="gat-sweep")
def cli() -> None:
    """Scaling-law sweeps of transformer GANs (GAT)."""


for command in [
    data.encode,
    sweeps.plan,
    sweeps.run,
    sweeps.train,
    runs.doctor,
    runs.status,
    runs.stop,
    runs.logs,
    analyses.fit_law,
    analyses.predict,
    *analyses.each_analysis.values(),
    analyses.report,
    sweeps.ui,
    measure.model_info,
    measure.parity,
    measure.bench,
    measure.latency,
    coordinates.coord_check,
    checkpoints.evaluate,
    checkpoints.inspect,
    networks.export,
    networks.import_official,
    networks.export_official,
    networks.sample,
]:
    cli.add_command(command)


def main() -> None:
    """Entry point: one line and exit 2 for what a user can mend, 130 for Ctrl-C."""
    try:
        cli.main(standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except click.UsageError as error:
        hint = f"; see {error.ctx.command_path} --help" if error.ctx else ""
        _fail(error.format_message().rstrip(".") + hint)
    except click.ClickException as error:
        _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)


def _fail(message: str) -> None:
    click.echo(f"gat-sweep: {' '.join(message.split())}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
