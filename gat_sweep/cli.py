"""The command line: the table of commands by group, and how errors end."""

import sys

import click

from gat_sweep.commands import (
    allocate,
    analyse,
    bench,
    claims,
    coord_check,
    design,
    doctor,
    edit,
    encode,
    evaluate,
    export,
    export_official,
    fit_law,
    import_official,
    inspect,
    latency,
    log_model,
    logs,
    model_info,
    parity,
    plan,
    predict,
    report,
    run,
    sample,
    send,
    status,
    stop,
    train,
    ui,
)
from gat_sweep.errors import UserError, system_line

GROUPS: dict[str, list[click.Command]] = {
    "Sweep": [design.design, plan.plan, doctor.doctor, run.run, train.train],
    "Watch": [status.status, logs.logs, stop.stop, ui.ui, send.send],
    "Results": [fit_law.fit_law, predict.predict, allocate.allocate, *analyse.COMMANDS, report.report, claims.claims],
    "Networks": [
        evaluate.evaluate,
        sample.sample,
        edit.edit,
        inspect.inspect,
        export.export,
        log_model.log_model,
        import_official.import_official,
        export_official.export_official,
    ],
    "Data": [encode.encode],
    "Measure": [model_info.model_info, parity.parity, bench.bench, latency.latency, coord_check.coord_check],
}


class GroupedHelp(click.Group):
    """Lists the commands under the headings of GROUPS, each with the whole first line of its help."""

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        longest = max(len(command.name or "") for commands in GROUPS.values() for command in commands)
        for heading, commands in GROUPS.items():
            with formatter.section(heading):
                rows = [(f"{command.name:{longest}}", first_line(command)) for command in commands]
                formatter.write_dl(rows)


def first_line(command: click.Command) -> str:
    """The first line of a command's help."""
    return (command.help or "").partition("\n")[0]


@click.group(cls=GroupedHelp, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="gat-sweep")
def cli() -> None:
    """Scaling-law sweeps of transformer GANs (GAT). `gat-sweep COMMAND --help` has an example of each command."""


for _commands in GROUPS.values():
    for _command in _commands:
        cli.add_command(_command)


def main() -> None:
    """Entry point: one line and exit code 2 for what a user can fix, 130 for Ctrl-C."""
    try:
        cli.main(standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except click.UsageError as error:
        hint = f"; see {error.ctx.command_path} --help" if error.ctx else ""
        _fail(error.format_message().rstrip(".") + hint)
    except click.ClickException as error:
        _fail(error.format_message())
    except OSError as error:  # a full disk, a folder in a file's place, a loop of links, no permission
        line = system_line(error)
        if line is None:
            raise
        _fail(line)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)


def _fail(message: str) -> None:
    click.echo(f"gat-sweep: {' '.join(message.split())}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
