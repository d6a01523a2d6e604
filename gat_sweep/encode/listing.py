"""dataset.json, in which the dataset tools of edm2 and REPA list their files with labels."""

import json
import os
from pathlib import PurePosixPath

from gat_sweep.encode.archive import archive_names, is_archive, read_file
from gat_sweep.errors import UserError

LIST = "dataset.json"


def has_list(root: str) -> bool:
    """Whether a folder or an archive has a dataset.json."""
    return LIST in archive_names(root) if is_archive(root) else os.path.isfile(os.path.join(root, LIST))


def listed(root: str, extensions: str | tuple[str, ...]) -> tuple[list[str], list[int] | None]:
    """Files of a root and their labels, in the order of its dataset.json; labels are None where it has none.

    Without labels the tools write `{"labels": null}`, and the files are all that there are, sorted. Backslashes of
    Windows become slashes.
    Raises UserError when the list is missing, or names other files or files outside the root.
    """
    path = os.path.join(root, LIST)
    if not has_list(root):
        raise UserError(f"{path} is missing; give a folder or zip that the dataset tool of edm2 or REPA wrote")
    try:
        entries = json.loads(read_file(root, LIST))["labels"]
        items = None if entries is None else [(str(name).replace("\\", "/"), label) for name, label in entries]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f'{path}: expected {{"labels": [["path", class], ...]}} or null; write it again') from None
    if items is None:
        names = sorted(name for name in _files(root) if name.lower().endswith(extensions))
        if not names:
            raise UserError(f"{root} has a dataset.json, but none of the files that are asked for; give another")
        return names, None
    seen = set()
    for name, label in items:
        if (
            PurePosixPath(name).is_absolute()
            or ".." in PurePosixPath(name).parts
            or not name.lower().endswith(extensions)
        ):
            hint = "give it to --latents" if name.endswith(".npy") else "write the list again"
            shown = extensions if isinstance(extensions, str) else ", ".join(extensions)
            raise UserError(f"{path}: '{name}' is not a file in its folder with suffix {shown}; {hint}")
        if type(label) is not int:
            raise UserError(f"{path}: the label of '{name}' is {label!r}, not a class number; write the list again")
        if name in seen:
            raise UserError(f"{path} lists '{name}' twice; write the list again")
        seen.add(name)
    if not items:
        raise UserError(f"{path} lists no files; write it again")
    return [name for name, _ in items], [label for _, label in items]


def _files(root: str) -> list[str]:
    if is_archive(root):
        return archive_names(root)
    return [os.path.relpath(os.path.join(at, name), root) for at, _, names in os.walk(root) for name in names]
