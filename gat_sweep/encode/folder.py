"""Pictures in a folder or a zip archive: a class per subfolder, or classes from dataset.json."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from gat_sweep.data.pictures import EXTENSIONS
from gat_sweep.encode.archive import archive_names, check_inside, is_archive
from gat_sweep.encode.listing import LIST, has_list, listed
from gat_sweep.encode.units import NO_LABELS, Plan, Source, class_order, divide, numbered_classes, order_note
from gat_sweep.errors import UserError

SPLITS = {"train", "val", "valid", "validation", "test"}


@dataclass
class Found:
    """What a folder holds."""

    pictures: list[str] = field(default_factory=list)  # relative to the root, with slashes
    folders: set[str] = field(default_factory=set)  # at the top
    others: Counter[str] = field(default_factory=Counter)  # other files, by suffix
    links: list[str] = field(default_factory=list)  # to folders, which are not followed

    def notes(self) -> tuple[str, ...]:
        """Lines about what is not a picture, or is not read."""
        lines = []
        if self.others:
            shown = ", ".join(f"{count:,} {suffix or 'without suffix'}" for suffix, count in self.others.most_common(5))
            lines.append(f"not pictures: {_counted(self.others.total(), 'other file')} ({shown})")
        if self.links:
            lines.append(
                f"not read: {_counted(len(self.links), 'link')} to folders, such as {self.links[0]} (--follow-links "
                "reads them)"
            )
        return tuple(lines)


def plan_folder(root: str, shard_size: int, links: bool = False) -> Plan:
    """Plan of the pictures below a folder, or in a zip archive.

    A dataset.json gives the classes if there is one. Otherwise each folder at the top is a class; without folders there
    the data has no classes. Names that begin with a dot are ignored.
    links: whether links are followed, also to places outside the folder.
    Raises UserError when it finds no pictures, or when it is not clear what the classes are.
    """
    if has_list(root):
        names, labels = listed(root, EXTENSIONS)
        source = Source("folder", root, links=links)
        if labels is None:
            return Plan(source, (), divide(names, [0] * len(names), shard_size), (NO_LABELS,))
        note = f"labels are those of {LIST}"
        return Plan(source, numbered_classes(labels, root), divide(names, labels, shard_size), (note,))
    found = _in_archive(root) if is_archive(root) else _in_folder(root, links)
    loose = [name for name in found.pictures if "/" not in name]
    source = Source("folder", root, links=links)
    if not found.folders:
        if not loose:
            raise UserError(
                f"--images {root}: it has no pictures ({', '.join(EXTENSIONS)}) and no parquet files" + _held(found)
            )
        names = sorted(loose)
        return Plan(
            source,
            (),
            divide(names, [0] * len(names), shard_size),
            ("no class folders: encoded without classes", *found.notes()),
        )
    if found.folders <= SPLITS:
        raise UserError(f"--images {root} has the splits {', '.join(sorted(found.folders))}; name one of them")
    if loose:
        raise UserError(
            f"--images {root} has pictures outside its class folders, such as {min(loose)}; move them into one"
        )
    classes = class_order(found.folders)
    by_class: dict[str, list[str]] = {name: [] for name in classes}
    for name in found.pictures:
        by_class[name.partition("/")[0]].append(name)
    names, labels = [], []
    for label, (name, files) in enumerate(by_class.items()):
        if not files:
            raise UserError(f"--images {root}: no pictures in class folder '{name}'; remove it" + _held(found))
        names += sorted(files)
        labels += [label] * len(files)
    return Plan(source, classes, divide(names, labels, shard_size), (order_note(classes), *found.notes()))


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _held(found: Found) -> str:
    notes = found.notes()
    return f" ({'; '.join(notes)})" if notes else ""


def _in_archive(root: str) -> Found:
    found = Found()
    for name in archive_names(root):
        if not any(part.startswith(".") for part in name.split("/")) and not name.startswith("__MACOSX/"):
            _add(found, name)
            if "/" in name:
                found.folders.add(name.partition("/")[0])
    return found


def _in_folder(root: str, links: bool) -> Found:
    found = Found()
    for name in _walk(root, "", links, found, (os.path.realpath(root),)):
        _add(found, name)
    return found


def _walk(root: str, prefix: str, links: bool, found: Found, above: tuple[str, ...]) -> Iterator[str]:
    """Paths of all files below a folder of the root. above: real paths of the folders on the way, to end loops."""
    with os.scandir(os.path.join(root, prefix)) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{prefix}/{entry.name}" if prefix else entry.name
            if entry.is_dir():
                if entry.is_symlink() and not links:
                    if prefix:
                        found.links.append(name)
                        continue
                    check_inside(root, entry.path)  # a class less would be another data set
                real = os.path.realpath(entry.path)
                if real in above:
                    raise UserError(f"{entry.path} is a link to a folder that it is in; remove it")
                if not prefix:
                    found.folders.add(name)
                yield from _walk(root, name, links, found, (*above, real))
            else:
                if entry.is_symlink() and not links and _is_picture(name):
                    check_inside(root, entry.path)
                yield name


def _add(found: Found, name: str) -> None:
    if _is_picture(name):
        found.pictures.append(name)
    else:
        found.others[PurePosixPath(name).suffix.lower()] += 1


def _is_picture(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)
