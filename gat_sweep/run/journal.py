"""The journal of a trial: a growing file with one JSON record per line. A reader follows it by a byte offset."""

import json
import time
from collections.abc import Iterator
from typing import Any

from gat_sweep.files.storage import Place, append, read_from, size_of

FILE = "journal.jsonl"


def add_record(folder: Place, values: dict[str, Any]) -> None:
    """Appends a record; first ends a line that a killed process left half-written."""
    journal = folder / FILE
    end = read_from(journal, max(0, size_of(journal) - 1))
    line = json.dumps({**values, "time": time.time()}).encode() + b"\n"
    append(journal, line if end in (b"", b"\n") else b"\n" + line)


def read_records(folder: Place, offset: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """(offset after the line, record) of every line from byte `offset` on; skips a last line without its end."""
    content = read_from(folder / FILE, offset)
    for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
        offset += len(line)
        try:
            record = json.loads(line)
        except ValueError:
            continue  # half a line that a killed process left
        if isinstance(record, dict) and "time" in record:  # else half a line that happens to be JSON
            yield offset, record
