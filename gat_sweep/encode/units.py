"""What is to be encoded, divided into units of work. The same input gives the same division, on any machine."""

import hashlib
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Literal

from gat_sweep.errors import UserError

LARGEST = 2**28  # bytes of a picture's file


@dataclass(frozen=True)
class Source:
    """Where the items of units lie; what a worker needs besides its unit."""

    kind: Literal["folder", "parquet", "latents"]
    root: str
    column: str = ""  # of a parquet file: the pictures
    latent: tuple[int, int] = (0, 0)  # of latents: channels and side
    pictures: str = ""  # of latents: the folder of their pictures, if there is one


@dataclass(frozen=True)
class Unit:
    """The images of one shard."""

    index: int
    names: Sequence[str]  # files relative to the root; of parquet file:row, rows in order, all of one file
    labels: Sequence[int]
    pictures: Sequence[str] = ()  # of latents: the pictures' files


@dataclass(frozen=True)
class Plan:
    source: Source
    classes: tuple[str, ...]  # names; none: unlabelled
    units: list[Unit]

    def __len__(self) -> int:
        return sum(len(unit.names) for unit in self.units)

    @property
    def digest(self) -> str:
        """Of names, labels and their division into units, 12 hex digits."""
        digest = hashlib.sha256(json.dumps([self.source.kind, self.classes]).encode())
        for unit in self.units:
            digest.update(json.dumps([unit.names, unit.labels, unit.pictures]).encode())
        return digest.hexdigest()[:12]


def divide(
    names: Sequence[str], labels: Sequence[int], size: int, pictures: Sequence[str] = (), first: int = 0
) -> list[Unit]:
    """Consecutive runs of `size` images, numbered from `first`."""
    for name in (*names, *pictures):
        if not name.isascii() and name != name.encode(errors="replace").decode():
            raise UserError(f"file name {name!r} is not valid text; rename it")
    starts = range(0, len(names), size)
    return [
        Unit(first + i, names[at : at + size], labels[at : at + size], pictures[at : at + size])
        for i, at in enumerate(starts)
    ]


def numbered_classes(labels: Sequence[int], where: str) -> tuple[str, ...]:
    """Classes without names. Raises UserError when numbers are left out."""
    seen = sorted(set(labels))
    if seen != list(range(len(seen))):
        missing = next((i for i, label in enumerate(seen) if i != label), 0)
        raise UserError(
            f"{where}: labels have to be 0 to K-1, here they are {seen[0]} to {seen[-1]} without {missing}; "
            "renumber them, or name another --label-column"
        )
    return tuple(str(label) for label in seen)


def open_file(root: str, name: str) -> IO[bytes]:
    """A file below a folder. Raises UserError when it cannot be read: that is the disk's trouble, not the picture's.

    Links that lead out of the folder are not followed: whoever wrote the folder would choose what is read.
    """
    path = os.path.join(root, name)
    check_inside(root, path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"{path} is no file; remove it and run the same command again")
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); mend that and run the same command again") from None


def read_file(root: str, name: str) -> bytes:
    """All of a file below a folder. Raises UserError as open_file does."""
    path = os.path.join(root, name)
    try:
        with open_file(root, name) as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); mend that and run the same command again") from None
    if len(content) > LARGEST:
        raise UserError(f"{path} has more than {LARGEST:,} bytes, which no picture needs; remove it")
    return content


def check_inside(root: str, path: str) -> None:
    """Raises UserError when a path below a folder leads out of it; the folder itself may be a link."""
    found = os.path.realpath(path)
    if not found.startswith(_real(root) + os.sep):
        raise UserError(f"{path} is a link that leaves {root} (to {found}); put the files themselves there")


@lru_cache
def _real(root: str) -> str:
    return os.path.realpath(root).rstrip(os.sep)
