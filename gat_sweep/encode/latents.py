"""Latents from the dataset tools of edm2 and REPA: .npy files of mean and std, listed in dataset.json."""

import json
import math
import os
import re
from pathlib import PurePosixPath

import numpy as np

from gat_sweep.data.pictures import EXTENSIONS, Unusable
from gat_sweep.encode.units import Plan, Source, divide, numbered_classes, open_file
from gat_sweep.errors import UserError
from gat_sweep.files.npy import read_array, read_header

LARGEST = 2**24  # most values of a latent


def plan_latents(latents: str, images: str | None, shard_size: int) -> Plan:
    """Plan of the .npy files that dataset.json lists, paired with the pictures in the folder `images` if given.

    Raises UserError when the list names files outside the folder, or when the pictures are of other images.
    """
    items = _listed(latents, ".npy")
    names, labels = [name for name, _ in items], [label for _, label in items]
    pictures: list[str] = []
    if images is not None:
        paired = _listed(images, EXTENSIONS)
        if len(paired) != len(items):
            raise UserError(
                f"{images} lists {len(paired)} pictures, but {latents} lists {len(items)} latents; give folders of the "
                "same images"
            )
        for (latent, label), (picture, its_label) in zip(items, paired, strict=True):
            if _number(latent) != _number(picture) or label != its_label:
                raise UserError(
                    f"{picture} is not the picture of {latent} (by number and label); give folders of the same images"
                )
        pictures = [name for name, _ in paired]
    channels, side = _latent_shape(latents, names[0])
    source = Source("latents", latents, latent=(channels, side), pictures=images or "")
    return Plan(source, numbered_classes(labels, latents), divide(names, labels, shard_size, pictures))


def load_moments(root: str, name: str, latent: tuple[int, int]) -> np.ndarray:
    """Mean and std of a latent, float32 [2C, side, side]. Raises Unusable, and UserError as open_file does."""
    channels, side = latent
    with open_file(root, name) as file:
        try:
            shape, dtype, _ = read_header(file)
            if shape != (2 * channels, side, side) or dtype.kind != "f":
                raise Unusable(f"shape: {dtype} {list(shape)}, but others have {[2 * channels, side, side]}")
            file.seek(0)
            values = read_array(file, shape)
        except (ValueError, OSError) as error:
            raise Unusable(f"broken: {' '.join(str(error).split())[:120]}") from None
    if not np.isfinite(values).all():
        raise Unusable("not finite: NaN or infinity in the latent")
    if values[channels:].min() < 0:
        raise Unusable("negative std: the second half must be the std, not the log-variance")
    return values.astype(np.float32)


def _listed(folder: str, extensions: str | tuple[str, ...]) -> list[tuple[str, int]]:
    """Files and labels that folder/dataset.json lists."""
    path = os.path.join(folder, "dataset.json")
    try:
        with open(path, encoding="utf-8") as file:
            entries = json.load(file)["labels"]
        items = [(str(name), label) for name, label in entries]
    except FileNotFoundError:
        raise UserError(f"{path} is missing; give a folder that the dataset tool of edm2 or REPA wrote") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f'{path}: expected {{"labels": [["path", class], ...]}}; write it again') from None
    for name, label in items:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or not name.endswith(extensions):
            raise UserError(f"{path}: '{name}' is not a {extensions} file in its folder; write the list again")
        if type(label) is not int:
            raise UserError(f"{path}: the label of '{name}' is {label!r}, not a class number; write the list again")
    if not items:
        raise UserError(f"{path} lists no files; write it again")
    return items


def _latent_shape(root: str, name: str) -> tuple[int, int]:
    """Channels and side of the latents, from the header of the first file."""
    path = os.path.join(root, name)
    with open_file(root, name) as file:
        try:
            shape, _, _ = read_header(file)
        except (ValueError, OSError) as error:
            said = " ".join(str(error).split())[:120]
            raise UserError(
                f"cannot read {path} ({said}), the first latent, which gives the shape of all; write it again"
            ) from None
    if len(shape) != 3 or not shape[0] or shape[0] % 2 or shape[1] != shape[2] or math.prod(shape) > LARGEST:
        raise UserError(f"{path} has shape {list(shape)}; expected [2C, side, side], first mean, then std")
    return shape[0] // 2, shape[1]


def _number(name: str) -> int:
    """Number of a file, such as 3 for 00000/img-mean-std-00000003.npy and 00000/img00000003.png."""
    digits = re.search(r"([0-9]+)\.\w+$", name)
    if not digits:
        raise UserError(f"'{name}' does not end with a number, which pairs latents with pictures; leave out --images")
    return int(digits[1])
