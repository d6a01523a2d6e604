"""The journal of a trial: one JSON record a line, at the end of a growing file. Who reads follows it by its offset."""

import json
import time
from collections.abc import Iterator
from typing import Any

from gat_sweep.files.storage import Place, append, read_from, size_of

FILE = "journal.jsonl"


def add_record(folder: Place, values: dict[str, Any]) -> None:
    """A record at the end; a line that a killed process left half-written is ended first."""
    journal = folder / FILE
    end = read_from(journal, max(0, size_of(journal) - 1))
    line = json.dumps({**values, "time": time.time()}).encode() + b"\n"
    append(journal, line if end in (b"", b"\n") else b"\n" + line)


def read_records(folder: Place, offset: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """(byte behind it, record) of every line from a byte on. A last line that is being written is left for later."""
    content = read_from(folder / FILE, offset)
    for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
        offset += len(line)
        try:
            record = json.loads(line)
        except ValueError:
            continue  # half a line that a killed process left
        yield offset, record
