"""What several commands take, and how they print."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from gat_sweep.errors import UserError

DEFAULT_RECIPE = "imagenet256"

home_option = click.option(
    "--home",
    callback=lambda context, option, text: _place(text),
    envvar="GAT_SWEEP_HOME",
    default="runs",
    show_default=True,
    help="Where runs live: a folder, or s3://bucket/prefix (or set GAT_SWEEP_HOME).",
)
device_option = click.option("--device", default=None, help="cpu, cuda, cuda:1; cuda when there is one, unless given.")
out_option = click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=lambda context, option, path: _with_folder(path),
    help="Also write the JSON to this file.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _place(text: str) -> Any:
    from gat_sweep.files.storage import place  # half a second of pyarrow that --help need not pay

    return place(text)


def config_options(command: Any) -> Any:
    """--recipe, --preset and --set, which every command that builds a config takes."""
    for option in [
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a config value."),
        click.option("--preset", default="paper", show_default=True, help="paper, or official: the released code."),
        click.option("--recipe", default=DEFAULT_RECIPE, show_default=True, help="Data set and scale."),
    ]:
        command = option(command)
    return command


def sweep_options(command: Any) -> Any:
    for option in [
        click.option("--seeds", help="Seeds instead of the sweep file's, such as 0,1,2."),
        click.argument("sweep", type=click.Path(dir_okay=False, path_type=Path)),
    ]:
        command = option(command)
    return config_options(command)


class user_errors:
    """Errors of packages that know nothing of UserError, where a ValueError is about the user's input."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, ValueError) and not isinstance(error, UserError):
            raise UserError(str(error)) from error


def console() -> Console:
    """Tables keep their width when piped; a terminal keeps its own."""
    return Console() if sys.stdout.isatty() else Console(width=int(os.environ.get("COLUMNS", "200")))


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1))


def print_results(
    results: list[dict[str, Any]], show: Callable[[dict[str, Any], Console], None], out: Path | None, as_json: bool
) -> None:
    """Results of a benchmark, to a file and for people or as JSON."""
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if as_json:
        print_json(results)
        return
    for result in results:
        show(result, console())


def _with_folder(path: Path | None) -> Path | None:
    if path is not None and not path.parent.is_dir():
        raise UserError(f"--out {path}: no such folder; make {path.parent} first")
    return path


def make_config(recipe: str, preset: str, settings: tuple[str, ...], *more: dict[str, Any]) -> Any:
    """One trial's config from the command line; `more` is put in before --set."""
    from gat_sweep.recipe import PRESETS, load_recipe, resolve

    if preset not in PRESETS:
        raise UserError(f"unknown preset '{preset}'; there are: {', '.join(PRESETS)}")
    return resolve(load_recipe(recipe), PRESETS[preset], *more, parse_settings(settings))


def parse_settings(settings: tuple[str, ...]) -> dict[str, Any]:
    from gat_sweep.files.credentials import without_credentials
    from gat_sweep.files.yamlfile import parse_scalar
    from gat_sweep.recipe import check_key

    values = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {without_credentials(setting)}: expected KEY=VALUE, such as train.steps=200")
        check_key(key)
        values[key] = parse_scalar(text)
    return values


def make_sweep(path: Path, recipe: str, preset: str, settings: tuple[str, ...], seeds: str | None) -> Any:
    from gat_sweep.sweep import load_sweep

    numbers = None
    if seeds is not None:
        if not all(part.strip().isdigit() for part in seeds.split(",")):
            raise UserError(f"--seeds {seeds}: expected whole numbers with commas, such as 0,1,2")
        numbers = [int(part) for part in seeds.split(",")]
    return load_sweep(path, recipe, preset, parse_settings(settings), numbers)


def check_name(name: str) -> None:
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
        raise UserError(f"--name {name!r}: use letters, digits, '-', '_' and '.' only")
