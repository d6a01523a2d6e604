"""Sets of pictures in files, read in batches."""

import hashlib
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gat_sweep.data.pictures import BAD_DATA, EXTENSIONS, FORMATS, Unusable, decoding, rgb
from gat_sweep.errors import UserError
from gat_sweep.files.npy import BAD_ARRAY, read_header

LARGEST = 2**22  # most pixels of a picture in an array, because a batch must fit into memory


@dataclass(frozen=True)
class Pictures:
    """Pictures of one size, in the order of their source.

    batches: maps a batch size to an iterator over batches, uint8 [size, 3, h, w]; the last batch may be smaller.
    """

    name: str
    count: int
    digest: str  # of the content, 12 hex digits
    batches: Callable[[int], Iterator[Tensor]]


def open_pictures(path: Path) -> Pictures:
    """Pictures in a folder, or in arr_0 of an npz as for ADM's evaluator.

    Raises UserError when there are no pictures.
    """
    return _folder_pictures(path) if path.is_dir() else array_pictures(path)


def array_pictures(path: Path) -> Pictures:
    """Pictures in arr_0 of an npz, uint8 [N, h, w, 3], read in batches, because 50,000 pictures of 256x256 are 10 GB.

    Raises UserError when there is no such array.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            shape, dtype, fortran = read_header(file)
            follow = archive.getinfo("arr_0.npy").file_size - file.tell()
        if fortran:
            raise ValueError("arr_0 is in Fortran order")
        with open(path, "rb") as raw:
            digest = hashlib.file_digest(raw, "sha256").hexdigest()[:12]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except BAD_ARRAY as error:
        raise UserError(f"{path} is not an npz with pictures in arr_0: {_message(error)}") from None
    if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or not shape[0]:
        raise UserError(f"{path}: arr_0 is {dtype} {list(shape)}; pictures must be uint8 [N, h, w, 3]")
    if math.prod(shape) != follow:
        raise UserError(f"{path} claims {shape[0]} pictures of {_side(shape[1:])} in {follow} bytes; write it again")
    if shape[1] * shape[2] > LARGEST:
        raise UserError(
            f"{path}: pictures of {_side(shape[1:])} are too large; use pictures of at most {LARGEST:,} pixels"
        )

    def batches(size: int) -> Iterator[Tensor]:
        bytes_each = int(np.prod(shape[1:]))
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            read_header(file)
            for start in range(0, shape[0], size):
                count = min(size, shape[0] - start)
                try:
                    raw = bytearray(file.read(count * bytes_each))
                except BAD_ARRAY as error:
                    raise UserError(f"{path} is damaged ({_message(error)}); write it again") from None
                if len(raw) < count * bytes_each:
                    raise UserError(
                        f"{path} ends after {start + len(raw) // bytes_each} of {shape[0]} pictures; write it again"
                    )
                yield torch.frombuffer(raw, dtype=torch.uint8).view(count, *shape[1:]).permute(0, 3, 1, 2)

    return Pictures(path.stem, shape[0], digest, batches)


def _folder_pictures(folder: Path) -> Pictures:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS)
    if not paths:
        raise UserError(f"{folder} has no pictures ({', '.join(EXTENSIONS)})")
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())

    def batches(size: int) -> Iterator[Tensor]:
        shape = _picture(paths[0]).shape
        for start in range(0, len(paths), size):
            part = [_picture(path) for path in paths[start : start + size]]
            for path, picture in zip(paths[start:], part, strict=False):
                if picture.shape != shape:
                    raise UserError(f"{path} is {_side(picture.shape)}, others are {_side(shape)}; resize to one size")
            yield torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2)

    return Pictures(folder.name, len(paths), digest.hexdigest()[:12], batches)


def _picture(path: Path) -> np.ndarray:
    try:
        with decoding(), Image.open(path, formats=FORMATS) as image:
            return np.array(rgb(image))
    except (*BAD_DATA, Unusable, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{path} is not a readable picture: {_message(error)}") from None


def _message(error: Exception) -> str:
    """Message of an error, in one short line."""
    return " ".join(str(error).split())[:150]


def _side(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
