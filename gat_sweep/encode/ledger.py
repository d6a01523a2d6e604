"""The finished units of an encoding: a first line with the job, then one line per unit, each synced to disk."""

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
from gat_sweep.files.storage import NO_LOCKS
from gat_sweep.text import Say

LEDGER = "encode.jsonl"
LOCK = ".lock"


class Done(Record):
    """A finished unit."""

    unit: int
    shard: Shard | None  # None when all of its images were skipped
    skipped: tuple[Skipped, ...]
    cut: int = 0  # captions with more tokens than are stored


class Ledger:
    """The ledger of a job in a folder, which is started or continued.

    job: the values that the shards depend on.
    Raises UserError when the folder has another job or other content.
    """

    def __init__(self, folder: Path, job: dict[str, Any]):
        self.folder, self.path = folder, folder / LEDGER
        content = self.path.read_bytes() if self.path.exists() else b""
        lines = content[: content.rfind(b"\n") + 1].splitlines()  # a crash may leave an incomplete line at the end
        if not lines:
            others = sorted(path.name for path in folder.iterdir() if path.name not in (LEDGER, LOCK))
            if others:
                raise UserError(
                    f"--out {folder} has {others[0]}, which is not part of an encoding; choose an empty folder"
                )
            self.path.write_bytes(b"")
            self._append(json.dumps({"job": job}))
            self.done: dict[int, Done] = {}
            return
        try:
            before = json.loads(lines[0])["job"]
            finished = [Done.model_validate_json(line) for line in lines[1:]]
        except (ValueError, KeyError, ValidationError) as error:
            raise UserError(f"{self.path} is damaged ({str(error).splitlines()[0]}); choose another --out") from None
        differs = [f"{key} was {before.get(key)}, is {job[key]}" for key in job if before.get(key) != job[key]]
        if differs:
            raise UserError(f"--out {folder} has another encoding: {'; '.join(differs)}; choose another --out")
        if len(content) > content.rfind(b"\n") + 1:
            with open(self.path, "r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
        self.done = {done.unit: done for done in finished if self._is_there(done)}

    def add(self, done: Done) -> None:
        """Records a finished unit, whose shard is already written; the record is on disk when this returns."""
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
def locked(folder: Path, say: Say) -> Iterator[None]:
    """Creates the folder and locks it against other processes, until the end of the block or of the process.

    On a file system without locks it only says so.
    Raises UserError when another process has the lock.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"--out {folder}: {error.strerror}; choose a writable folder") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            say(f"the file system of {folder} has no locks; do not encode into it twice at the same time")
        yield
    except BlockingIOError:
        raise UserError(
            f"another `gat-sweep encode` writes to {folder}; wait until it ends, or choose another --out"
        ) from None
    finally:
        os.close(descriptor)
