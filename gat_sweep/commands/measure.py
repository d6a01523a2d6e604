"""Networks, steps and checkpoints measured: model-info, parity, bench."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from gat_sweep.commands.options import (
    DEFAULT_RECIPE,
    config_options,
    console,
    device_option,
    home_option,
    json_option,
    make_config,
    parse_settings,
    print_json,
)
from gat_sweep.errors import UserError


@click.command("model-info")
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
    info = info_of(make_config(recipe, preset, settings, chosen))
    if as_json:
        print_json(info)
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


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@json_option
def parity(file: Path, as_json: bool) -> None:
    """Compare networks and losses with a reference file of the released code; exit 1 when they differ."""
    from gat_sweep.parity import LIMITS, check_parity

    result = check_parity(file)
    if as_json:
        print_json(asdict(result))
    else:
        for key, value in asdict(result).items():
            click.echo(f"{key:15} {value:.2e}   limit {LIMITS[key]:.0e}")
    if not result.passed:
        sys.exit(1)


@click.command()
@click.option("--size", "sizes", multiple=True, help="Size of both networks; repeat for several.")
@click.option("--batch", type=int, default=None, help="Images per step; the recipe's unless given.")
@click.option("--iterations", type=click.IntRange(min=3), default=10, show_default=True, help="Timed pairs of steps.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all of them unless given.")
@device_option
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
        make_config(
            recipe, preset, settings, chosen, {"model.generator": size, "model.discriminator": size} if size else {}
        )
        for size in sizes or ("",)
    ]
    results = bench_command(configs, device, threads, iterations, Console(stderr=True))
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if as_json:
        print_json(results)
        return
    for result in results:
        show(result, console())


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--recipe", default=DEFAULT_RECIPE, show_default=True, help="Protocol and data, when TARGET is pictures.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override eval.* or data.path.")
@home_option
@device_option
@json_option
def evaluate(
    target: Path, recipe: str, settings: tuple[str, ...], home: Path, device: str | None, as_json: bool
) -> None:
    """Measure a trial's checkpoint, or generated pictures (an npz with arr_0, or a folder)."""
    from gat_sweep.metrics.command import evaluate_command, evaluation_table
    from gat_sweep.run import chosen_device

    progress = Console(stderr=True)
    found = evaluate_command(
        target,
        recipe,
        parse_settings(settings),
        home.absolute(),
        chosen_device(device),
        lambda text: progress.print(text, highlight=False),
    )
    if as_json:
        print_json(asdict(found))
    else:
        console().print(evaluation_table(found))
