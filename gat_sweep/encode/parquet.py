"""Pictures and labels in parquet files, in the layout of image data sets on Hugging Face."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gat_sweep.encode.units import Plan, Source, Unit, divide, numbered_classes
from gat_sweep.errors import UserError
from gat_sweep.text import nearest

SMALLEST_ROW = 16  # least bytes of a compressed picture; the names of too many claimed rows would fill the memory
BAD_TABLE = (OSError, pa.ArrowException)


def plan_parquet(tables: list[str], shard_size: int, label_column: str | None) -> Plan:
    """Plan of the rows of some files of one data set, in that order; each unit is from one file.

    Raises UserError when a file is damaged, or when it is not clear which columns are pictures and labels.
    """
    root = os.path.commonpath([os.path.dirname(os.path.abspath(table)) for table in tables])
    schema = _parquet(tables[0]).schema_arrow
    column, label = _image_column(schema, tables[0]), _label_column(schema, label_column, tables[0])
    units: list[Unit] = []
    for table in tables:
        file = _parquet(table)
        for name in filter(None, (column, label)):
            if name not in file.schema_arrow.names or file.schema_arrow.field(name).type != schema.field(name).type:
                raise UserError(f"{table} has no column '{name}' as in {tables[0]}; name files of one data set")
        rows, size = file.metadata.num_rows, os.path.getsize(table)
        if rows * SMALLEST_ROW > size:
            raise UserError(f"{table} claims {rows:,} rows in {size:,} bytes, too few for pictures; download it again")
        labels = [0] * rows
        if label is not None:
            labels = _read(file, table, label).to_pylist()
            if None in labels:
                raise UserError(f"{table}: row {labels.index(None)} has no label; give another --label-column")
        relative = os.path.relpath(os.path.abspath(table), root)
        names = [f"{relative}:{row}" for row in range(len(labels))]
        units += divide(names, labels, shard_size, first=len(units))
    if not units:
        raise UserError(f"{tables[0]} has no rows; name files with pictures")
    classes = () if label is None else _classes_of(schema, label, [y for unit in units for y in unit.labels], tables[0])
    return Plan(Source("parquet", root, column), classes, units)


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


def _label_column(schema: pa.Schema, asked: str | None, table: str) -> str | None:
    integers = [f.name for f in schema if pa.types.is_integer(f.type)]
    if asked is not None:
        if asked not in integers:
            raise UserError(f"{table} has no integer column '{asked}'; {nearest(asked, integers)}")
        return asked
    if "label" in integers or not integers:
        return "label" if integers else None
    if len(integers) > 1:
        raise UserError(f"{table} has the integer columns {', '.join(integers)}; choose one with --label-column")
    return integers[0]


def _classes_of(schema: pa.Schema, label: str, labels: list[int], table: str) -> tuple[str, ...]:
    """Class names from Hugging Face's metadata; numbers if there are no names."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):  # from another writer
        names = None
    if not names:
        return numbered_classes(labels, table)
    if not 0 <= min(labels) <= max(labels) < len(names):
        raise UserError(
            f"{table}: labels are {min(labels)} to {max(labels)}, but there are {len(names)} classes; name a labelled "
            "split"
        )
    return tuple(str(name) for name in names)


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
