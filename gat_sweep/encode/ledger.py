"""What of an encoding is done: a fsynced line per finished unit, after a first line that says which job it is."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gat_sweep.data.shards import MANIFEST, Record, Shard, Skipped
from gat_sweep.errors import UserError

LEDGER = "encode.jsonl"
LOCK = ".lock"


class Done(Record):
    """A finished unit."""

    unit: int
    shard: Shard | None  # None when all of its images were skipped
    skipped: tuple[Skipped, ...]


class Ledger:
    """The ledger of a job in a folder, which is begun or gone on with.

    job: what the shards depend on.
    Raises UserError when the folder holds another job, or something else.
    """

    def __init__(self, folder: Path, job: dict[str, Any]):
        self.folder, self.path = folder, folder / LEDGER
        content = self.path.read_bytes() if self.path.exists() else b""
        lines = content[: content.rfind(b"\n") + 1].splitlines()  # a crash leaves half a line behind the last
        if not lines:
            others = sorted(path.name for path in folder.iterdir() if path.name not in (LEDGER, LOCK))
            if others:
                raise UserError(
                    f"--out {folder} holds {others[0]}, which is no encoding begun here; choose an empty folder"
                )
            self.path.write_bytes(b"")
            self._append(json.dumps({"job": job}))
            self.done: dict[int, Done] = {}
            return
        try:
            before = json.loads(lines[0])["job"]
            finished = [Done.model_validate_json(line) for line in lines[1:]]
        except (ValueError, KeyError, ValidationError) as error:
            raise UserError(f"{self.path} was damaged ({str(error).splitlines()[0]}); choose another --out") from None
        differs = [f"{key} was {before.get(key)}, is {job[key]}" for key in job if before.get(key) != job[key]]
        if differs:
            raise UserError(f"--out {folder} holds another encoding: {'; '.join(differs)}; choose another --out")
        if len(content) > content.rfind(b"\n") + 1:
            with open(self.path, "r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
        self.done = {done.unit: done for done in finished if self._is_there(done)}

    def add(self, done: Done) -> None:
        """Written through to the disk when this returns; the shard is there already."""
        self._append(done.model_dump_json())
        self.done[done.unit] = done

    @property
    def finished(self) -> bool:
        return (self.folder / MANIFEST).exists()

    def _is_there(self, done: Done) -> bool:
        if done.shard is None:
            return True
        path = self.folder / done.shard.file
        return path.is_file() and path.stat().st_size == done.shard.bytes

    def _append(self, line: str) -> None:
        with open(self.path, "ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder and keeps others out of it, until the end of the block or of the process.

    Raises UserError when another process is at work there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"--out {folder}: {error.strerror}; choose a folder that can be written to") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(
            f"another `gat-sweep encode` writes to {folder}; wait for its end or choose another --out"
        ) from None
    finally:
        os.close(descriptor)
