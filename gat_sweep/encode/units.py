"""What is to be encoded, divided into units of work. The same input gives the same division, on any machine."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gat_sweep.errors import UserError


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


def read_file(path: str) -> bytes:
    """Raises UserError when it cannot be read: that is the disk's trouble, not the picture's."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); mend that and run the same command again") from None
