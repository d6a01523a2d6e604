"""Networks and steps measured: model-info, parity, bench, latency."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from gat_sweep.commands.options import (
    config_options,
    device_option,
    json_option,
    make_config,
    out_option,
    print_json,
    print_results,
)


@click.command("model-info")
@click.option("--size", help="Size of both networks; the recipe's default unless given.")
@click.option("--patch", type=int, help="Patch size; the recipe's default unless given.")
@config_options
@json_option
def model_info(
    size: str | None, patch: int | None, recipe: str, preset: str, settings: tuple[str, ...], as_json: bool
) -> None:
    """Parameters and FLOPs of the networks and of one training iteration."""
    from gat_sweep.plan import model_info as info_of
    from gat_sweep.text import human

    (chosen,) = _both_networks((size,) if size else ())
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
    from gat_sweep.pretrained.parity import LIMITS, check_parity

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
@out_option
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
    from gat_sweep.commands.bench import show
    from gat_sweep.speed.bench import bench_command

    chosen: dict[str, Any] = {"workers.count": 1}
    if batch is not None:
        chosen["train.batch"] = batch
    configs = [make_config(recipe, preset, settings, chosen, both) for both in _both_networks(sizes)]
    results = bench_command(configs, device, threads, iterations, Console(stderr=True))
    print_results(results, show, out, as_json)


@click.command()
@click.option("--size", "sizes", multiple=True, help="Size of the generator; repeat for several.")
@click.option("--images", type=click.IntRange(min=1), default=64, show_default=True, help="Table 6 has 64.")
@click.option("--batch", "batches", type=click.IntRange(min=1), multiple=True, help="Images at once.")
@click.option("--repeats", type=click.IntRange(min=3), default=10, show_default=True, help="Of the timed generation.")
@click.option("--tokenizer", help="A VAE (hub id or folder), whose decoder is timed too.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all of them unless given.")
@device_option
@out_option
@config_options
@json_option
def latency(
    sizes: tuple[str, ...],
    images: int,
    batches: tuple[int, ...],
    repeats: int,
    tokenizer: str | None,
    threads: int | None,
    device: str | None,
    out: Path | None,
    recipe: str,
    preset: str,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Time and memory of generating images (Table 6): G alone, with guidance, with the tokenizer's decoder."""
    from gat_sweep.commands.latency import show_inference
    from gat_sweep.speed.latency import inference_command
    from gat_sweep.train.device import chosen_device

    configs = [make_config(recipe, preset, settings, {"workers.count": 1}, both) for both in _both_networks(sizes)]
    at_once = sorted(set(batches or (1, images)))
    results = inference_command(
        configs, chosen_device(device), threads, images, at_once, repeats, tokenizer, Console(stderr=True)
    )
    print_results(results, show_inference, out, as_json)


def _both_networks(sizes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Config values for each size; those of the recipe's default when none is given."""
    return [{"model.generator": size, "model.discriminator": size} for size in sizes] or [{}]
