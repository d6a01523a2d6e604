"""Units of work of an encoding; the same input gives the same units on any machine."""

import hashlib
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Literal

from gat_sweep.errors import UserError

LARGEST = 2**28  # most bytes of a picture file


@dataclass(frozen=True)
class Source:
    """Place of the images; with its unit, all that a worker needs."""

    kind: Literal["folder", "parquet", "cifar", "latents"]
    root: str
    column: str = ""  # parquet: the column of pictures; cifar: the key of labels
    latent: tuple[int, int] = (0, 0)  # latents: channels and side
    pictures: str = ""  # latents: the folder of their pictures, if there is one


@dataclass(frozen=True)
class Unit:
    """The images of one shard."""

    index: int
    names: Sequence[str]  # files relative to the root; for parquet and cifar file:row, rows in order, from one file
    labels: Sequence[int]
    pictures: Sequence[str] = ()  # latents: the files of their pictures


@dataclass(frozen=True)
class Plan:
    """All images to encode, in units."""

    source: Source
    classes: tuple[str, ...]  # names; empty for unlabelled data
    units: list[Unit]

    def __len__(self) -> int:
        return sum(len(unit.names) for unit in self.units)

    @property
    def digest(self) -> str:
        """Digest of names, labels and their division into units, 12 hex digits."""
        digest = hashlib.sha256(json.dumps([self.source.kind, self.classes]).encode())
        for unit in self.units:
            digest.update(json.dumps([unit.names, unit.labels, unit.pictures]).encode())
        return digest.hexdigest()[:12]


def divide(
    names: Sequence[str], labels: Sequence[int], size: int, pictures: Sequence[str] = (), first: int = 0
) -> list[Unit]:
    """Units of `size` consecutive images, numbered from `first`. Raises UserError for a name that is not text."""
    for name in (*names, *pictures):
        if not name.isascii() and name != name.encode(errors="replace").decode():
            raise UserError(f"file name {name!r} is not valid text; rename it")
    starts = range(0, len(names), size)
    return [
        Unit(first + i, names[at : at + size], labels[at : at + size], pictures[at : at + size])
        for i, at in enumerate(starts)
    ]


def numbered_classes(labels: Sequence[int], where: str) -> tuple[str, ...]:
    """Numbers as class names. Raises UserError when a number is missing."""
    seen = sorted(set(labels))
    if seen != list(range(len(seen))):
        missing = next((i for i, label in enumerate(seen) if i != label), 0)
        raise UserError(
            f"{where}: labels must be 0 to K-1, but they are {seen[0]} to {seen[-1]} without {missing}; "
            "renumber them, or name another --label-column"
        )
    return tuple(str(label) for label in seen)


def open_file(root: str, name: str) -> IO[bytes]:
    """Opens a file in a folder. Raises UserError when it cannot be read from disk.

    Links to files outside the folder are refused; otherwise the author of the folder could choose any file.
    """
    path = os.path.join(root, name)
    check_inside(root, path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"{path} is not a file; remove it and run the same command again")
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); fix that and run the same command again") from None


def read_file(root: str, name: str) -> bytes:
    """Content of a file in a folder. Raises UserError as open_file does, and for files that are too large."""
    path = os.path.join(root, name)
    try:
        with open_file(root, name) as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); fix that and run the same command again") from None
    if len(content) > LARGEST:
        raise UserError(f"{path} has more than {LARGEST:,} bytes, which no picture needs; remove it")
    return content


def check_inside(root: str, path: str) -> None:
    """Raises UserError when a path in a folder leads outside it; the folder itself may be a link."""
    found = os.path.realpath(path)
    if not found.startswith(_real(root) + os.sep):
        raise UserError(f"{path} is a link to {found}, outside {root}; copy the files there instead")


@lru_cache
def _real(root: str) -> str:
    return os.path.realpath(root).rstrip(os.sep)
