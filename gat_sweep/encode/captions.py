"""Captions of the pictures of a plan: COCO's json, JSON lines, a column of parquet files, or .txt files beside them.

Captions are read when the encoding is planned; a unit has those of its images, as lines of clean text.
"""

import codecs
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from gat_sweep.encode.archive import archive_names, is_archive, read_file
from gat_sweep.encode.parquet import text_columns, text_values
from gat_sweep.encode.units import Plan
from gat_sweep.errors import UserError
from gat_sweep.text import nearest

BESIDE = "txt"  # the word for .txt files beside the pictures
CANDIDATES = ("text", "caption", "captions")  # names of columns in JSON lines
LONGEST = 10_000  # characters of a caption: more than the tokens of any encoder, and soon divided into tokens
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
SHOWN = 3  # images that a line names
COCO = '{"images": [{"id", "file_name"}, ...], "annotations": [{"image_id", "caption"}, ...]}'

Found = dict[str, list[Any]]  # captions of files as they are read: text, bytes, or what is not text


def with_captions(plan: Plan, what: str, column: str | None = None) -> Plan:
    """The plan with the captions of its images, in the order of their source, and lines about them.

    what: a COCO .json or a .jsonl file for pictures in a folder or zip, the word "txt" for .txt files beside them, or
    the name of a column of parquet files. column: of captions in a .jsonl (default: the only one of CANDIDATES).
    A caption that is empty, not UTF-8 or not text is dropped. An image may be left without captions.
    Raises UserError when `what` means nothing or two things, is damaged, or names pictures that are not in the plan.
    """
    read, notes = _reader(plan, what, column), _Notes()
    found = read(plan)
    names = {name for unit in plan.units for name in unit.names}
    missing = [name for name in found if name not in names]
    if missing:
        raise UserError(
            f"--captions {what} names {len(missing):,} pictures that are not in --images, such as {missing[0]!r}; add "
            "them, or remove them from the file (names are relative to --images)"
        )
    units = [
        replace(unit, captions=[notes.usable(name, found.get(name, [])) for name in unit.names]) for unit in plan.units
    ]
    return replace(plan, units=units, notes=(*plan.notes, *notes.lines()))


def cleaned(value: Any) -> tuple[str, str]:
    """A caption as one line of text, and "" or the reason to drop it.

    Control characters and ends of lines become spaces, several spaces become one.
    """
    try:
        text = value.decode() if isinstance(value, bytes) else value
        if not isinstance(text, str) or "\0" in text:
            return "", "not text"
        text.encode()  # bytes that are not UTF-8 came from a text file as lone surrogates
    except UnicodeError:
        return "", "not UTF-8"
    text = " ".join(CONTROL.sub(" ", text).split())
    if not any(letter.isprintable() and letter != " " for letter in text):
        return "", "empty"
    return text, ""


@dataclass
class _Notes:
    """Lines about the captions: how many there are, and which were dropped or cut."""

    captions: int = 0
    images: int = 0  # with captions
    without: list[str] = field(default_factory=list)  # images
    long: list[str] = field(default_factory=list)  # images, once for each caption, as below
    dropped: dict[str, list[str]] = field(default_factory=dict)  # by reason

    def usable(self, name: str, values: list[Any]) -> list[str]:
        """The usable captions of an image."""
        kept = []
        for value in values:
            text, reason = cleaned(value)
            if reason:
                self.dropped.setdefault(reason, []).append(name)
                continue
            kept.append(text[:LONGEST])
            if len(text) > LONGEST:
                self.long.append(name)
        self.captions += len(kept)
        self.images += bool(kept)
        if not kept:
            self.without.append(name)
        return kept

    def lines(self) -> list[str]:
        lines = [f"{self.captions:,} captions of {self.images:,} images"]
        for reason, names in sorted(self.dropped.items()):
            lines.append(f"captions dropped because they are {reason}: {_some(names)}")
        if self.long:
            lines.append(f"captions cut after {LONGEST:,} characters: {_some(self.long)}")
        if self.without:
            lines.append(f"images without a caption, which are skipped: {_some(self.without)}")
        return lines


def _some(names: list[str]) -> str:
    """Count and examples."""
    different = list(dict.fromkeys(names))
    return f"{len(names):,} ({', '.join(different[:SHOWN])}{', ...' if len(different) > SHOWN else ''})"


def _reader(plan: Plan, what: str, column: str | None) -> Callable[[Plan], Found]:
    """Function that reads the captions that `what` means. Raises UserError when it means nothing or two things."""
    source = plan.source
    if source.kind not in ("folder", "parquet"):
        raise UserError("--captions takes pictures in a folder, a .zip or parquet files, not CIFAR or --latents")
    tables = _tables(plan) if source.kind == "parquet" else []
    columns = text_columns(os.path.join(source.root, tables[0])) if tables else []
    meanings = []
    if os.path.isfile(what):
        meanings.append("a file here")
    if what == BESIDE and not tables:
        meanings.append("the word for .txt files beside the pictures")
    if what in columns:
        meanings.append(f"a column of {tables[0]}")
    if len(meanings) > 1:
        raise UserError(f"--captions {what} is {' and also '.join(meanings)}; rename the file")
    lines = what.lower().endswith(".jsonl")
    if column is not None and not lines:
        raise UserError("--caption-column names a column of a .jsonl file; leave it out")
    if what in columns:
        return lambda plan: _of_tables(plan, what)
    if tables:
        raise UserError(f"--captions {what} is not a column of text in {tables[0]}; {nearest(what, columns)}")
    if what == BESIDE:
        return _beside
    if not os.path.isfile(what):
        raise UserError(
            f"--captions {what}: the file does not exist; give a COCO .json, a .jsonl, or the word {BESIDE}"
        )
    if lines:
        return lambda _: _lines(what, column)
    if what.lower().endswith(".json"):
        return lambda _: _coco(what)
    raise UserError(f"--captions {what} has an unknown suffix; give a COCO .json or a .jsonl")


def _coco(path: str) -> Found:
    """Captions of a COCO file, in its order. Raises UserError for another structure and for unknown or double ids."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        try:
            content = json.load(file)
            images = [(image["id"], _name(image["file_name"])) for image in content["images"]]
            captions = [(annotation["image_id"], annotation["caption"]) for annotation in content["annotations"]]
            files = dict(images)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{path} is not a COCO file of captions, {COCO}; give captions_*.json") from None
    if len(set(files.values())) < len(images):
        raise UserError(f"{path} has an image twice, by id or file_name; remove one of them")
    found: Found = {name: [] for name in files.values()}
    unknown = [image for image, _ in captions if image not in files]
    if unknown:
        raise UserError(
            f"{path} has {len(unknown):,} captions of images that it does not list, such as image_id {unknown[0]!r}; "
            "download it again"
        )
    for image, caption in captions:
        found[files[image]].append(caption)
    return found


def _lines(path: str, column: str | None) -> Found:
    """Captions of a file of JSON lines; those of several lines about one picture are joined, in order."""
    wanted, columns = CANDIDATES if column is None else (column,), set[str]()
    rows: list[tuple[str, dict[str, Any]]] = []
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                rows.append((_name(row["file_name"]), {key: row[key] for key in wanted if key in row}))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise UserError(f"{path}: line {number} is not a JSON object with a file_name; correct it") from None
            columns |= row.keys()
    candidates = [name for name in wanted if name in columns]
    if len(candidates) != 1:
        known = ", ".join(repr(name) for name in sorted(columns - {"file_name"}))
        if column is not None:
            raise UserError(f"{path} has no column '{column}' (columns: {known}); give another --caption-column")
        raise UserError(f"{path} could have its captions in {known or 'no column'}; choose with --caption-column")
    found: Found = {}
    for name, row in rows:
        value = row.get(candidates[0])  # null: the image has no caption
        found.setdefault(name, []).extend([] if value is None else value if isinstance(value, list) else [value])
    return found


def _name(name: str) -> str:
    """A file name as plans have it: with slashes, also where it was written on Windows."""
    return name.replace("\\", "/").removeprefix("./")


def _beside(plan: Plan) -> Found:
    """Captions of the .txt files beside the pictures, one in a line. Raises UserError when there is none at all."""
    root = plan.source.root
    archived = set(archive_names(root)) if is_archive(root) else None
    found: Found = {}
    for name in (name for unit in plan.units for name in unit.names):
        text = str(PurePosixPath(name).with_suffix(".txt"))
        if os.path.isfile(os.path.join(root, text)) if archived is None else text in archived:
            content = read_file(root, text, plan.source.links).removeprefix(codecs.BOM_UTF8)
            found[name] = list(content.splitlines())
    if not found:
        raise UserError(f"--captions {BESIDE}: no picture of {root} has a .txt file beside it; give a .json or .jsonl")
    return found


def _of_tables(plan: Plan, column: str) -> Found:
    found: Found = {}
    for table in _tables(plan):
        values = text_values(os.path.join(plan.source.root, table), column)
        found |= {f"{table}:{row}": captions for row, captions in enumerate(values)}
    return found


def _tables(plan: Plan) -> list[str]:
    """The parquet files of a plan, in its order."""
    return list(dict.fromkeys(unit.names[0].rpartition(":")[0] for unit in plan.units))
