"""encode: pictures, or latents that exist, as shards to train from."""

from pathlib import Path

import click

from gat_sweep.commands.options import address_option, command, console


@command()
@click.option(
    "--images",
    help="Pictures: a folder or zip of class folders, CIFAR's folder, or parquet (a file, a folder, a glob).",
)
@click.option("--latents", help="A folder or zip of latents as edm2 and REPA write them (dataset.json, *.npy).")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write.")
@click.option(
    "--tokenizer", required=True, help="A VAE (hub id or folder of diffusers' AutoencoderKL), pixels, or dct4."
)
@click.option("--teacher", help="Also store this teacher's tokens, for small sets: efficientnet_lite0, or timm's name.")
@click.option("--teacher-checkpoint", help="Local file of the teacher's weights.")
@click.option(
    "--teacher-grid",
    type=click.IntRange(min=1),
    help="The teacher's tokens per side; default: half of the latent's side.",
)
@click.option("--store-images", is_flag=True, help="Also keep the pictures, lossless, for teacher and references.")
@click.option("--size", type=click.IntRange(min=8), default=256, show_default=True, help="Side of the cropped squares.")
@click.option("--label-column", help="Column of labels in parquet files, or none; default: label, or the only one.")
@click.option("--follow-links", is_flag=True, help="Read through links in a folder, also to files outside it.")
@click.option(
    "--captions",
    help="Captions: a COCO .json, a .jsonl, txt (files beside the pictures), or a column of parquet.",
)
@click.option("--caption-column", help="Column of a .jsonl; default: the only one of text, caption, captions.")
@click.option("--text-encoder", help="wordllama, or a CLIP (hub id or folder); default: wordllama.")
@click.option(
    "--text-tokens", type=click.IntRange(min=1, max=512), help="Most tokens of a caption; default: the text encoder's."
)
@click.option("--store-text", is_flag=True, help="Also store the text encoder's states, for small sets.")
@click.option(
    "--max-bad",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="Stop when more than this many pictures are unusable.",
)
@click.option("--shard-size", type=click.IntRange(min=1), default=1024, show_default=True, help="Pictures per shard.")
@click.option(
    "--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Pictures that the VAE encodes at once."
)
@address_option
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
    follow_links: bool,
    captions: str | None,
    caption_column: str | None,
    text_encoder: str | None,
    text_tokens: int | None,
    store_text: bool,
    max_bad: int,
    shard_size: int,
    batch: int,
    address: str | None,
) -> None:
    """Encode pictures with a VAE into shards to train from.

    Crops as ADM does. Does not sample the posterior: shards hold its mean and standard deviation.

    The same command again continues where it stopped.

    \b
    Example:
      gat-sweep encode --images imagenet/train --out data/imagenet --tokenizer stabilityai/sd-vae-ft-mse --store-images
      gat-sweep encode --images cifar-10-batches-py --out data/cifar10 --tokenizer pixels --size 32
      gat-sweep encode --images train2014 --captions captions_train2014.json --out data/coco --tokenizer VAE
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
        follow_links=follow_links,
        captions=captions,
        caption_column=caption_column,
        text_encoder=text_encoder,
        text_tokens=text_tokens,
        store_text=store_text,
        max_bad=max_bad,
        shard_size=shard_size,
        batch=batch,
        address=address,
    )
    run(job, console())
