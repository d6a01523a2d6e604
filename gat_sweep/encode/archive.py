"""Files in a folder or in a zip archive, such as edm2's dataset tool writes; a root ending in .zip is an archive."""

import io
import os
import stat
import zipfile
import zlib
from functools import lru_cache
from typing import IO

from gat_sweep.errors import UserError

LARGEST = 2**28  # most bytes of a picture file
# What zipfile raises for a file that is not there, damaged, encrypted, or packed by a method it does not know.
BAD_MEMBER = (KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError)


def is_archive(root: str) -> bool:
    """Whether a root is a zip archive."""
    return root.lower().endswith(".zip") and os.path.isfile(root)


def archive_names(root: str) -> list[str]:
    """Paths of all files in an archive, in its order. Raises UserError when it is damaged or leads outside itself."""
    names = [info.filename for info in _opened(root).infolist() if not info.is_dir()]
    seen = set()
    for name in names:
        if name.startswith("/") or ".." in name.split("/") or name in seen:
            raise UserError(f"{root} has the file '{name}', which is there twice or outside it; write it again")
        seen.add(name)
    return names


def open_file(root: str, name: str, links: bool = False) -> IO[bytes]:
    """Opens a file of a folder or an archive. Raises UserError when it cannot be read from disk.

    links: allows links to files outside the folder. Otherwise these are refused, as the author of the folder could
    choose any file.
    """
    path = os.path.join(root, name)
    if is_archive(root):
        return io.BytesIO(_member(root, name))
    if not links:
        check_inside(root, path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"{path} is not a file; remove it and run the same command again")
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); fix that and run the same command again") from None


def read_file(root: str, name: str, links: bool = False) -> bytes:
    """Content of a file. Raises UserError as open_file does, and for files that are too large."""
    path = os.path.join(root, name)
    try:
        with open_file(root, name, links) as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); fix that and run the same command again") from None
    if len(content) > LARGEST:
        raise UserError(f"{path} has more than {LARGEST:,} bytes, which no picture needs; remove it")
    return content


def _member(root: str, name: str) -> bytes:
    """Content of a file in an archive. Raises UserError when it is too large, damaged, encrypted, or not there."""
    path = os.path.join(root, name)
    try:
        if (size := _opened(root).getinfo(name).file_size) > LARGEST:
            raise UserError(f"{path} has {size:,} bytes, more than {LARGEST:,}, which no picture needs; remove it")
        return _opened(root).read(name)
    except BAD_MEMBER as error:
        said = " ".join(str(error).split())[:120]
        raise UserError(f"cannot read {path} ({said}); write the archive again") from None


def check_inside(root: str, path: str) -> None:
    """Raises UserError when a path in a folder leads outside it; the folder itself may be a link."""
    found = os.path.realpath(path)
    if not found.startswith(_real(root) + os.sep):
        raise UserError(f"{path} is a link to {found}, outside {root}; give --follow-links, or copy the files there")


@lru_cache
def _real(root: str) -> str:
    return os.path.realpath(root).rstrip(os.sep)


@lru_cache
def _opened(root: str) -> zipfile.ZipFile:
    """An archive, opened once in each process."""
    try:
        return zipfile.ZipFile(root)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{root} is not a whole zip archive ({error}); download or write it again") from None
