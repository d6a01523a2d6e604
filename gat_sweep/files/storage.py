"""Storage of runs, in a folder or at s3://bucket/prefix. All files of a run are written and read through this module.

A folder is a pathlib.Path. An object store is a Remote, which has the methods of Path that runs need, and uses
pyarrow's filesystems. Credentials come from the environment or the machine's role, never from the URI.
"""

import errno
import os
import tempfile
from functools import lru_cache
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from pyarrow.fs import AwsStandardS3RetryStrategy, FileSelector, FileSystem, FileType, S3FileSystem

from gat_sweep.errors import UserError
from gat_sweep.files.credentials import check_no_credentials

ATTEMPTS = 10  # retries of a request, with growing pauses: an outage of about a minute fails no trial
SEGMENT = 2**16  # bytes; objects cannot grow, so a growing file consists of objects of about this size
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # what flock says on a file system without locks
OPTIONS = ("region", "endpoint_override", "scheme")  # options that may follow the ? of an s3:// URI


class Remote:
    """A file or folder in an object store.

    store: "s3://bucket?options". key: path in the bucket, without slashes at its ends.
    The methods are those of pathlib.Path, and raise FileNotFoundError as those do. A folder exists when a file in it
    exists.
    """

    def __init__(self, store: str, key: str):
        self.store, self.key = store, key

    def __truediv__(self, name: str) -> "Remote":
        return Remote(self.store, f"{self.key}/{name}".strip("/"))

    def __str__(self) -> str:
        bucket, mark, options = self.store.partition("?")
        return f"{bucket}/{self.key}{mark}{options}"

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def name(self) -> str:
        return self.key.rsplit("/", 1)[-1]

    @property
    def stem(self) -> str:
        return self.name.rsplit(".", 1)[0]

    @property
    def parent(self) -> "Remote":
        return Remote(self.store, self.key.rpartition("/")[0])

    @property
    def parents(self) -> "list[Remote]":
        """Parent folders, from the nearest to the bucket."""
        found = [self.parent]
        while found[-1].key:
            found.append(found[-1].parent)
        return found

    @property
    def path(self) -> str:
        """Path for pyarrow: bucket/key."""
        return f"{urlsplit(self.store).netloc}/{self.key}".rstrip("/")

    @property
    def filesystem(self) -> FileSystem:
        return _filesystem(self.store)

    def exists(self) -> bool:
        return self.filesystem.get_file_info(self.path).type != FileType.NotFound

    def read_bytes(self) -> bytes:
        with self.filesystem.open_input_file(self.path) as file:
            return bytes(file.readall())

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def unlink(self) -> None:
        self.filesystem.delete_file(self.path)


Place = Path | Remote


def place(text: str | Path, option: str = "--home") -> Place:
    """Place that `text` names: a folder, as an absolute path, or s3://bucket/prefix.

    option: where the text was given, for the error. Raises UserError for other schemes, and for an option that a URI
    should not contain, such as a key.
    """
    check_no_credentials(str(text), option)
    if "://" not in str(text):
        return Path(text).expanduser().absolute()
    parts = urlsplit(str(text))
    if parts.scheme != "s3" or not parts.netloc:
        raise UserError(f"{option} {parts.scheme}://...: give a folder, or s3://bucket/prefix")
    options = [key for key, _ in parse_qsl(parts.query, keep_blank_values=True)]
    if "@" in parts.netloc or any(key not in OPTIONS for key in options):
        raise UserError(
            f"{option}: a URI may contain only the bucket and {', '.join(OPTIONS)}; credentials come from the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or from the machine's role"
        )
    return Remote(f"s3://{parts.netloc}" + (f"?{parts.query}" if parts.query else ""), parts.path.strip("/"))


def children(folder: Place) -> list[Place]:
    """Files and folders in a folder, sorted by name; an empty list when there is no such folder."""
    if isinstance(folder, Path):
        return list[Place](sorted(folder.iterdir())) if folder.is_dir() else []
    found = folder.filesystem.get_file_info(FileSelector(folder.path, allow_not_found=True))
    return [folder / name for name in sorted(info.base_name for info in found)]


def write(target: Place, content: bytes) -> None:
    """Writes a file completely or not at all; it is on disk when this returns, and the old file stays until then.

    Raises OSError when the disk is full, and leaves no temporary file.
    """
    if isinstance(target, Remote):
        with target.filesystem.open_output_stream(target.path) as file:  # visible only after it is closed
            file.write(content)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # Every writer has its own name: a process that outlives its killed parent must not write into our file.
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)  # mkstemp lets only this user read it
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError:
        os.unlink(temporary)  # frees space for the log line that says why
        raise
    _sync_folder(target.parent)


def remove_folder(folder: Place) -> None:
    """Removes a folder and all files in it; no error when there is no such folder."""
    if isinstance(folder, Remote):
        if folder.exists():
            folder.filesystem.delete_dir(folder.path)
        return
    for file in children(folder):
        file.unlink()
    if folder.is_dir():
        folder.rmdir()


def append(target: Place, content: bytes) -> None:
    """Appends to a growing file, which has only one writer; read it with read_from."""
    if isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "ab") as file:
            file.write(content)
        return
    segments = _segments(target)
    start, size = segments[-1] if segments else (0, 0)
    if size < SEGMENT:
        content = (_segment(target, start).read_bytes() if size else b"") + content
    else:
        start += size
    write(_segment(target, start), content)


def read_from(target: Place, offset: int = 0) -> bytes:
    """Content of a growing file from byte `offset`; empty when the file is missing."""
    if isinstance(target, Path):
        if not target.exists():
            return b""
        with open(target, "rb") as file:
            file.seek(offset)
            return file.read()
    later = [(start, size) for start, size in _segments(target) if start + size > offset]
    content = b"".join(_segment(target, start).read_bytes() for start, _ in later)
    return content[max(0, offset - later[0][0]) :] if later else b""


def size_of(target: Place) -> int:
    """Size of a growing file in bytes; 0 when the file is missing."""
    if isinstance(target, Path):
        return target.stat().st_size if target.exists() else 0
    segments = _segments(target)
    return sum(segments[-1]) if segments else 0


def _segment(target: Remote, start: int) -> Remote:
    return target / f"{start:015d}"


def _segments(target: Remote) -> list[tuple[int, int]]:
    """First byte and size in bytes of each object of a growing file."""
    found = target.filesystem.get_file_info(FileSelector(target.path, allow_not_found=True))
    return sorted((int(info.base_name), info.size) for info in found)


def _sync_folder(folder: Path) -> None:
    """Syncs a folder, because a rename is on disk only after its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@lru_cache
def _filesystem(store: str) -> FileSystem:
    options = dict(parse_qsl(urlsplit(store).query))
    retry = AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)
    # With a delayed open, a small file needs one request instead of three.
    return S3FileSystem(retry_strategy=retry, allow_delayed_open=True, **options)
