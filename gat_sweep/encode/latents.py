"""Latents from the dataset tools of edm2 and REPA: .npy files of mean and std, listed in dataset.json."""

import math
import os
import re

import numpy as np

from gat_sweep.data.pictures import EXTENSIONS, Unusable
from gat_sweep.encode.archive import open_file
from gat_sweep.encode.listing import listed
from gat_sweep.encode.units import NO_LABELS, Plan, Source, divide, numbered_classes
from gat_sweep.errors import UserError
from gat_sweep.files.npy import read_array, read_header

LARGEST = 2**24  # most values of a latent


def plan_latents(latents: str, images: str | None, shard_size: int) -> Plan:
    """Plan of the .npy files of a folder or zip with a dataset.json, paired with the pictures in `images` if given.

    Raises UserError when the list names files outside the folder, or when the pictures are of other images.
    """
    names, labels = listed(latents, ".npy")
    pictures: list[str] = []
    if images is not None:
        pictures, their_labels = listed(images, EXTENSIONS)
        if len(pictures) != len(names):
            raise UserError(
                f"{images} lists {len(pictures)} pictures, but {latents} lists {len(names)} latents; give folders of "
                "the same images"
            )
        for i, (latent, picture) in enumerate(zip(names, pictures, strict=True)):
            same_label = (labels and labels[i]) == (their_labels and their_labels[i])
            if _number(latent) != _number(picture) or not same_label:
                raise UserError(
                    f"{picture} is not the picture of {latent} (by number and label); give folders of the same images"
                )
    channels, side = _latent_shape(latents, names[0])
    source = Source("latents", latents, latent=(channels, side), pictures=images or "")
    classes = () if labels is None else numbered_classes(labels, latents)
    units = divide(names, labels or [0] * len(names), shard_size, pictures)
    return Plan(source, classes, units, () if labels else (NO_LABELS,))


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
