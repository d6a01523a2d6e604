"""model-info: parameters and FLOPs of both networks."""

import click

from gat_sweep.commands.options import both_networks, command, config_options, json_option, make_config, print_json


@command("model-info")
@click.option("--size", help="Size of both networks; default: the recipe's.")
@click.option("--patch", type=int, help="Patch size; default: the recipe's.")
@config_options
@json_option
def model_info(
    size: str | None, patch: int | None, recipe: str, preset: str, settings: tuple[str, ...], as_json: bool
) -> None:
    """Count parameters and FLOPs of networks and an iteration.

    \b
    Example:
      gat-sweep model-info --size XL --patch 2
    """
    from gat_sweep.plan import model_info as info_of
    from gat_sweep.text import human

    (chosen,) = both_networks((size,) if size else ())
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
