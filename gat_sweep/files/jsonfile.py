"""Reading of a run's small JSON files; a damaged one is named, with what to do."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place

T = TypeVar("T")


def read_json(path: Place, read: Callable[[Any], T], fix: str) -> T:
    """What `read` makes of a file's JSON value.

    fix: what to do about a damaged file, for the error.
    Raises FileNotFoundError when the file is missing.
    Raises UserError when the file is not JSON, or when `read` fails on its value.
    """
    try:
        return read(json.loads(path.read_bytes()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged; {fix}") from None
