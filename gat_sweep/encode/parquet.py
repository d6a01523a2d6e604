"""Pictures and labels in parquet files, in the layout of image data sets on Hugging Face."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gat_sweep.data.pictures import EXTENSIONS
from gat_sweep.encode.units import Plan, Source, Unit, class_order, divide, numbered_classes, order_note
from gat_sweep.errors import UserError
from gat_sweep.text import nearest

SMALLEST_ROW = 16  # least bytes of a compressed picture; the names of too many claimed rows would fill the memory
NO_COLUMN = "none"  # as --label-column: the numbers in the table are not classes
IDENTIFIER = re.compile(r"(^|_)(id|idx|index|number|level_0__)$", re.IGNORECASE)
BAD_TABLE = (OSError, pa.ArrowException)


def plan_parquet(tables: list[str], shard_size: int, label_column: str | None) -> Plan:
    """Plan of the rows of some files of one data set, in that order; each unit is from one file.

    Raises UserError when a file is damaged, or when it is not clear which columns are pictures and labels.
    """
    root = os.path.commonpath([os.path.dirname(os.path.abspath(table)) for table in tables])
    schema = _parquet(tables[0]).schema_arrow
    column = _image_column(schema, tables[0])
    label, notes = _label_column(schema, label_column, tables[0])
    units: list[Unit] = []
    values: list[Any] = []  # labels of all rows
    counts: list[tuple[str, int]] = []
    for table in tables:
        file = _parquet(table)
        for name in filter(None, (column, label)):
            if name not in file.schema_arrow.names or file.schema_arrow.field(name).type != schema.field(name).type:
                raise UserError(f"{table} has no column '{name}' as in {tables[0]}; name files of one data set")
        rows, size = file.metadata.num_rows, os.path.getsize(table)
        if rows * SMALLEST_ROW > size:
            raise UserError(f"{table} claims {rows:,} rows in {size:,} bytes, too few for pictures; download it again")
        _check_bytes(file, table, column)
        if label is not None:
            given = _read(file, table, label).to_pylist()
            if None in given:
                raise UserError(f"{table}: row {given.index(None)} has no label; give another --label-column")
            values += given
        counts.append((os.path.relpath(os.path.abspath(table), root), rows))
    classes: tuple[str, ...] = ()
    labels = [0] * sum(rows for _, rows in counts)
    if label is not None and values:
        labels, classes = _classes_of(schema, label, values, tables[0])
        notes = (*notes, order_note(classes))
    start = 0
    for relative, rows in counts:
        names = [f"{relative}:{row}" for row in range(rows)]
        units += divide(names, labels[start : start + rows], shard_size, first=len(units))
        start += rows
    if not units:
        raise UserError(f"{tables[0]} has no rows; name files with pictures")
    return Plan(Source("parquet", root, column), classes, units, notes)


def _parquet(path: str) -> pq.ParquetFile:
    if not os.path.isfile(path):
        raise UserError(f"{path} is not a file; name parquet files")
    try:
        return pq.ParquetFile(path, memory_map=True)
    except BAD_TABLE as error:
        raise UserError(f"{path} is not a parquet file ({_message(error)}); download it again") from None


def _read(file: pq.ParquetFile, table: str, column: str, groups: list[int] | None = None) -> pa.ChunkedArray:
    """A column of some row groups (default: all). Raises UserError when it cannot be read."""
    try:
        if groups is None:
            return file.read(columns=[column]).column(0)
        return file.read_row_groups(groups, columns=[column]).column(0)
    except BAD_TABLE as error:
        raise UserError(
            f"cannot read {table} ({_message(error)}); download it again, then run the same command again"
        ) from None


def _message(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _image_column(schema: pa.Schema, table: str) -> str:
    """The only column of picture files, as bytes in a struct (Hugging Face's Image) or as plain bytes."""

    def is_binary(kind: pa.DataType) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    structs = [f.name for f in schema if pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
    found = structs or [f.name for f in schema if is_binary(f.type)]
    if len(found) != 1:
        raise UserError(f"{table} has {len(found)} image columns {found}; write a file with one image column")
    return found[0]


def _check_bytes(file: pq.ParquetFile, table: str, column: str) -> None:
    """Raises UserError when the first row names its picture by a path only, as then all rows do."""
    try:
        first = next(file.iter_batches(batch_size=1, columns=[column]), None)
    except BAD_TABLE:
        return  # _read says it, with the row group
    value = first.column(0)[0].as_py() if first is not None and first.num_rows else None
    if isinstance(value, dict) and value.get("bytes") is None and value.get("path"):
        raise UserError(
            f"{table} has no pictures, only their paths, such as {value['path']}; give that folder, or write the table "
            "with the bytes (datasets' embed_external_files)"
        )


def _label_column(schema: pa.Schema, asked: str | None, table: str) -> tuple[str | None, tuple[str, ...]]:
    """The column of labels, if there is one, and lines about what was chosen.

    It is the one asked for, or `label`, or the only one that Hugging Face's metadata says to be of classes, or else the
    only column of integers whose name is not that of an identifier.
    """
    usable = [f.name for f in schema if _is_label(f.type)]
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise UserError(f"{table} has the column '{name}' twice; rename one of them")
    if asked == NO_COLUMN and asked not in schema.names:
        return None, ("encoded without classes",)
    if asked is not None:
        if asked not in usable:
            raise UserError(f"{table} has no column of labels '{asked}'; {nearest(asked, usable)}")
        return asked, ()
    if "label" in schema.names:
        if "label" not in usable:
            kind = schema.field("label").type
            raise UserError(f"{table}: the column 'label' is {kind}, not a class; choose another with --label-column")
        return "label", ()
    named = [name for name in usable if _class_names(schema, name)]
    integers = [f.name for f in schema if pa.types.is_integer(f.type) and not IDENTIFIER.search(f.name)]
    for candidates in (named, integers):
        if len(candidates) > 1:
            raise UserError(
                f"{table} could have its labels in {', '.join(candidates)}; choose with --label-column, or say "
                f"--label-column {NO_COLUMN}"
            )
        if candidates:
            return candidates[0], (f"labels are the column '{candidates[0]}'",)
    other = f" (--label-column takes {', '.join(usable)})" if usable else ""
    return None, (f"no column of labels: encoded without classes{other}",)


def _is_label(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return text or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind)


def _class_names(schema: pa.Schema, label: str) -> list[str]:
    """Class names of a column in Hugging Face's metadata; empty if there are none."""
    try:
        return list(json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"] or [])
    except (ValueError, KeyError, TypeError, RecursionError):  # from another writer
        return []


def _classes_of(schema: pa.Schema, label: str, values: list[Any], table: str) -> tuple[list[int], tuple[str, ...]]:
    """Class numbers of the rows, and class names: of Hugging Face's metadata, of text, or numbers."""
    if isinstance(values[0], str | bool):
        words = [str(value) for value in values]
        classes = class_order(words)
        numbers = {name: i for i, name in enumerate(classes)}
        return [numbers[word] for word in words], classes
    if isinstance(values[0], float):
        broken = next((value for value in values if not value.is_integer()), None)
        if broken is not None:
            raise UserError(f"{table}: the label {broken} in '{label}' is not a class; choose another --label-column")
    labels = [int(value) for value in values]
    names = _class_names(schema, label)
    if not names:
        return labels, numbered_classes(labels, table)
    if not 0 <= min(labels) <= max(labels) < len(names):
        raise UserError(
            f"{table}: labels are {min(labels)} to {max(labels)}, but there are {len(names)} classes; name a labelled "
            "split"
        )
    return labels, tuple(str(name) for name in names)


def parquet_rows(source: Source, unit: Unit) -> Iterator[bytes]:
    """Pictures of a unit. It reads all row groups that overlap the unit: the whole file if that has only one group."""
    relative, _, row = unit.names[0].rpartition(":")
    first, last = int(row), int(row) + len(unit.names)  # last is not included
    file = _parquet(os.path.join(source.root, relative))
    counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    starts = [sum(counts[:i]) for i in range(len(counts))]
    groups = [i for i, start in enumerate(starts) if start < last and start + counts[i] > first]
    column = _read(file, relative, source.column, groups)
    rows = column.slice(first - starts[groups[0]], len(unit.names))
    for value in rows:
        content = value["bytes"] if pa.types.is_struct(rows.type) else value
        yield content.as_py() or b""


def text_columns(table: str) -> list[str]:
    """Columns of a parquet file that hold text, or lists of text."""
    return [field.name for field in _parquet(table).schema_arrow if _text_type(field.type) is not None]


def text_values(table: str, column: str) -> list[list[bytes | None]]:
    """Texts of each row of a column of text or of lists of text, as bytes, which need not be UTF-8.

    A row that is null has no texts. Raises UserError when the file lacks the column or cannot be read.
    """
    if column not in text_columns(table):
        raise UserError(f"{table} has no column of text '{column}', which other files have; name files of one data set")
    values = _read(_parquet(table), table, column)
    plain = _text_type(values.type)
    if plain is None or not pa.types.is_nested(plain):
        if pa.types.is_dictionary(values.type):
            values = values.cast(plain)
        return [[] if text is None else [text] for text in values.cast(pa.large_binary()).to_pylist()]
    return [texts or [] for texts in values.cast(pa.large_list(pa.large_binary())).to_pylist()]


def _text_type(kind: pa.DataType) -> pa.DataType | None:
    """Type of the values of a column of text or of lists of text, without a dictionary; None for another column."""
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    lists = pa.types.is_list(plain) or pa.types.is_large_list(plain)
    inner = plain.value_type if lists else plain
    return plain if pa.types.is_string(inner) or pa.types.is_large_string(inner) else None


def folder_tables(folder: Path) -> list[str]:
    """Parquet files of a folder: at its top, or below it as in a clone from Hugging Face (data/train-*.parquet).

    Raises UserError when pictures stand beside them, or when they are in several folders.
    """
    tables = sorted(folder.glob("*.parquet"))
    if not tables:
        tables = sorted(path for path in folder.glob("*/*.parquet") if not path.parent.name.startswith("."))
    places = sorted({str(table.parent) for table in tables})
    if len(places) > 1:
        raise UserError(f"--images {folder} has parquet files in {', '.join(places[:4])}; name one of them")
    if tables:
        found = (path for shape in ("*", "*/*") for path in folder.glob(shape) if path.suffix.lower() in EXTENSIONS)
        if beside := next(found, None):
            raise UserError(
                f"--images {folder} has parquet files and pictures, such as {beside.relative_to(folder)}; name one kind"
            )
    return [str(table) for table in tables]


def check_one_split(tables: list[str]) -> None:
    """Raises UserError unless the files are one complete split, such as train-00000-of-00002.parquet and so on."""
    stems = [Path(table).stem for table in tables]
    splits = sorted({re.sub(r"[-_.]?[0-9]+(-of-[0-9]+)?$", "", stem) for stem in stems})
    if len(splits) > 1:
        folder = Path(tables[0]).parent
        named = ", ".join(f"'{folder}/{split}*.parquet'" for split in splits)
        raise UserError(f"--images {folder} has several splits; name one of them: {named}")
    total = re.search(r"-of-([0-9]+)$", stems[0])
    if total and int(total[1]) != len(stems):
        raise UserError(
            f"{Path(tables[0]).parent} has {len(stems)} of {int(total[1])} parquet files; download the others"
        )
