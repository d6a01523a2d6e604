"""model-info: parameters and FLOPs of both networks."""

import click

from gat_sweep.commands.options import both_networks, command, config_options, json_option, make_config, print_json
from gat_sweep.errors import UserError


@command("model-info")
@click.option("--size", help="Size of both networks; default: the recipe's.")
@click.option("--patch", type=int, help="Patch size; default: the recipe's.")
@click.option("--roofline", "device", metavar="DEVICE", help="Also what an iteration takes at best on h100 or h200.")
@click.option(
    "--batch", type=click.IntRange(min=1), help="Images of one GPU, for --roofline; default: a worker's share."
)
@config_options
@json_option
def model_info(
    size: str | None,
    patch: int | None,
    device: str | None,
    batch: int | None,
    recipe: str,
    preset: str,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Count parameters and FLOPs of networks and an iteration.

    \b
    Example:
      gat-sweep model-info --size XL --patch 2
      gat-sweep model-info --size XL --roofline h100 --batch 64
    """
    from gat_sweep.plan import model_info as info_of
    from gat_sweep.speed.roofline import lines, roofline
    from gat_sweep.text import human

    if batch is not None and device is None:
        raise UserError("--batch is for --roofline; add --roofline h100, or leave --batch out")

    (chosen,) = both_networks((size,) if size else ())
    if patch is not None:
        chosen["model.patch"] = patch
    config = make_config(recipe, preset, settings, chosen)
    info = info_of(config)
    if device is not None:
        info["roofline"] = roofline(config, device, batch)
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
        elif key == "roofline":
            click.echo("\n".join(lines(value)))
        else:
            click.echo(f"{key:22} {value:,}" if isinstance(value, int) else f"{key:22} {value}")
