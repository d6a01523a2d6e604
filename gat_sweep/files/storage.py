"""Where runs live: a folder, or s3://bucket/prefix. What a run keeps is written and read through here.

A folder is a pathlib.Path. An object store is a Remote, which has as much of Path as runs need, over pyarrow's
filesystems; credentials come from the environment or the machine's role, never from the URI.
"""

import os
import tempfile
from functools import lru_cache
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from pyarrow.fs import AwsStandardS3RetryStrategy, FileSelector, FileSystem, FileType, S3FileSystem

from gat_sweep.errors import UserError
from gat_sweep.files.credentials import check_no_credentials

ATTEMPTS = 10  # of a request to an object store, with growing pauses: about a minute without it ends no trial
SEGMENT = 2**16  # bytes; an object cannot be appended to, so a growing file is objects of about this size
OPTIONS = ("region", "endpoint_override", "scheme")  # what may follow the ? of an s3:// URI


class Remote:
    """A file or folder in an object store.

    store: "s3://bucket?options"; key: below the bucket, without slashes at its ends.
    Its methods are pathlib.Path's, and raise FileNotFoundError as those do. Folders are made by what lies in them.
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
        """From the nearest to the bucket."""
        found = [self.parent]
        while found[-1].key:
            found.append(found[-1].parent)
        return found

    @property
    def path(self) -> str:
        """As pyarrow takes it: bucket/key."""
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
    """A folder as an absolute path, or s3://bucket/prefix.

    Raises UserError for other schemes and for an option that no URI should hold, such as a key.
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
            f"{option}: a URI holds the bucket and {', '.join(OPTIONS)} only; credentials come from the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or from the machine's role"
        )
    return Remote(f"s3://{parts.netloc}" + (f"?{parts.query}" if parts.query else ""), parts.path.strip("/"))


def children(folder: Place) -> list[Place]:
    """What lies in a folder, by name; nothing when there is no such folder."""
    if isinstance(folder, Path):
        return list[Place](sorted(folder.iterdir())) if folder.is_dir() else []
    found = folder.filesystem.get_file_info(FileSelector(folder.path, allow_not_found=True))
    return [folder / name for name in sorted(info.base_name for info in found)]


def write(target: Place, content: bytes) -> None:
    """Whole or not at all, and on the disk when this returns; what was there before stays until then.

    Raises OSError when there is no room, and leaves nothing behind.
    """
    if isinstance(target, Remote):
        with target.filesystem.open_output_stream(target.path) as file:  # visible once it is closed
            file.write(content)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not the same name for every writer: one that outlives its killed parent must not write into ours.
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)  # mkstemp's is for this user alone
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError:
        os.unlink(temporary)  # room for the line that says why
        raise
    _sync_folder(target.parent)


def remove_folder(folder: Place) -> None:
    """With all files in it; not an error when it is gone."""
    if isinstance(folder, Remote):
        if folder.exists():
            folder.filesystem.delete_dir(folder.path)
        return
    for file in children(folder):
        file.unlink()
    if folder.is_dir():
        folder.rmdir()


def append(target: Place, content: bytes) -> None:
    """Adds to the end of a growing file, which has one writer and is read with read_from."""
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
    """A growing file from a byte on; empty when there is no such file."""
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
    """Bytes of a growing file; 0 when there is no such file."""
    if isinstance(target, Path):
        return target.stat().st_size if target.exists() else 0
    segments = _segments(target)
    return sum(segments[-1]) if segments else 0


def _segment(target: Remote, start: int) -> Remote:
    return target / f"{start:015d}"


def _segments(target: Remote) -> list[tuple[int, int]]:
    """(first byte, bytes) of each object that a growing file is made of."""
    found = target.filesystem.get_file_info(FileSelector(target.path, allow_not_found=True))
    return sorted((int(info.base_name), info.size) for info in found)


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@lru_cache
def _filesystem(store: str) -> FileSystem:
    options = dict(parse_qsl(urlsplit(store).query))
    retry = AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)
    # Delayed: one request for a small file instead of three.
    return S3FileSystem(retry_strategy=retry, allow_delayed_open=True, **options)
