"""Pictures and latents on disk: the plan of an encoding, and the reading of one unit.

No module that reads imports torch: there are many reader processes, and without torch each needs much less memory.
"""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gat_sweep.data.pictures import Unusable, decoding, load_square, png
from gat_sweep.encode.archive import is_archive, read_file
from gat_sweep.encode.cifar import cifar_files, cifar_rows, plan_cifar
from gat_sweep.encode.folder import plan_folder
from gat_sweep.encode.latents import load_moments
from gat_sweep.encode.parquet import check_one_split, folder_tables, parquet_rows, plan_parquet
from gat_sweep.encode.units import NO_CAPTION, Plan, Source, Unit
from gat_sweep.errors import UserError


@dataclass(frozen=True)
class Loaded:
    """A unit as read: its n usable images, and the skipped ones with reasons."""

    names: list[str]
    labels: list[int]
    skipped: list[tuple[str, str]]
    pictures: np.ndarray | None  # [n, 3, size, size] uint8; None when n is 0
    moments: np.ndarray | None  # [n, 2C, Y, X] float32: mean, then std
    images: list[bytes]  # the pictures as PNG, if they are stored
    captions: Sequence[Sequence[str]] = ()  # of each image, at least one; () for data without captions


def plan_images(images: str, shard_size: int, label_column: str | None = None, links: bool = False) -> Plan:
    """Plan of the pictures of a folder or zip, a parquet file, a folder or glob of parquet files, or CIFAR's batches.

    links: as in plan_folder.

    Raises UserError when there are no pictures, or when it is not clear which are meant.
    """
    if cifar := cifar_files(images):
        return plan_cifar(*cifar, shard_size)
    path = Path(images)
    if is_archive(images):
        return plan_folder(images, shard_size)
    if path.is_dir():
        tables = folder_tables(path)
        if not tables:
            return plan_folder(images, shard_size, links)
        check_one_split(tables)
    elif path.is_file():
        tables = [images]
    else:
        tables = sorted(glob.glob(images))
    if not tables or not all(table.endswith(".parquet") for table in tables):
        missing = "" if path.exists() or tables else "there is no such file or folder; "
        raise UserError(
            f"--images {images}: {missing}give a folder or a .zip of pictures, the folder of CIFAR, or a .parquet "
            "file, or a folder or glob of such files"
        )
    return plan_parquet(tables, shard_size, label_column)


def read_unit(source: Source, unit: Unit, size: int, as_png: bool = False) -> Loaded:
    """Pictures of a unit, cropped to `size`, and its latents; with as_png also the pictures as PNG files.

    Skips damaged pictures and, where there are captions, pictures without one.
    Raises UserError when a file cannot be read from disk.
    """
    names, labels, skipped = [], [], []
    captions: list[Sequence[str]] = []
    pictures: list[np.ndarray] = []
    moments: list[np.ndarray] = []
    with decoding():
        for i, (name, label, data) in enumerate(zip(unit.names, unit.labels, _pictures(source, unit), strict=True)):
            try:
                if unit.captions and not unit.captions[i]:
                    raise Unusable(NO_CAPTION)
                picture = None if data is None else load_square(data, size)
                if source.kind == "latents":
                    moments.append(load_moments(source.root, name, source.latent))
            except Unusable as reason:
                skipped.append((name, str(reason)))
                continue
            if picture is not None:
                pictures.append(picture)
            names.append(name)
            labels.append(label)
            if unit.captions:
                captions.append(unit.captions[i])
    return Loaded(
        names,
        labels,
        skipped,
        np.stack(pictures) if pictures else None,
        np.stack(moments) if moments else None,
        [png(picture) for picture in pictures] if as_png else [],
        captions,
    )


def _pictures(source: Source, unit: Unit) -> Iterator[bytes | None]:
    """Content of the picture files of a unit; None for each image of latents without pictures."""
    if source.kind == "parquet":
        yield from parquet_rows(source, unit)
    elif source.kind == "cifar":
        yield from cifar_rows(source, unit)
    elif source.kind == "latents" and not source.pictures:
        yield from [None] * len(unit.names)
    else:
        root, names = (source.pictures, unit.pictures) if source.kind == "latents" else (source.root, unit.names)
        for name in names:
            yield read_file(root, name, source.links)
