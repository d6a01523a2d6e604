"""Data on disk: encode."""

from pathlib import Path

import click

from gat_sweep.commands.options import console


@click.command()
@click.option("--images", help="Folder of class folders of pictures, CIFAR's, or parquet: a file, a folder, a glob.")
@click.option("--latents", help="Instead of encoding: latents in edm2's or REPA's layout (dataset.json, *.npy).")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write.")
@click.option(
    "--tokenizer", required=True, help="A VAE (hub id or folder of diffusers' AutoencoderKL), pixels, or dct4."
)
@click.option("--teacher", help="Also store this teacher's tokens, for small sets: efficientnet_lite0, or timm's name.")
@click.option("--teacher-checkpoint", help="Its weights, as a local file.")
@click.option("--teacher-grid", type=click.IntRange(min=1), help="Its tokens per side; half the latent's unless given.")
@click.option("--store-images", is_flag=True, help="Also keep the pictures, lossless, for teacher and references.")
@click.option("--size", type=click.IntRange(min=8), default=256, show_default=True, help="Side of the cropped squares.")
@click.option("--label-column", help="Of parquet files; found by itself where there is one only.")
@click.option(
    "--max-bad", type=click.IntRange(min=0), default=100, show_default=True, help="Pictures allowed to be bad."
)
@click.option("--shard-size", type=click.IntRange(min=1), default=1024, show_default=True, help="Pictures per shard.")
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Pictures at once in the VAE.")
@click.option("--address", help="A running Ray cluster, such as auto; starts Ray here unless given.")
def encode(
    images: str | None,
    latents: str | None,
    out: Path,
    tokenizer: str,
    teacher: str | None,
    teacher_checkpoint: str | None,
    teacher_grid: int | None,
    store_images: bool,
    size: int,
    label_column: str | None,
    max_bad: int,
    shard_size: int,
    batch: int,
    address: str | None,
) -> None:
    """Crop pictures, encode them with a VAE and write shards to train from.

    The same command again goes on where it was stopped.
    """
    from gat_sweep.encode.job import EncodeJob
    from gat_sweep.encode.job import encode as run

    job = EncodeJob(
        out=out,
        tokenizer=tokenizer,
        images=images,
        latents=latents,
        teacher=teacher,
        teacher_checkpoint=teacher_checkpoint,
        teacher_grid=teacher_grid,
        store_images=store_images,
        size=size,
        label_column=label_column,
        max_bad=max_bad,
        shard_size=shard_size,
        batch=batch,
        address=address,
    )
    run(job, console())
