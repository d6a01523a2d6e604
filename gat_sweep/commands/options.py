"""Options that several commands share, and functions that print results."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from gat_sweep.errors import UserError

if TYPE_CHECKING:  # spares --help the import of pydantic and pyarrow, half a second
    from gat_sweep.config import TrialConfig
    from gat_sweep.files.storage import Place
    from gat_sweep.plan import Rate
    from gat_sweep.sweep import Sweep

DEFAULT_RECIPE = "imagenet256"


MOST_SEEDS = 1000  # of one range in --seeds
LARGEST = 1e30  # no compute, price or factor is larger, and its square is still a number


class Finite(click.FloatRange):
    """A range of numbers without NaN, which every comparison lets through, and without the endless."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not abs(number) <= LARGEST:
            self.fail(f"{value} is not a number of at most {LARGEST:g}", param, ctx)
        return number


class OneOfEach(click.Command):
    """A command that refuses a second value of an option; click would take the last."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for option in order:
            once = isinstance(option, click.Option) and not option.multiple and not option.is_flag
            if once and order.count(option) > 1:
                raise click.UsageError(f"{option.opts[0]} is given {order.count(option)} times; keep one", ctx)
        return super().parse_args(ctx, args)


def command(name: str | None = None, **attributes: Any) -> Callable[..., OneOfEach]:
    """The decorator of every command, as click.command."""
    return click.command(name, cls=OneOfEach, **attributes)


def _home(context: click.Context, option: click.Parameter, text: str) -> "Place":
    from gat_sweep.files.storage import place

    return place(text)


def _writable(context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """A folder that is there or can be made, so that no work is lost at its end."""
    if path is not None:
        there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
        try:
            with TemporaryDirectory(dir=there):  # permissions alone do not say it
                pass
        except OSError:
            raise UserError(f"--out {path}: {there} is not a folder that can be written; give another one") from None
    return path


def _with_folder(context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and not path.parent.is_dir():
        raise UserError(f"--out {path}: no such folder; make {path.parent} first")
    return path


home_option = click.option(
    "--home",
    callback=_home,
    envvar="GAT_SWEEP_HOME",
    default="runs",
    show_default=True,
    help="Where runs live: a folder, or s3://bucket/prefix (or set GAT_SWEEP_HOME).",
)
device_option = click.option("--device", help="cpu, cuda or cuda:1; default: cuda where there is one.")
threads_option = click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default: all.")
out_option = click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_with_folder,
    help="Also write the JSON to this file.",
)
folder_option = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    callback=_writable,
    help="Folder for the results; default: the run's own, or one named after the command.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
metric_option = click.option(
    "--metric",
    type=click.Choice(["value", "fd_infinity", "kernel_distance"]),
    default="value",
    show_default=True,
    help="Column to read: the Frechet distance at N samples, or what eval.extras measured at the end.",
)
settings_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Where a trial's data and tokenizer lie now."
)
address_option = click.option("--address", help="A running Ray cluster, such as auto; default: start Ray here.")
tracking_option = click.option(
    "--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow's address; default: sqlite below the home."
)

Command = Callable[..., Any]


def config_options(command: Command) -> Command:
    """--recipe, --preset and --set, which every command that builds a config takes."""
    for option in [
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a config value."),
        click.option("--preset", default="paper", show_default=True, help="paper, or official: the released code."),
        click.option("--recipe", default=DEFAULT_RECIPE, show_default=True, help="Data set and scale."),
    ]:
        command = option(command)
    return command


def sweep_options(command: Command) -> Command:
    """SWEEP and --seeds, and the options of a config."""
    for option in [
        click.option("--seeds", help="Seeds instead of the sweep file's, such as 0,1,2 or 0-9."),
        click.argument("sweep"),
    ]:
        command = option(command)
    return config_options(command)


def make_config(recipe: str, preset: str, settings: tuple[str, ...], *more: dict[str, Any]) -> "TrialConfig":
    """One trial's config from the command line; --set is applied after `more`."""
    from gat_sweep.recipe import PRESETS, load_recipe, resolve

    if preset not in PRESETS:
        raise UserError(f"unknown preset '{preset}'; there are: {', '.join(PRESETS)}")
    return resolve(load_recipe(recipe), PRESETS[preset], *more, parse_settings(settings))


def seed_numbers(text: str) -> list[int]:
    """Seeds of --seeds: numbers and ranges with commas. Raises UserError for anything else."""
    found: list[int] = []
    for part in text.split(","):
        ends = [end.strip() for end in part.split("-")]
        if len(ends) > 2 or not all(end.isdecimal() and end.isascii() for end in ends):
            raise UserError(f"--seeds {text}: expected whole numbers and ranges with commas, such as 0,1,2 or 0-9")
        first, last = int(ends[0]), int(ends[-1])
        if last < first:
            raise UserError(f"--seeds {text}: the range {part.strip()} is empty; give the smaller number first")
        if last - first >= MOST_SEEDS:
            raise UserError(f"--seeds {text}: a range may have at most {MOST_SEEDS} seeds")
        found += range(first, last + 1)
    return found


def make_sweep(sweep: str, recipe: str, preset: str, settings: tuple[str, ...], seeds: str | None) -> "Sweep":
    """A sweep's trials from the command line; prints the file's path if it is one that ships with the package."""
    from gat_sweep.sweep import load_sweep, sweep_file

    numbers = None
    if seeds is not None:
        numbers = seed_numbers(seeds)
    path = sweep_file(sweep)
    loaded = load_sweep(path, recipe, preset, parse_settings(settings), numbers)
    if path != Path(sweep):
        click.echo(f"sweep file {path}", err=True)
    return loaded


def parse_settings(settings: tuple[str, ...]) -> dict[str, Any]:
    """Values of --set by key. Raises UserError for an unknown key."""
    from gat_sweep.files.credentials import without_credentials
    from gat_sweep.files.yamlfile import parse_scalar
    from gat_sweep.recipe import check_key

    values = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {without_credentials(setting)}: expected KEY=VALUE, such as train.steps=200")
        check_key(key)
        if key in values:
            raise UserError(f"--set {key} is given twice; keep one")
        values[key] = parse_scalar(text)
    return values


def rates_of(configs: "list[TrialConfig]", peak: tuple[float, float] | None, device: str | None) -> "list[Rate]":
    """Speed of each config: at an MFU and FLOP/s of a worker, or without `peak` as timed here.

    Raises UserError as calibrate does.
    """
    if peak:
        from gat_sweep.plan import rate_at

        return [rate_at(config, *peak) for config in configs]
    from gat_sweep.speed.calibration import calibrate  # torch, which the rest of a plan does not wait for
    from gat_sweep.train.device import chosen_device

    return calibrate(configs, chosen_device(device), say)


def both_networks(sizes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Config values for each size; those of the recipe's default when no size is given."""
    return [{"model.generator": size, "model.discriminator": size} for size in sizes] or [{}]


NARROWEST = 80  # columns; below it a table would show no values


def console() -> Console:
    """A console for tables: as wide as COLUMNS says, or the terminal, or 200 columns in a pipe; at least NARROWEST."""
    asked = os.environ.get("COLUMNS", "")
    width = int(asked) if asked.isascii() and asked.isdecimal() and int(asked) else None
    if width is None:
        width = Console().width if sys.stdout.isatty() else 200
    return Console(width=max(width, NARROWEST))


better_option = click.option(
    "--better",
    type=click.Choice(["lower", "higher"]),
    help="Which value of the metric is better, if its name does not say it.",
)
floor_option = click.option(
    "--floor",
    type=Finite(min=0),
    help="Floor of the law that is known from elsewhere, such as the tokenizer's own distance; 0: there is none.",
)


def say(text: str) -> None:
    """Prints a line of progress to standard error."""
    click.echo(text, err=True)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1))


def print_report(report: dict[str, Any], text: str, files: list[Path], as_json: bool) -> None:
    """Prints a result as JSON, or as text with the files that were written."""
    if as_json:
        print_json(report)
        return
    click.echo(text)
    click.echo(f"  {files[0].parent}: {', '.join(file.name for file in files)}")


def print_files(files: list[Path]) -> None:
    for file in files:
        click.echo(f"  {file}")


def print_results(
    results: list[dict[str, Any]], show: Callable[[dict[str, Any], Console], None], out: Path | None, as_json: bool
) -> None:
    """Writes results of a benchmark to a file if asked, and prints them as JSON or as tables."""
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if as_json:
        print_json(results)
        return
    for result in results:
        show(result, console())
