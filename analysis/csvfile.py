"""Rows of CSV files as people's programs write them: other delimiters, spreadsheets' headers, comments."""

import csv
import re
from collections.abc import Collection, Iterator
from pathlib import Path

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
SUFFIXES = (".csv", ".tsv")
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")


def read_csv(path: Path, known: Collection[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and fields of the rows of a CSV, by column; the header is the first of its rows.

    Fields are separated by commas, semicolons or tabs: as a first line `sep=;` says, or else as the header shows. With
    semicolons, 84,5 is a number. Lines that begin with # are comments. Capitals and spaces do not matter in the names
    of the `known` columns (`Generator Size` is generator_size).
    Raises ValueError, in one line, when the file cannot be read as such.
    """
    try:
        # utf-8-sig: spreadsheets put a byte-order mark before the first column's name.
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: cannot be read as CSV in UTF-8: {error}") from error
    lines = ["" if line.lstrip().startswith("#") else line for line in text.splitlines(keepends=True)]
    delimiter = _delimiter(lines, path)
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    header: list[str] = []
    try:
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if not header:
                header = _header(fields, known, path)
                continue
            if len(fields) != len(header):
                raise ValueError(
                    f"{path}, row {reader.line_num}: {len(fields)} fields, but the header has {len(header)}"
                )
            values = [field.strip() for field in fields]
            if delimiter == ";":
                values = [value.replace(",", ".") if DECIMAL_COMMA.fullmatch(value) else value for value in values]
            yield reader.line_num, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}: cannot be read as CSV in UTF-8: {error}") from error


def _delimiter(lines: list[str], path: Path) -> str:
    """What separates the fields. A line `sep=` before the header is emptied."""
    at = next((i for i, line in enumerate(lines) if line.strip()), None)
    if at is None:
        raise ValueError(f"{path}: the table has no rows")
    first = lines[at].rstrip("\r\n")
    if first.lower().startswith("sep="):
        if first[4:] not in DELIMITERS:
            raise ValueError(f"{path}: its first line says {first!r}; use {', '.join(DELIMITERS.values())}")
        lines[at] = "\n"
        return first[4:]
    counts = {mark: first.count(mark) for mark in DELIMITERS}
    return max(counts, key=lambda mark: counts[mark])


def _header(fields: list[str], known: Collection[str], path: Path) -> list[str]:
    header = []
    for field in fields:
        name, plain = field.strip(), re.sub(r"[\s_-]+", "_", field.strip().lower())
        name = plain if plain in known else name
        if name and name in header:  # spreadsheets leave empty columns at the end
            raise ValueError(f"{path}: the column {name} is there twice; rename or delete one of them")
        header.append(name)
    return header
