"""The command line: parse, print, dispatch; nothing else."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from gat_sweep.errors import UserError

DEFAULT_RECIPE = "imagenet256"

home_option = click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="GAT_SWEEP_HOME",
    default="runs",
    show_default=True,
    help="Where runs live (or set GAT_SWEEP_HOME).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


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


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="gat-sweep")
def cli() -> None:
    """Scaling-law sweeps of transformer GANs (GAT)."""


@cli.command()
@sweep_options
@json_option
def plan(sweep: Path, recipe: str, preset: str, settings: tuple[str, ...], seeds: str | None, as_json: bool) -> None:
    """Show a sweep's trials: parameters, FLOPs, learning rates. Runs nothing."""
    from gat_sweep.plan import human, trial_plan

    spec = _load_sweep(sweep, recipe, preset, settings, seeds)
    rows = {trial: trial_plan(config) for trial, config in spec.trials.items()}
    if as_json:
        _print_json({"sweep": spec.name, "about": spec.about, "recipe": spec.recipe, "trials": rows})
        return
    table = Table(title=f"{spec.name} on {spec.recipe}: {spec.about}", title_justify="left")
    for name in ["trial", "G params", "D params", "G fwd FLOP", "D fwd FLOP", "lr G", "lr D", "steps", "total FLOP"]:
        table.add_column(name, justify="left" if name == "trial" else "right", no_wrap=True)
    for trial, row in rows.items():
        numbers = [row[k] for k in ("g_params", "d_params", "g_forward_flops", "d_forward_flops")]
        rates = [f"{row[k]:.3g}" for k in ("lr_g", "lr_d")]
        table.add_row(trial, *map(human, numbers), *rates, str(row["steps"]), human(row["total_flops"]))
    total = sum(row["total_flops"] for row in rows.values())
    table.caption = f"{len(rows)} trials, {human(total)}FLOP of training in all (2 per multiply-add)"
    _console().print(table)


@cli.command()
@sweep_options
@home_option
@click.option("--name", help="Name of the run; <sweep>-<recipe> unless given.")
@click.option("--address", help="A running Ray cluster, such as auto; starts Ray here unless given.")
@click.option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow; sqlite below the home unless given.")
def run(
    sweep: Path,
    recipe: str,
    preset: str,
    settings: tuple[str, ...],
    seeds: str | None,
    home: Path,
    name: str | None,
    address: str | None,
    tracking_uri: str | None,
) -> None:
    """Run a sweep. The same command again runs what is not finished."""
    from gat_sweep.run import run_command

    spec = _load_sweep(sweep, recipe, preset, settings, seeds)
    name = name or f"{spec.name}-{spec.recipe}"
    _check_name(name)
    if not run_command(spec, home.absolute(), name, address, tracking_uri, _console()):
        sys.exit(1)


@cli.command()
@config_options
@home_option
@click.option("--name", default="train", show_default=True, help="Name of the run.")
@click.option("--device", default=None, help="cpu, cuda, cuda:1; cuda when there is one, unless given.")
def train(recipe: str, preset: str, settings: tuple[str, ...], home: Path, name: str, device: str | None) -> None:
    """Train one trial here, without Ray and MLflow."""
    from gat_sweep.run import train_command

    _check_name(name)
    config = _config(recipe, preset, settings)
    if not train_command(config, home.absolute(), name, device, _console()):
        sys.exit(1)


@cli.command("fit-law")
@click.argument("source", required=False)
@click.option("--paper", is_flag=True, help="Fit the paper's own Table 3 with our FLOPs.")
@home_option
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for law.json and the plot.")
@json_option
def fit_law(source: str | None, paper: bool, home: Path, out: Path | None, as_json: bool) -> None:
    """Fit metric = a C^-b to a run, a table.parquet or a table.csv, and draw it."""
    from gat_sweep.run import fit_law_command

    if paper == bool(source):
        raise UserError("give the name of a run, a .parquet or a .csv; or --paper alone")
    law, text, files = fit_law_command(source, home.absolute(), out)
    if as_json:
        _print_json(law)
        return
    click.echo(text)
    for file in files:
        click.echo(f"  {file}")


@cli.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@json_option
def parity(file: Path, as_json: bool) -> None:
    """Compare networks and losses with a reference file of the released code; exit 1 when they differ."""
    from gat_sweep.parity import LIMITS, check_parity

    result = check_parity(file)
    if as_json:
        _print_json(asdict(result))
    else:
        for key, value in asdict(result).items():
            click.echo(f"{key:15} {value:.2e}   limit {LIMITS[key]:.0e}")
    if not result.passed:
        sys.exit(1)


@cli.command("model-info")
@click.option("--size", help="Size of both networks; the recipe's default unless given.")
@click.option("--patch", type=int, help="Patch size; the recipe's default unless given.")
@config_options
@json_option
def model_info(
    size: str | None, patch: int | None, recipe: str, preset: str, settings: tuple[str, ...], as_json: bool
) -> None:
    """Parameters and FLOPs of the networks and of one training iteration."""
    from gat_sweep.plan import human
    from gat_sweep.plan import model_info as info_of

    chosen: dict[str, Any] = {"model.generator": size, "model.discriminator": size} if size else {}
    if patch is not None:
        chosen["model.patch"] = patch
    info = info_of(_config(recipe, preset, settings, chosen))
    if as_json:
        _print_json(info)
        return
    for key, value in info.items():
        if key == "iteration_flops_rounded":
            click.echo("iteration, FLOP per image in whole forwards:")
            for item, count in value.items():
                click.echo(f"  {item:28} {human(count):>8}")
        elif key == "iteration_flops":
            click.echo("iteration, FLOP per image (2 per multiply-add):")
            for item, count in value.items():
                click.echo(f"  {item:28} {human(count):>8}  {100 * count / info['iteration_flops_total']:5.1f} %")
        else:
            click.echo(f"{key:22} {value:,}" if isinstance(value, int) else f"{key:22} {value}")


@cli.command()
@click.option("--size", "sizes", multiple=True, help="Size of both networks; repeat for several.")
@click.option("--batch", type=int, default=None, help="Images per step; the recipe's unless given.")
@click.option("--iterations", type=click.IntRange(min=3), default=10, show_default=True, help="Timed pairs of steps.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all of them unless given.")
@click.option("--device", default=None, help="cpu, cuda, cuda:1; cuda when there is one, unless given.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Also write the JSON to this file.")
@config_options
@json_option
def bench(
    sizes: tuple[str, ...],
    batch: int | None,
    iterations: int,
    threads: int | None,
    device: str | None,
    out: Path | None,
    recipe: str,
    preset: str,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Time the training step beside a straightforward one, on the same noise.

    Precision, compilation and everything else are config values: --set train.precision=float32,
    --set workers.compile=true.
    """
    from benchmarks.step import show
    from gat_sweep.run import bench_command

    if out is not None and not out.parent.is_dir():
        raise UserError(f"--out {out}: no such folder; make {out.parent} first")
    chosen: dict[str, Any] = {"workers.count": 1}
    if batch is not None:
        chosen["train.batch"] = batch
    configs = [
        _config(
            recipe, preset, settings, chosen, {"model.generator": size, "model.discriminator": size} if size else {}
        )
        for size in sizes or ("",)
    ]
    results = bench_command(configs, device, threads, iterations, Console(stderr=True))
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if as_json:
        _print_json(results)
        return
    for result in results:
        show(result, _console())


@cli.command()
@home_option
@click.option("--port", default=5000, show_default=True)
def ui(home: Path, port: int) -> None:
    """Open the MLflow UI of the home's store on loopback."""
    from gat_sweep.tracking import default_uri, serve_ui

    with _user_errors():
        serve_ui(default_uri(home.absolute()), home.absolute(), port)


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


class _user_errors:
    """Errors of packages that know nothing of UserError, where a ValueError is about the user's input."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, ValueError) and not isinstance(error, UserError):
            raise UserError(str(error)) from error


def _console() -> Console:
    """Tables keep their width when piped; a terminal keeps its own."""
    return Console() if sys.stdout.isatty() else Console(width=int(os.environ.get("COLUMNS", "200")))


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1))


def _config(recipe: str, preset: str, settings: tuple[str, ...], *more: dict[str, Any]) -> Any:
    """One trial's config from the command line; `more` is put in before --set."""
    from gat_sweep.config import PRESETS, load_recipe, resolve

    if preset not in PRESETS:
        raise UserError(f"unknown preset '{preset}'; there are: {', '.join(PRESETS)}")
    return resolve(load_recipe(recipe), PRESETS[preset], *more, _settings(settings))


def _settings(settings: tuple[str, ...]) -> dict[str, Any]:
    from gat_sweep.config import check_key
    from gat_sweep.yamlfile import parse_scalar

    values = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: expected KEY=VALUE, such as train.steps=200")
        check_key(key)
        values[key] = parse_scalar(text)
    return values


def _load_sweep(path: Path, recipe: str, preset: str, settings: tuple[str, ...], seeds: str | None) -> Any:
    from gat_sweep.sweep import load_sweep

    numbers = None
    if seeds is not None:
        if not all(part.strip().isdigit() for part in seeds.split(",")):
            raise UserError(f"--seeds {seeds}: expected whole numbers with commas, such as 0,1,2")
        numbers = [int(part) for part in seeds.split(",")]
    return load_sweep(path, recipe, preset, _settings(settings), numbers)


def _check_name(name: str) -> None:
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
        raise UserError(f"--name {name!r}: use letters, digits, '-', '_' and '.' only")


if __name__ == "__main__":
    main()
