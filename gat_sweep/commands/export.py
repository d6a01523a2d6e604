"""export: a checkpoint as a folder of networks."""

import click

from gat_sweep.commands.options import command, parse_settings, settings_option


@command()
@click.argument("checkpoint")
@click.argument("out")
@settings_option
def export(checkpoint: str, out: str, settings: tuple[str, ...]) -> None:
    """Write a checkpoint's networks as a folder for others.

    It holds the EMA generator, the discriminator, config.json and a model card. The files have the names that
    diffusers uses; the weights are safetensors.

    \b
    Example:
      gat-sweep export runs/widths-digits/trials/L-p2-s0-51c502ae/checkpoints/step_00002000 gat-l
    """
    from gat_sweep.files.storage import place
    from gat_sweep.pretrained.folder import from_trial, save_pretrained, shapes_text

    found = from_trial(place(checkpoint, "CHECKPOINT"), parse_settings(settings), discriminator=True)
    save_pretrained(place(out, "OUT"), found.generator, found.about, found.discriminator)
    click.echo(f"{out}: {shapes_text(found.generator)}")
