"""What a mistake says."""

from collections.abc import Callable
from typing import Any

import pytest

from gat_sweep.errors import UserError


def message(action: Any) -> str:
    with pytest.raises(UserError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


def refuses(load: Callable[[], object]) -> bool:
    """Whether loading ends in one UserError line; what else it raises is a failure of the test."""
    try:
        load()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 500, error
        return True
    return False
