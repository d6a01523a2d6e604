"""Units of work of an encoding; the same input gives the same units on any machine."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from gat_sweep.errors import UserError

NO_LABELS = "dataset.json has no labels: encoded without classes"
NO_CAPTION = "no caption"  # why a picture is skipped


@dataclass(frozen=True)
class Source:
    """Place of the images; with its unit, all that a worker needs."""

    kind: Literal["folder", "parquet", "cifar", "latents"]
    root: str
    column: str = ""  # parquet: the column of pictures; cifar: the key of labels
    latent: tuple[int, int] = (0, 0)  # latents: channels and side
    pictures: str = ""  # latents: the folder of their pictures, if there is one
    links: bool = False  # whether links to files outside the folder are followed


@dataclass(frozen=True)
class Unit:
    """The images of one shard."""

    index: int
    names: Sequence[str]  # files relative to the root; for parquet and cifar file:row, rows in order, from one file
    labels: Sequence[int]
    pictures: Sequence[str] = ()  # latents: the files of their pictures
    captions: Sequence[Sequence[str]] = ()  # of each image, possibly none; () for data without captions


@dataclass(frozen=True)
class Plan:
    """All images to encode, in units."""

    source: Source
    classes: tuple[str, ...]  # names; empty for unlabelled data
    units: list[Unit]
    notes: tuple[str, ...] = ()  # what was left out, chosen or assumed; a line each

    def __len__(self) -> int:
        return sum(len(unit.names) for unit in self.units)

    @property
    def digest(self) -> str:
        """Digest of names, labels, captions and their division into units, 12 hex digits."""
        digest = hashlib.sha256(json.dumps([self.source.kind, self.classes]).encode())
        for unit in self.units:
            digest.update(json.dumps([unit.names, unit.labels, unit.pictures]).encode())
            if unit.captions:
                digest.update(json.dumps(unit.captions).encode())
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


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in the order of their numbers: sorted as numbers if all are numbers, as text otherwise."""
    distinct = set(names)
    if all(name.isascii() and name.isdecimal() for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))


def order_note(classes: Sequence[str]) -> str:
    """A line that says which class has which number."""
    shown = list(classes) if len(classes) <= 6 else [*classes[:3], "...", classes[-1]]
    return f"{len(classes)} classes, numbered from 0 in this order: {', '.join(shown)}"


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
